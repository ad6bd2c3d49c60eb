// The plain passes (the truth, and the baseline level), the scan that keeps each target's best few, and the greedy
// order on top of it.
#include "kernels/best_match/best_match.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/parallel.h"
#include "core/simd_level.h"
#include "kernels/best_match/targets.h"

namespace pns {
namespace {

void match_filter_baseline(const FilterGroup& group, uint64_t* pass, float (*score)[kCandidateTile]) {
  for (int g = 0; g < group.n_targets; ++g) {
    pass[g] = 0;
    for (int j = 0; j < kCandidateTile; ++j) {
      float dot = 0, norm = 0;
      for (int64_t k = 0; k < group.n_features; ++k) {
        const float m = group.tile[int64_t{group.row[k]} * kCandidateTile + j];
        dot += group.theta[g][k] * m;
        norm += m * m;
      }
      const float signed_square = dot * std::fabs(dot);
      if (signed_square - group.threshold[g] * norm > kTiny) pass[g] |= uint64_t{1} << j;
      score[g][j] = norm < kSmallNorm ? std::numeric_limits<float>::quiet_NaN() : signed_square / norm;
    }
  }
}

template <typename T>
uint64_t pack_tile_baseline(const T* const* rows, int64_t n_columns, float limit, float* tile) {
  uint64_t wild = 0;
  for (int64_t i = 0; i < n_columns; ++i) {
    for (int j = 0; j < kCandidateTile; ++j) {
      const float m = tile[i * kCandidateTile + j] = static_cast<float>(rows[j][i]);
      if (!(std::fabs(m) < limit)) wild |= uint64_t{1} << j;
    }
  }
  return wild;
}

// The same for few of many parameters.
template <typename T>
uint64_t gather_tile(const T* const* rows, const std::vector<int32_t>& columns, float limit, float* tile) {
  uint64_t wild = 0;
  for (int j = 0; j < kCandidateTile; ++j) {
    bool is_tame = true;
    for (size_t i = 0; i < columns.size(); ++i) {
      const float m = tile[i * kCandidateTile + j] = static_cast<float>(rows[j][columns[i]]);
      is_tame &= std::fabs(m) < limit;
    }
    wild |= uint64_t{!is_tame} << j;
  }
  return wild;
}

}  // namespace

MatchFunctions match_functions() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return match_functions_avx512();
    case SimdLevel::kAvx2: return match_functions_avx2();
    default: break;
  }
#endif
  return {match_filter_baseline, pack_tile_baseline<float>, pack_tile_baseline<double>};
}

namespace {

PackTile<float> pack_function(const MatchFunctions& f, const float*) { return f.pack_f32; }
PackTile<double> pack_function(const MatchFunctions& f, const double*) { return f.pack_f64; }

constexpr int kMostKept = 8;
// Packing one number of a candidate, or an eighth of its product with a target, takes some 0.4 ns: a thread gets 200 us.
constexpr double kWorkOfThread = 5e5;

// The best few candidates of one target, best first.
struct Best {
  Match match[kMostKept];
  int n = 0;

  void add(const Match& m, int kept) {
    if (n == kept && !m.is_better_than(match[n - 1])) return;
    int at = n < kept ? n++ : n - 1;
    for (; at > 0 && m.is_better_than(match[at - 1]); --at) match[at] = match[at - 1];
    match[at] = m;
  }
  bool is_full_of_zeros(int kept) const { return n == kept && match[n - 1].distance == 0; }
};

// Fetches the next tile's memory while this one is worked on, a part a step: candidates are read once, and waiting for
// them took a quarter of the time. Tiles that would displace the present one from the L2 are left alone.
class Prefetch {
 public:
  Prefetch(const void* begin, size_t bytes, size_t n_steps)
      : at_(static_cast<const char*>(begin)), end_(at_), part_((bytes / n_steps + kLine - 1) / kLine * kLine) {
    if (begin != nullptr && bytes <= kMostBytes) end_ += bytes;
  }
  void next() {
    for (const char* stop = at_ + part_; at_ < std::min(stop, end_); at_ += kLine) __builtin_prefetch(at_);
  }

 private:
  static constexpr size_t kLine = 64, kMostBytes = size_t{1} << 18;
  const char *at_, *end_;
  size_t part_;
};

struct Worker {
  AlignedBuffer<float> tile;
  std::vector<Best> best;
};

template <typename T>
class Solver {
 public:
  Solver(const BestMatchParams<T>& p, const MatchFunctions& functions, int n_threads)
      : p_(p), filter_(functions.filter), pack_(pack_function(functions, p.candidates)), workers_(n_threads) {}

  // False: a target is not finite.
  bool solve(int64_t n) {
    const int64_t at = n * p_.n_targets * p_.n_parameters;
    const uint8_t* support = p_.support + at;
    const bool is_finite =
        p_.target_is_f64
            ? targets_.read(static_cast<const double*>(p_.target) + at, support, p_.n_targets, p_.n_parameters)
            : targets_.read(static_cast<const float*>(p_.target) + at, support, p_.n_targets, p_.n_parameters);
    if (!is_finite) return false;
    candidates_ = p_.candidates + n * p_.n_candidates * p_.n_parameters;
    free_.assign(p_.n_candidates, 1);
    if (p_.available != nullptr) std::copy_n(p_.available + n * p_.n_candidates, p_.n_candidates, free_.begin());
    best_.assign(p_.n_targets, Best());
    is_complete_.assign(p_.n_targets, 1);
    wanted_.clear();
    for (int64_t t = 0; t < p_.n_targets; ++t) {
      if (!targets_.is_empty(t)) wanted_.push_back(t);
    }
    kept_ = n_kept();
    scan();
    for (int64_t t = 0; t < p_.n_targets; ++t) take(t, n * p_.n_targets + t);
    return true;
  }

 private:
  // The fewest for which less than half a target is expected to find all of its own taken: by chance, target t does
  // with probability (t / C)^kept.
  int n_kept() const {
    const double t = p_.n_targets, ratio = t / std::max<double>(1, p_.n_candidates);
    int kept = 1;
    while (kept < kMostKept && t * std::pow(ratio, kept) / (kept + 1) > 0.5) ++kept;
    return kept;
  }

  void take(int64_t t, int64_t out) {
    Match match = first_free(t);
    if (match.index < 0 && !is_complete_[t]) {
      search_again(t);
      match = first_free(t);
    }
    const bool is_found = match.index >= 0;
    if (is_found) free_[match.index] = 0;
    p_.index[out] = match.index;
    p_.scale[out] = is_found ? std::ldexp(match.scale, targets_.exponent(t)) : 1;
    p_.distance[out] = is_found ? std::ldexp(match.distance, targets_.exponent(t))
                                : std::numeric_limits<double>::quiet_NaN();
  }

  Match first_free(int64_t t) const {
    for (int i = 0; i < best_[t].n; ++i) {
      if (free_[best_[t].match[i].index]) return best_[t].match[i];
    }
    return Match();
  }

  // All of target t's few are taken: it is searched again, and with it the next that have few left. More of them at once
  // would share the packing of tiles, but equal targets are after the same few and would all be back eight targets on:
  // 2,000 of them took 240 ms without a limit.
  void search_again(int64_t t) {
    constexpr size_t kTogether = 64;
    wanted_.clear();
    for (int64_t u = t; u < p_.n_targets && wanted_.size() < kTogether; ++u) {
      const Best& best = best_[u];
      const auto n_left = std::count_if(best.match, best.match + best.n, [&](const Match& m) { return free_[m.index]; });
      if (!is_complete_[u] && n_left <= kept_ / 4) wanted_.push_back(u);
    }
    kept_ = kMostKept;
    scan();
  }

  // Every wanted target against the free candidates.
  void scan() {
    if (wanted_.empty()) return;
    ids_.clear();
    for (int64_t c = 0; c < p_.n_candidates; ++c) {
      if (free_[c]) ids_.push_back(c);
    }
    const int64_t n_ids = static_cast<int64_t>(ids_.size()), n_wanted = static_cast<int64_t>(wanted_.size());
    const int64_t n_tiles = (n_ids + kCandidateTile - 1) / kCandidateTile;
    const double work = double(n_ids) * (targets_.n_columns() + 8 * n_wanted);
    const int n_threads = std::max(1, static_cast<int>(std::min<double>(workers_.size(), work / kWorkOfThread)));
    make_groups();
    for (int w = 0; w < n_threads; ++w) workers_[w].best.assign(n_wanted, Best());
    const int64_t run = std::min<int64_t>(16, n_tiles / (8 * n_threads) + 1) * kCandidateTile;
    parallel_items((n_ids + run - 1) / run, n_threads, [&](int64_t i, int w) {
      const int64_t end = std::min(n_ids, (i + 1) * run);
      for (int64_t at = i * run; at < end; at += kCandidateTile) scan_tile(at, end, &workers_[w]);
    });
    for (int64_t i = 0; i < n_wanted; ++i) {
      Best& best = best_[wanted_[i]];
      best = workers_[0].best[i];
      for (int w = 1; w < n_threads; ++w) {
        for (int k = 0; k < workers_[w].best[i].n; ++k) best.add(workers_[w].best[i].match[k], kept_);
      }
      is_complete_[wanted_[i]] = best.n < kept_;
    }
  }

  // The free candidates ids_[at] and after, a tile of them or up to end.
  void scan_tile(int64_t at, int64_t end, Worker* worker) {
    const int64_t* ids = ids_.data() + at;
    const int64_t size = std::min<int64_t>(kCandidateTile, end - at);
    const T* rows[kCandidateTile];
    for (int64_t j = 0; j < kCandidateTile; ++j) rows[j] = candidates_ + ids[std::min(j, size - 1)] * p_.n_parameters;
    worker->tile.resize(targets_.n_columns() * kCandidateTile);
    float* tile = worker->tile.data();
    const bool is_whole = targets_.n_columns() == p_.n_parameters;
    // Below it, sums of squares stay finite.
    const float limit = 1e19f / std::sqrt(static_cast<float>(p_.n_parameters));
    const uint64_t wild = is_whole ? pack_(rows, p_.n_parameters, limit, tile)
                                   : gather_tile(rows, targets_.columns(), limit, tile);
    const uint64_t present = ~uint64_t{0} >> (kCandidateTile - size);
    uint64_t pass[kTargetGroup];
    float score[kTargetGroup][kCandidateTile];
    Prefetch prefetch(at + 2 * kCandidateTile <= end ? candidates_ + ids[kCandidateTile] * p_.n_parameters : nullptr,
                      kCandidateTile * p_.n_parameters * sizeof(T), groups_.size());
    int64_t i = 0;
    for (FilterGroup group : groups_) {
      prefetch.next();
      group.tile = tile;
      bool is_settled = true;
      for (int g = 0; g < group.n_targets; ++g) {
        group.threshold[g] = floor_[i + g].get();
        is_settled &= worker->best[i + g].is_full_of_zeros(kept_);
      }
      if (!is_settled) {
        filter_(group, pass, score);
        for (int g = 0; g < group.n_targets; ++g) {
          if (const uint64_t bits = (pass[g] | wild) & present) consider(i + g, bits, wild, score[g], ids, worker);
        }
      }
      i += group.n_targets;
    }
  }

  // Neighbours of equal support among the wanted targets.
  void make_groups() {
    const int64_t n_wanted = static_cast<int64_t>(wanted_.size());
    groups_.clear();
    floor_ = std::vector<Floor>(n_wanted);
    for (int64_t i = 0; i < n_wanted; ++i) {
      const int64_t t = wanted_[i];
      const Target target = targets_[t];
      const int32_t* row = targets_.rows(t);
      floor_[i].reset(target);
      const bool is_alike = i > 0 && targets_.support_id(wanted_[i - 1]) == targets_.support_id(t);
      if (!is_alike || groups_.back().n_targets == kTargetGroup) {
        groups_.push_back({nullptr, row, target.n_features, 0, {}, {}});
      }
      groups_.back().theta[groups_.back().n_targets++] = target.direction;
    }
  }

  // Stage two for the candidates in bits. Ids ascend, so the lowest index comes first among equals.
  void consider(int64_t i, uint64_t bits, uint64_t wild, const float* score, const int64_t* ids, Worker* worker) {
    const Target target = targets_[wanted_[i]];
    Best& best = worker->best[i];
    if (__builtin_popcountll(bits) > kept_) bits = best_scores(bits, wild, score, 2 * target.rounding());
    for (; bits != 0; bits &= bits - 1) {
      if (best.is_full_of_zeros(kept_)) return;
      const int64_t c = ids[__builtin_ctzll(bits)];
      Match match;
      if (evaluate(target, candidates_ + c * p_.n_parameters, c, &match)) best.add(match, kept_);
    }
    if (best.n == kept_) floor_[i].raise(best.match[kept_ - 1].cosine2 - target.rounding());
  }

  // Those of bits whose cosine^2 in float32 is near one of the kept_ largest, and those of which it is not known. At
  // the first tiles, before there is a floor, this spares most of the float64.
  uint64_t best_scores(uint64_t bits, uint64_t wild, const float* score, double slack) const {
    float largest[kMostKept];
    int n = 0;
    for (uint64_t b = bits & ~wild; b != 0; b &= b - 1) {
      const float s = score[__builtin_ctzll(b)];
      if (!(n < kept_ ? s == s : s > largest[kept_ - 1])) continue;
      int at = n < kept_ ? n++ : kept_ - 1;
      for (; at > 0 && s > largest[at - 1]; --at) largest[at] = largest[at - 1];
      largest[at] = s;
    }
    if (n < kept_) return bits;
    const double floor = largest[kept_ - 1] - slack;
    if (!(floor > 0)) return bits;
    uint64_t kept = bits;
    for (uint64_t b = bits & ~wild; b != 0; b &= b - 1) {
      if (score[__builtin_ctzll(b)] < floor) kept &= ~(b & -b);
    }
    return kept;
  }

  const BestMatchParams<T>& p_;
  MatchFilter filter_;
  PackTile<T> pack_;
  std::vector<Worker> workers_;
  Targets targets_;
  const T* candidates_ = nullptr;
  std::vector<uint8_t> free_, is_complete_;
  std::vector<int64_t> wanted_, ids_;
  std::vector<Best> best_;
  std::vector<Floor> floor_;
  std::vector<FilterGroup> groups_;
  int kept_ = 1;
};

}  // namespace

template <typename T>
bool best_match(const BestMatchParams<T>& p) {
  const double work = double(p.n_problems) * p.n_candidates * (p.n_parameters + 8 * p.n_targets);
  const int n_threads = std::max(1, static_cast<int>(std::min<double>(p.n_threads, work / kWorkOfThread)));
  const bool by_problem = p.n_problems >= n_threads;
  const MatchFunctions functions = match_functions();
  std::vector<Solver<T>> solvers;
  for (int t = 0; t < (by_problem ? n_threads : 1); ++t) solvers.emplace_back(p, functions, by_problem ? 1 : n_threads);
  std::atomic<bool> is_finite{true};
  parallel_items(p.n_problems, static_cast<int>(solvers.size()), [&](int64_t n, int worker) {
    if (is_finite && !solvers[worker].solve(n)) is_finite = false;
  });
  return is_finite;
}

template bool best_match<float>(const BestMatchParams<float>&);
template bool best_match<double>(const BestMatchParams<double>&);

}  // namespace pns
