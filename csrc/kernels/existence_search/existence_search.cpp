// The plain draw (the truth, and the baseline level) and the search over tiles of candidates.
#include "kernels/existence_search/existence_search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/interruption.h"
#include "core/philox.h"
#include "core/simd_level.h"
#include "kernels/best_match/best_match.h"
#include "kernels/best_match/targets.h"
#include "kernels/existence_search/normal.h"

namespace pns {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void draw_integers_baseline(uint64_t seed, int64_t tile, int64_t n_parameters, float* values) {
  for (int64_t i = 0; i < n_parameters; ++i) {
    for (int q = 0; q < kQuads; ++q) {
      const uint64_t number = static_cast<uint64_t>(tile) * kQuads + q;
      const Philox4 words = philox4x32(seed, static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32),
                                       static_cast<uint32_t>(i), kCandidateStream);
      for (int w = 0; w < 4; ++w) {
        const int32_t odd = (static_cast<int32_t>(words.word[w]) >> 7) | 1;
        values[i * kCandidateTile + w * kQuads + q] = static_cast<float>(odd);
      }
    }
  }
}

DrawFunctions draw_functions() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return draw_functions_avx512();
    case SimdLevel::kAvx2: return draw_functions_avx2();
    default: break;
  }
#endif
  return {draw_integers_baseline, to_normal<4>};
}

struct Worker {
  AlignedBuffer<float> tile;
  std::vector<double> m;
  std::vector<Match> best;
  std::vector<int64_t> n_matches;
};

class Search {
 public:
  Search(const ExistenceSearchParams& p, int n_threads)
      : p_(p), filter_(match_functions().filter), draw_(draw_functions()),
        unit_(p.is_normal ? 1 : kUniformUnit), workers_(n_threads), floor_(p.n_targets),
        outside_(p.n_targets, kInfinity), inside_(p.n_targets, kInfinity) {
    const std::vector<uint8_t> support(p.n_targets * p.n_parameters, 1);
    targets_.read(p.theta, support.data(), p.n_targets, p.n_parameters);
    for (int64_t t = 0; t < p.n_targets; ++t) {
      floor_[t].reset(targets_[t]);
      if (p.eps >= 0) set_margins(t);
    }
    for (Worker& worker : workers_) {
      worker.tile.resize(p.n_parameters * kCandidateTile);
      worker.m.resize(p.n_parameters);
      worker.best.resize(p.n_targets);
      worker.n_matches.resize(p.n_targets);
    }
  }

  void search_tile(int64_t tile, int w) {
    Worker& worker = workers_[w];
    draw(tile, worker.tile.data());
    const int64_t begin = std::max<int64_t>(p_.first - tile * kCandidateTile, 0);
    const int64_t end = std::min<int64_t>(p_.first + p_.n_candidates - tile * kCandidateTile, kCandidateTile);
    const uint64_t present = (~uint64_t{0} >> (kCandidateTile - (end - begin))) << begin;
    uint64_t pass[kTargetGroup];
    float score[kTargetGroup][kCandidateTile];
    for (int64_t t = 0; t < p_.n_targets; t += kTargetGroup) {
      FilterGroup group{worker.tile.data(), targets_.rows(t), p_.n_parameters, 0, {}, {}};
      group.n_targets = static_cast<int>(std::min<int64_t>(kTargetGroup, p_.n_targets - t));
      for (int g = 0; g < group.n_targets; ++g) {
        group.theta[g] = targets_[t + g].direction;
        group.threshold[g] = static_cast<float>(std::min<double>(outside_[t + g], floor_[t + g].get()));
      }
      filter_(group, pass, score);
      for (int g = 0; g < group.n_targets; ++g) {
        if (const uint64_t bits = pass[g] & present) consider(t + g, bits, score[g], tile, &worker);
      }
    }
  }

  void write() const {
    for (int64_t t = 0; t < p_.n_targets; ++t) {
      Match match;
      p_.n_matches[t] = 0;
      for (const Worker& worker : workers_) {
        if (worker.best[t].index >= 0 && worker.best[t].is_better_than(match)) match = worker.best[t];
        p_.n_matches[t] += worker.n_matches[t];
      }
      const bool is_found = match.index >= 0;
      p_.index[t] = match.index;
      p_.scale[t] = is_found ? std::ldexp(match.scale, targets_.exponent(t)) : 1;
      p_.distance[t] =
          is_found ? std::ldexp(match.distance, targets_.exponent(t)) : std::numeric_limits<double>::quiet_NaN();
      write_candidate(t, match.index);
    }
  }

 private:
  void draw(int64_t tile, float* values) const {
    draw_.integers(p_.seed, tile, p_.n_parameters, values);
    if (p_.is_normal) draw_.to_normal(values, p_.n_parameters * kCandidateTile);
  }

  // q^2 = |theta|^2 (1 - cos^2), so cos^2 = 1 - (eps / |theta|)^2 is the edge; float32 decides beyond its rounding.
  // One parameter fits any of its sign.
  void set_margins(int64_t t) {
    const Target target = targets_[t];
    const double eps = std::ldexp(p_.eps, -targets_.exponent(t));
    const double edge = std::max(0.0, 1 - eps / target.length2 * eps);
    outside_[t] = edge - target.rounding();
    inside_[t] = (p_.n_parameters == 1 ? 0 : edge) + target.rounding();
  }

  void consider(int64_t t, uint64_t bits, const float* score, int64_t tile, Worker* worker) {
    const Target target = targets_[t];
    Match& best = worker->best[t];
    // A worker's candidates ascend: after an exact match none of them is better.
    double floor = best.distance == 0 ? kInfinity : floor_[t].get();
    for (; bits != 0; bits &= bits - 1) {
      const int j = __builtin_ctzll(bits);
      const bool is_inside = score[j] > inside_[t], is_at_edge = !is_inside && score[j] >= outside_[t];
      worker->n_matches[t] += is_inside;
      if (!is_at_edge && score[j] < floor) continue;
      for (int64_t i = 0; i < p_.n_parameters; ++i) {
        worker->m[i] = worker->tile[i * kCandidateTile + j] * unit_;
      }
      Match match;
      if (!evaluate(target, worker->m.data(), tile * kCandidateTile + j, &match)) continue;
      if (is_at_edge && std::ldexp(match.distance, targets_.exponent(t)) <= p_.eps) ++worker->n_matches[t];
      if (!match.is_better_than(best)) continue;
      best = match;
      floor_[t].raise(match.cosine2 - target.rounding());
      floor = best.distance == 0 ? kInfinity : floor_[t].get();
    }
  }

  void write_candidate(int64_t t, int64_t index) const {
    std::vector<float> tile(p_.n_parameters * kCandidateTile, std::numeric_limits<float>::quiet_NaN());
    if (index >= 0) draw(index / kCandidateTile, tile.data());
    for (int64_t i = 0; i < p_.n_parameters; ++i) {
      const int64_t j = index >= 0 ? index % kCandidateTile : 0;
      p_.candidate[t * p_.n_parameters + i] = tile[i * kCandidateTile + j] * unit_;
    }
  }

  const ExistenceSearchParams& p_;
  MatchFilter filter_;
  DrawFunctions draw_;
  double unit_;
  Targets targets_;
  std::vector<Worker> workers_;
  std::vector<Floor> floor_;
  std::vector<double> outside_, inside_;  // cosine^2 below which q > eps, and above which q < eps, for certain
};

}  // namespace

bool existence_search(const ExistenceSearchParams& p) {
  const int64_t first_tile = p.first / kCandidateTile;
  const int64_t n_tiles = (p.first + p.n_candidates - 1) / kCandidateTile + 1 - first_tile;
  // About a millisecond between looks at whether to stop, and at least 200 us of work for a thread.
  const double work = double(p.n_parameters) * (p.n_targets + 16);
  const int64_t run = static_cast<int64_t>(std::max(1.0, std::min(256.0, 2e5 / work)));
  const int n_threads = static_cast<int>(std::max(1.0, std::min<double>(p.n_threads, n_tiles * work / 2e5)));
  Search search(p, n_threads);
  Interruption interruption(p.should_stop);
  std::atomic<int64_t> next{0};
  const bool is_complete = run_interruptible(n_threads, interruption, [&](int worker) {
    auto stop = [&] { return worker == 0 ? interruption.ask() : interruption.is_seen(); };
    for (int64_t begin = run * next++; begin < n_tiles && !stop(); begin = run * next++) {
      const int64_t end = std::min(n_tiles, begin + run);
      for (int64_t i = begin; i < end; ++i) search.search_tile(first_tile + i, worker);
      interruption.n_done += (end - begin) * kCandidateTile;
    }
  });
  if (is_complete) search.write();
  return is_complete;
}

}  // namespace pns
