// Stage two of best_match on CUDA: one block, one target, the tiles whose score says that they may hold its best
// candidates. Exact, so what is left out and in which order the rest is looked at changes nothing.
#pragma once

#include "kernels/best_match/match_score.cuh"

namespace pns {
namespace {

constexpr int kTilesAtOnce = 64;  // of a target that is searched again
constexpr int kListedTiles = 2 * kThreads, kCachedFeatures = 256;

struct BestList {  // in shared memory, best first
  DeviceMatch match[kMostKept];
  int n;
};

// Tiles with low <= score < high, and those of unknown score where high is inf; of their candidates those whose cosine^2
// is not below least_cosine2.
struct Window {
  float low, high;
  double least_cosine2;
};

// The `wanted`-th largest of what 256 threads found largest among the scores below `high`; -inf if there are not so
// many. That many tiles at least reach it.
__device__ float high_score(const float* score, int64_t n_tiles, float high, int wanted) {
  alignas(16) __shared__ float largest[kThreads];
  __shared__ float found;
  const int self = threadIdx.x;
  float mine = -kFarFloat;
#pragma unroll 32
  for (int64_t i = self; i < n_tiles; i += kThreads) {
    const float s = score[i];
    if (s < high) mine = fmaxf(mine, s);
  }
  largest[self] = mine;
  __syncthreads();
  int rank = 0;
#pragma unroll 4
  for (int i = 0; i < kThreads; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(largest + i);
    rank += v.x > mine || (v.x == mine && i < self);
    rank += v.y > mine || (v.y == mine && i + 1 < self);
    rank += v.z > mine || (v.z == mine && i + 2 < self);
    rank += v.w > mine || (v.w == mine && i + 3 < self);
  }
  if (rank == wanted - 1) found = mine;
  __syncthreads();
  const float result = found;
  __syncthreads();
  return result;
}

// The least score that a candidate may have whose cosine^2 is `cosine2`, or is known to be positive only: around zero
// the square of the rounding error is what a cosine^2 is off by.
__device__ inline float least_score(double cosine2, double slack, double rounding) {
  const double least = cosine2 - slack > 0 ? cosine2 - slack : -rounding * rounding;
  return nextafterf(static_cast<float>(least), -1.0f);
}

__device__ inline double rounding_of_scores(const TargetInfo& info) {
  return info.dense_scale > 0 ? kDenseRounding : rounding_of(info.n_features);
}

template <typename T>
struct Searched {  // a target
  int64_t target, problem;
  TargetInfo info;
  int holder_limit;  // candidates are free where their owner is above it
};

struct Features {  // the first of a target, in shared memory
  double theta[kCachedFeatures];
  int32_t at[kCachedFeatures];
};

// The owner is read past the L1, where the atomics of a resolve kernel do not write.
template <typename T>
__device__ DeviceMatch evaluate(const Problem<T>& p, const Workspace& w, const Searched<T>& s,
                                const Features& features, int64_t candidate, double least_cosine2) {
  const int64_t c = s.problem * p.n_candidates + candidate, theta_at = s.target * p.n_parameters;
  if (candidate >= p.n_candidates) return {kFar, 1, -1, -1};
  const int32_t owner = *static_cast<const volatile int32_t*>(w.owner + c);
  const T* m = p.candidates + c * p.n_parameters;
  if (s.info.n_features <= kCachedFeatures) {
    DeviceMatch match = evaluate_exactly<8>(  // whoever holds it: its rows are on their way with its owner
        s.info.n_features, [&](int k) { return features.theta[k]; },
        [&](int k) { return static_cast<double>(m[features.at[k]]); }, s.info.length2, least_cosine2, candidate);
    if (owner <= s.holder_limit) match.index = -1;
    return match;
  }
  if (owner <= s.holder_limit) return {kFar, 1, -1, -1};
  const int32_t* feature = w.feature + theta_at;
  auto theta = [&](int k) {
    return target_value(p.target, p.target_is_f64, theta_at + feature[k]) * s.info.up * s.info.up_again;
  };
  return evaluate_exactly<1>(
      s.info.n_features, theta, [&](int k) { return static_cast<double>(m[feature[k]]); }, s.info.length2,
      least_cosine2, candidate);
}

// Adds a candidate a thread to the list; all threads call it.
__device__ void add_matches(const DeviceMatch& match, int kept, BestList* best) {
  __shared__ DeviceMatch fresh[kThreads];
  const int self = threadIdx.x, n = best->n;
  const bool is_in = match.index >= 0 && (n < kept || is_better(match, best->match[n - 1]));
  const BlockScan scan = block_scan(is_in);
  if (scan.total == 0) return;
  if (is_in) fresh[scan.before] = match;
  __syncthreads();
  int rank = kept, old_rank = kept;
  DeviceMatch old{};
  if (is_in) {
    rank = 0;
    for (int i = 0; i < scan.total; ++i) rank += is_better(fresh[i], match);
    for (int i = 0; i < n; ++i) rank += is_better(best->match[i], match);
  }
  if (self < n) {
    old = best->match[self];
    old_rank = self;
    for (int i = 0; i < scan.total; ++i) old_rank += is_better(fresh[i], old);
  }
  __syncthreads();
  if (rank < kept) best->match[rank] = match;
  if (old_rank < kept) best->match[old_rank] = old;
  if (self == 0) best->n = n + scan.total < kept ? n + scan.total : kept;
  __syncthreads();
}

template <typename T>
__device__ void read_features(const Problem<T>& p, const Workspace& w, const Searched<T>& s, Features* features) {
  const int64_t theta_at = s.target * p.n_parameters;
  for (int k = threadIdx.x; k < s.info.n_features && k < kCachedFeatures; k += kThreads) {
    const int32_t i = w.feature[theta_at + k];
    features->at[k] = i;
    features->theta[k] = target_value(p.target, p.target_is_f64, theta_at + i) * s.info.up * s.info.up_again;
  }
}

// Of candidates in ascending order, those of the tiles listed.
template <typename T>
__device__ void search_listed(const Problem<T>& p, const Plan& plan, const Workspace& w, const Searched<T>& s,
                              const Features& features, const int* tiles, int n_listed, double least_cosine2, int kept,
                              BestList* best) {
  const int n_items = n_listed << plan.log2_tile;
  auto candidate_of = [&](int i) {
    return (int64_t{tiles[i >> plan.log2_tile]} << plan.log2_tile) + (i & (plan.tile() - 1));
  };
  for (int begin = 0; begin < n_items; begin += kThreads) {
    const int item = begin + threadIdx.x;
    // Exact matches of lower index: no later one is better, and with one parameter all fit exactly.
    const bool is_settled = best->n == kept && best->match[kept - 1].distance == 0 &&
                            best->match[kept - 1].index < candidate_of(begin);
    if (is_settled) break;  // the same in all threads
    DeviceMatch match{kFar, 1, -1, -1};
    if (item < n_items) match = evaluate(p, w, s, features, candidate_of(item), least_cosine2);
    add_matches(match, kept, best);
  }
  __syncthreads();  // tiles may be written again
}

// The `kept` best of the tiles in the window, and of what the list holds already. A thread looks at kChunks scores, then
// the block at those chunks of tiles where one is in the window; what they list is evaluated together.
template <typename T>
__device__ void search_tiles(const Problem<T>& p, const Plan& plan, const Workspace& w, const Searched<T>& s,
                             const Window& window, int kept, BestList* best) {
  __shared__ int tiles[kListedTiles];
  __shared__ unsigned has_any;  // bit j: chunk j
  __shared__ Features features;
  constexpr int kChunks = 32;
  const float* score = w.tile_score + s.target * plan.n_tiles;
  read_features(p, w, s, &features);
  int n_listed = 0;
  for (int64_t first = 0; first < plan.n_tiles; first += kChunks * kThreads) {
    if (threadIdx.x == 0) has_any = 0;
    __syncthreads();
    unsigned mine = 0;
#pragma unroll 32
    for (int j = 0; j < kChunks; ++j) {
      const int64_t tile = first + j * kThreads + threadIdx.x;
      bool is_in = tile < plan.n_tiles;
      if (is_in && plan.has_scores) {
        is_in = score[tile] >= window.low && (score[tile] < window.high || window.high == kFarFloat);
      }
      mine |= static_cast<unsigned>(is_in) << j;
    }
    if (mine != 0) atomicOr(&has_any, mine);
    __syncthreads();
    for (unsigned left = has_any; left != 0; left &= left - 1) {
      const int j = __ffs(static_cast<int>(left)) - 1;
      const bool is_in = (mine >> j & 1) != 0;
      const BlockScan scan = block_scan(is_in);
      if (is_in) tiles[n_listed + scan.before] = static_cast<int>(first + j * kThreads + threadIdx.x);
      n_listed += scan.total;
      if (n_listed + kThreads > kListedTiles) {
        __syncthreads();
        search_listed(p, plan, w, s, features, tiles, n_listed, window.least_cosine2, kept, best);
        n_listed = 0;
      }
    }
    __syncthreads();
  }
  search_listed(p, plan, w, s, features, tiles, n_listed, window.least_cosine2, kept, best);
}

// A target whose kept candidates are all taken by targets before it: the best of the rest, tiles of high score first,
// until what is left cannot be better.
template <typename T>
__device__ void search_again(const Problem<T>& p, const Plan& plan, const Workspace& w, const Searched<T>& s,
                             BestList* best) {
  const double rounding = rounding_of_scores(s.info);
  Window window{0, kFarFloat, 0};  // a tile is looked at once, so its lesser candidates count too
  for (;;) {
    float reached = -kFarFloat;
    if (plan.has_scores) {
      reached = high_score(w.tile_score + s.target * plan.n_tiles, plan.n_tiles, window.high, kTilesAtOnce);
    }
    window.low = least_score(reached, 0, rounding);
    search_tiles(p, plan, w, s, window, 1, best);
    if (!(reached > 0) || (best->n == 1 && best->match[0].cosine2 - rounding >= window.low)) return;
    window.high = window.low;
  }
}

}  // namespace
}  // namespace pns
