// What best_match's CUDA kernels share: sizes, the plan (how candidates are cut into tiles), the workspace.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/best_match/best_match_cuda.h"
#include "kernels/best_match/exact_match.cuh"

namespace pns {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kWarpSize = 32;
constexpr int kThreads = 256;      // of every kernel but the score kernel with large tiles
constexpr int kMostThreads = 512;  // of that
constexpr int kMostKept = 64;
constexpr int kNeighbours = 4;  // targets of one support that share the loads of a candidate
constexpr int kPerLane = 4;     // candidates a lane: one load of 16 bytes
constexpr int kNobody = 0x7FFFFFFF;

// Derived; other values have not been tried. Four blocks of a small tile fit an SM's 227 KB, two of a large one; 96 KB is what every
// architecture since sm_80 has for a block.
constexpr int64_t kSmallTileBytes = 54 << 10, kLargeTileBytes = 96 << 10;
constexpr int64_t kLeastTiles = 264;  // two a SM
constexpr int kPanelTile = 8, kPanelRows = 2304;

// The tensor cores' first stage (match_dense.cuh) and the cosine^2 that it is off by at most.
constexpr int kDenseGroup = 16, kBlockGroups = 8, kDenseTargets = kBlockGroups * kDenseGroup;  // of a product, of a block
constexpr int kDenseTile = 128, kMostDenseColumns = 64, kLeastDense = 5;
constexpr double kDenseRounding = 2e-3;
constexpr int64_t kLeastDenseTiles = 1024, kDenseBlocks = 396, kGroupBlocks = 264;  // three and two a SM
constexpr int64_t kLeftOverBlocks = 396;  // of match_score.cuh, for the targets that are left over

struct Plan {
  int log2_tile;     // candidates a tile: 4 to 128
  int n_threads;     // of the score kernel
  int panel;         // parameters held at a time, a multiple of 4 if there are several panels
  int n_panels;
  int kept;          // candidates kept for a target
  bool has_scores;   // otherwise so few candidates that all are evaluated
  bool has_quads;    // lane groups take kNeighbours targets in turn
  int dense_steps;   // products over 16 parameters, 2 or 4; 0: no dense first stage
  bool by_warpgroup;  // that stage by match_warpgroup.cuh; set at the launch
  int64_t n_groups;  // of kDenseGroup targets, a problem
  int64_t n_tiles;   // a problem
  int64_t n_slots;   // pairs of features a target, at most

  __host__ __device__ int tile() const { return 1 << log2_tile; }
  __host__ __device__ int lanes() const { return 1 << (log2_tile - 2); }  // that share a target
  __host__ __device__ int64_t n_chunks() const { return (n_groups + kBlockGroups - 1) / kBlockGroups; }
};

// Where a tile's row starts, in floats. Every four rows a gap: a warp stores 4 x 8 rows x columns (8 x 4 of the smallest
// tile) of a row-major block at once, and the gap sends these 32 to 32 banks.
__host__ __device__ inline int row_start(int log2_tile, int row) {
  return (row << log2_tile) + (row / 4) * (log2_tile == 2 ? 4 : 8);
}

// The row after the last is zero: what pads an odd support.
inline int64_t tile_bytes(int log2_tile, int64_t panel) {
  return (((panel << log2_tile) + panel / 4 * (log2_tile == 2 ? 4 : 8)) + (int64_t{1} << log2_tile)) * 4;
}

struct TargetInfo {
  double length2;
  double up, up_again;  // theta * up * up_again = theta * 2^-exponent, rounded once at most
  int n_features;       // 0 as well where the target is not finite
  int exponent;
  int is_like_previous;  // of equal support
  float dense_scale;     // 1 / |direction in half precision|^2; 0: its scores are match_score.cuh's
};

template <typename T>
struct Problem {
  int64_t n_problems, n_targets, n_candidates, n_parameters;
  const void* target;  // [N, T, P]
  bool target_is_f64;
  const uint8_t* support;    // [N, T, P]
  const T* candidates;       // [N, C, P]
  const uint8_t* available;  // [N, C] or null
  int64_t* index;            // [N, T]
  void *scale, *distance;    // [N, T]
  bool results_are_f64;
};

struct Workspace {
  TargetInfo* info;    // [N * T]
  uint4* pairs;        // [ceil(N * T / 32), n_slots, 32]: two features each, (offset in the tile, direction) twice
  int32_t* first_slot;  // [N * T, n_panels + 1]
  uint4* dense;        // [N, n_groups, dense_steps, direction and support, 32]: as match_dense.cuh multiplies them
  int32_t* feature;    // [N * T, P]
  int32_t* owner;      // [N, C]: the target that holds it; kNobody; -1: not available
  float* tile_score;   // [N * T, n_tiles]: the largest cosine^2; inf: not known; -inf: no candidate
  DeviceMatch* match;  // [N * T, kept], best first
  int32_t* n_matches;  // [N * T]
  int32_t* next;       // [N * T]: the match that the target holds or asks for next
};

__host__ __device__ inline int64_t slot_at(const Plan& plan, int64_t target, int64_t slot) {
  return (target / kWarpSize * plan.n_slots + slot) * kWarpSize + target % kWarpSize;
}

__host__ __device__ inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename A>
A ceil_div(A a, A b) {
  return (a + b - 1) / b;
}

// As few as leave a tenth of a target to be searched again: by chance, target t finds its k best taken with probability
// (t / C)^k.
inline int n_kept(int64_t n_targets, int64_t n_candidates) {
  const double t = static_cast<double>(n_targets), ratio = t / std::max<double>(1, static_cast<double>(n_candidates));
  int kept = 1;
  while (kept < kMostKept && t * std::pow(ratio, kept) / (kept + 1) > 0.1) ++kept;
  return kept;
}

inline void add_dense(int64_t n_targets, int64_t n_parameters, Plan* plan) {
  plan->dense_steps = n_parameters <= 32 ? 2 : 4;
  plan->n_groups = ceil_div<int64_t>(n_targets, kDenseGroup);
}

// A function of the sizes alone: the workspace is asked for without a device.
inline Plan make_plan(int64_t n_problems, int64_t n_targets, int64_t n_candidates, int64_t n_parameters) {
  Plan plan{};
  plan.kept = n_kept(n_targets, n_candidates);
  plan.has_scores = n_candidates > kThreads;
  int log2_tile = 7;
  while (log2_tile > 3 && tile_bytes(log2_tile, n_parameters) > kSmallTileBytes) --log2_tile;
  while (log2_tile > 2 && tile_bytes(log2_tile, n_parameters) > kLargeTileBytes) --log2_tile;
  plan.panel = static_cast<int>(n_parameters);
  plan.n_panels = 1;
  if (tile_bytes(log2_tile, n_parameters) > kLargeTileBytes) {
    log2_tile = 3;
    plan.panel = kPanelRows;
    plan.n_panels = static_cast<int>(ceil_div<int64_t>(n_parameters, kPanelRows));
  }
  while (log2_tile > 2 && n_problems * ceil_div<int64_t>(n_candidates, int64_t{1} << log2_tile) < kLeastTiles) {
    --log2_tile;
  }
  plan.log2_tile = log2_tile;
  plan.n_threads = tile_bytes(log2_tile, plan.panel) > kSmallTileBytes ? kMostThreads : kThreads;
  plan.has_quads = log2_tile >= 5;
  plan.n_tiles = ceil_div<int64_t>(n_candidates, int64_t{1} << log2_tile);
  plan.n_slots = n_parameters / 2 + plan.n_panels;
  if (n_targets >= kDenseGroup / 2 && n_parameters % 4 == 0 && n_parameters > 4 && n_parameters <= kMostDenseColumns &&
      plan.tile() == kDenseTile && n_problems * plan.n_tiles >= kLeastDenseTiles) {
    add_dense(n_targets, n_parameters, &plan);
  }
  return plan;
}

// Lays the workspace out from `base` on; returns its size in bytes.
template <typename T>
size_t lay_out(const Problem<T>& p, const Plan& plan, void* base, Workspace* w) {
  size_t at = 0;
  auto take = [&](auto** pointer, int64_t n) {
    *pointer = reinterpret_cast<std::remove_reference_t<decltype(*pointer)>>(static_cast<unsigned char*>(base) + at);
    at += (static_cast<size_t>(n) * sizeof(**pointer) + 255) / 256 * 256;
  };
  const int64_t targets = p.n_problems * p.n_targets;
  take(&w->info, targets);
  take(&w->pairs, ceil_div<int64_t>(targets, kWarpSize) * kWarpSize * plan.n_slots);
  take(&w->first_slot, targets * (plan.n_panels + 1));
  take(&w->dense, p.n_problems * plan.n_groups * plan.dense_steps * 2 * kWarpSize);
  take(&w->feature, targets * p.n_parameters);
  take(&w->owner, p.n_problems * p.n_candidates);
  take(&w->tile_score, plan.has_scores ? targets * plan.n_tiles : 0);
  take(&w->match, targets * plan.kept);
  take(&w->n_matches, targets);
  take(&w->next, targets);
  return at;
}

struct BlockScan {
  int before, total;
};

// Of a flag a thread, over the whole block.
__device__ inline BlockScan block_scan(bool is_set) {
  __shared__ int warp_counts[kMostThreads / kWarpSize];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const unsigned bits = __ballot_sync(kAllLanes, is_set);
  if (lane == 0) warp_counts[warp] = __popc(bits);
  __syncthreads();
  BlockScan scan{__popc(bits & ((1u << lane) - 1)), 0};
  for (int v = 0; v < static_cast<int>(blockDim.x) / kWarpSize; ++v) {
    if (v < warp) scan.before += warp_counts[v];
    scan.total += warp_counts[v];
  }
  __syncthreads();  // warp_counts may be written again
  return scan;
}

__device__ inline double target_value(const void* target, bool is_f64, int64_t at) {
  return is_f64 ? static_cast<const double*>(target)[at] : static_cast<double>(static_cast<const float*>(target)[at]);
}

}  // namespace
}  // namespace pns
