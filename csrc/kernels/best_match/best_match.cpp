// The plain filter (the truth, and the baseline level), the float64 second stage and the greedy order around it.
#include "kernels/best_match/best_match.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/parallel.h"
#include "core/simd_level.h"

namespace pns {
namespace {

uint64_t match_filter_baseline(const float* tile, const int32_t* feature, const float* theta, int64_t n_features,
                               float threshold) {
  uint64_t pass = 0;
  for (int j = 0; j < kCandidateTile; ++j) {
    float dot = 0, norm = 0;
    for (int64_t k = 0; k < n_features; ++k) {
      const float m = tile[int64_t{feature[k]} * kCandidateTile + j];
      dot += theta[k] * m;
      norm += m * m;
    }
    const bool is_safe = norm > 1e-30f && norm < 1e30f;
    if (!is_safe || dot * std::fabs(dot) >= threshold * norm) pass |= uint64_t{1} << j;
  }
  return pass;
}

MatchFilter filter_function() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return match_filter_avx512();
    case SimdLevel::kAvx2: return match_filter_avx2();
    default: break;
  }
#endif
  return match_filter_baseline;
}

// A target on its support: positions, values, and the values of unit length in float32 for the filter.
struct Target {
  std::vector<int32_t> feature;
  std::vector<double> theta;  // times 2^-exponent: squares neither overflow nor vanish, and nothing is rounded
  int exponent = 0;
  std::vector<float> direction;

  // float32 rounding of a cosine of this many terms, with slack. A cosine^2 is off by as much, or by its square at 0.
  double rounding() const { return 2.5e-7 * (feature.size() + 4); }
};

struct Match {
  int64_t index = -1;
  double scale = 1, distance = std::numeric_limits<double>::infinity();  // both times 2^-exponent of the target
  double threshold = -1;  // signed cosine^2 below which the filter need not look again

  bool is_better_than(const Match& other) const {
    return distance < other.distance || (distance == other.distance && index < other.index);
  }
};

// Stage two: q of one candidate in float64. Candidates come in ascending order, so "<" keeps the lowest index.
template <typename T>
void consider(const Target& target, const T* m, int64_t index, Match* best) {
  double dot = 0, norm = 0;
  for (size_t k = 0; k < target.feature.size(); ++k) {
    const double x = m[target.feature[k]];
    dot += target.theta[k] * x;
    norm += x * x;
  }
  const double scale = dot / norm;
  if (!(dot > 0) || !std::isfinite(scale) || scale == 0) return;
  double residual = 0, length = 0;
  for (size_t k = 0; k < target.feature.size(); ++k) {
    const double r = target.theta[k] - scale * m[target.feature[k]];
    residual += r * r;
    length += target.theta[k] * target.theta[k];
  }
  const double distance = target.feature.size() == 1 ? 0 : std::sqrt(residual);
  if (!(distance < best->distance)) return;
  const double threshold = dot * dot / (norm * length) - target.rounding();
  *best = {index, scale, distance, distance == 0 ? std::numeric_limits<double>::infinity() : threshold};
}

template <typename T>
struct Problem {
  const BestMatchParams<T>& p;
  const T* candidates;
  std::vector<uint8_t> free;
  std::vector<Target> targets;

  Problem(const BestMatchParams<T>& params, int64_t n)
      : p(params), candidates(p.candidates + n * p.n_candidates * p.n_parameters), free(p.n_candidates, 1) {
    if (p.available != nullptr) std::copy_n(p.available + n * p.n_candidates, p.n_candidates, free.begin());
    targets.resize(p.n_targets);
    for (int64_t t = 0; t < p.n_targets; ++t) {
      const int64_t at = (n * p.n_targets + t) * p.n_parameters;
      double length = 0, peak = 0;
      for (int64_t i = 0; i < p.n_parameters; ++i) {
        if (p.support[at + i] == 0) continue;
        targets[t].feature.push_back(static_cast<int32_t>(i));
        targets[t].theta.push_back(p.target[at + i]);
        peak = std::max(peak, std::fabs(p.target[at + i]));
      }
      std::frexp(peak, &targets[t].exponent);
      for (double& theta : targets[t].theta) {
        theta = std::ldexp(theta, -targets[t].exponent);
        length += theta * theta;
      }
      const double inverse = length > 0 ? 1 / std::sqrt(length) : 0;
      for (double theta : targets[t].theta) targets[t].direction.push_back(static_cast<float>(theta * inverse));
    }
  }

  // Every target against candidates [begin, begin + size), size <= kCandidateTile.
  void scan_tile(int64_t begin, int64_t size, float* tile, MatchFilter filter, std::vector<Match>* best) const {
    for (int64_t i = 0; i < p.n_parameters; ++i) {
      float* row = tile + i * kCandidateTile;
      for (int64_t j = 0; j < size; ++j) row[j] = static_cast<float>(candidates[(begin + j) * p.n_parameters + i]);
      for (int64_t j = size; j < kCandidateTile; ++j) row[j] = 0;
    }
    uint64_t usable = 0;
    for (int64_t j = 0; j < size; ++j) usable |= uint64_t{free[begin + j] != 0} << j;
    for (size_t t = 0; t < targets.size(); ++t) {
      const Target& target = targets[t];
      if (target.feature.empty()) continue;
      Match& match = (*best)[t];
      const double around_zero = -target.rounding() * target.rounding();
      uint64_t pass = usable & filter(tile, target.feature.data(), target.direction.data(),
                                      static_cast<int64_t>(target.feature.size()),
                                      static_cast<float>(std::max(match.threshold, around_zero)));
      for (; pass != 0; pass &= pass - 1) {
        const int64_t c = begin + __builtin_ctzll(pass);
        consider(target, candidates + c * p.n_parameters, c, &match);
      }
    }
  }

  void solve(int n_threads, Match* result) {
    const int64_t n_tiles = (p.n_candidates + kCandidateTile - 1) / kCandidateTile;
    const MatchFilter filter = filter_function();
    std::vector<std::vector<Match>> best(n_threads, std::vector<Match>(p.n_targets));
    std::vector<AlignedBuffer<float>> tile(n_threads);
    parallel_items(n_tiles, n_threads, [&](int64_t i, int worker) {
      tile[worker].resize(p.n_parameters * kCandidateTile);
      const int64_t begin = i * kCandidateTile;
      scan_tile(begin, std::min<int64_t>(kCandidateTile, p.n_candidates - begin), tile[worker].data(), filter,
                &best[worker]);
    });
    for (int64_t t = 0; t < p.n_targets; ++t) {
      Match match;
      for (const auto& of_thread : best) {
        if (of_thread[t].index >= 0 && (match.index < 0 || of_thread[t].is_better_than(match))) match = of_thread[t];
      }
      // The best of all is the best of the free ones unless an earlier target took it.
      if (match.index >= 0 && !free[match.index]) {
        match = Match();
        for (int64_t c = 0; c < p.n_candidates; ++c) {
          if (free[c]) consider(targets[t], candidates + c * p.n_parameters, c, &match);
        }
      }
      if (match.index >= 0) {
        free[match.index] = 0;
        match.scale = std::ldexp(match.scale, targets[t].exponent);
        match.distance = std::ldexp(match.distance, targets[t].exponent);
      }
      result[t] = match;
    }
  }
};

}  // namespace

template <typename T>
void best_match(const BestMatchParams<T>& p) {
  const double work = double(p.n_problems) * p.n_targets * p.n_candidates * p.n_parameters;
  const int n_threads = std::max(1, static_cast<int>(std::min<double>(p.n_threads, work / 1e6)));
  const bool by_problem = p.n_problems >= n_threads;
  parallel_items(p.n_problems, by_problem ? n_threads : 1, [&](int64_t n, int) {
    std::vector<Match> result(p.n_targets);
    Problem<T>(p, n).solve(by_problem ? 1 : n_threads, result.data());
    for (int64_t t = 0; t < p.n_targets; ++t) {
      p.index[n * p.n_targets + t] = result[t].index;
      p.scale[n * p.n_targets + t] = result[t].scale;
      p.distance[n * p.n_targets + t] =
          result[t].index < 0 ? std::numeric_limits<double>::quiet_NaN() : result[t].distance;
    }
  });
}

template void best_match<float>(const BestMatchParams<float>&);
template void best_match<double>(const BestMatchParams<double>&);

}  // namespace pns
