// best_match's float32 stage on CUDA: of every tile of candidates the largest cosine^2 with every target. A block owns a
// tile, feature-major in shared memory; a lane owns four candidates, a group of tile / 4 lanes a target at a time.
// Candidates are read once (again for every 256 targets where a row does not fit in shared memory).
//
// Shared memory is the wall: 16 bytes a lane for 8 FMAs, 128 bytes a cycle and SM. Targets of equal support share these
// loads. The pairs of offset and direction are read through the L1, 16 bytes for two features and all lanes of a target.
#pragma once

#include "kernels/best_match/half_products.cuh"
#include "kernels/best_match/match_plan.cuh"

namespace pns {
namespace {

constexpr float kFarFloat = std::numeric_limits<float>::infinity();
// Sums of squares between them are as exact as their terms, and so is the quotient.
constexpr float kLeastNorm = 1e-25f, kMostNorm = 1e37f;

__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(double x) {
  const float f = static_cast<float>(x);
  // what is not zero must not look like it
  return f == 0 && x != 0 ? (x > 0 ? 1e-45f : -1e-45f) : f;
}

struct Four {
  float x[4];
};

__device__ inline Four load_aligned(const float* row) {
  const float4 v = *reinterpret_cast<const float4*>(row);
  return {{v.x, v.y, v.z, v.w}};
}
__device__ inline Four load_aligned(const double* row) {
  const double2 a = reinterpret_cast<const double2*>(row)[0], b = reinterpret_cast<const double2*>(row)[1];
  return {{as_float(a.x), as_float(a.y), as_float(b.x), as_float(b.y)}};
}

template <typename T>
struct TileSource {
  const T* row;  // of the tile's first candidate, from the panel's first column on
  int64_t stride;
  int n_rows, n_columns;
  bool is_aligned;
};

// Transposes: a warp takes 8 (4) candidates by 16 (32) columns at a time, two of them in flight (three spill).
template <typename T>
__device__ void load_tile(const TileSource<T>& source, int log2_tile, float* tile) {
  constexpr int kFlight = 2;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, n_warps = blockDim.x / kWarpSize;
  const int log2_rows = log2_tile < 3 ? log2_tile : 3, log2_steps = log2_tile - log2_rows;
  const int columns = 4 * (kWarpSize >> log2_rows);
  const int row_in_step = lane & ((1 << log2_rows) - 1), column_in_step = 4 * (lane >> log2_rows);
  const int n_tasks = (source.n_columns + columns - 1) / columns << log2_steps;
  for (int first = warp; first < n_tasks; first += kFlight * n_warps) {
    Four values[kFlight];
#pragma unroll
    for (int f = 0; f < kFlight; ++f) {
      const int task = first + f * n_warps;
      const int row = ((task & ((1 << log2_steps) - 1)) << log2_rows) + row_in_step;
      const int column = (task >> log2_steps) * columns + column_in_step;
      const T* from = source.row + (row < source.n_rows ? row : source.n_rows - 1) * source.stride + column;
      if (task < n_tasks && source.is_aligned && column < source.n_columns) {
        values[f] = load_aligned(from);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          values[f].x[i] = task < n_tasks && column + i < source.n_columns ? as_float(from[i]) : 0;
        }
      }
    }
#pragma unroll
    for (int f = 0; f < kFlight; ++f) {
      const int task = first + f * n_warps;
      const int row = ((task & ((1 << log2_steps) - 1)) << log2_rows) + row_in_step;
      const int column = (task >> log2_steps) * columns + column_in_step;
      float* to = tile + row_start(log2_tile, column) + row;  // four rows without a gap between them
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (task < n_tasks && column + i < source.n_columns) to[i << log2_tile] = values[f].x[i];
      }
    }
  }
}

template <int kTargets>
struct Sums {  // of four candidates
  float dot[kTargets][kPerLane], norm[kPerLane];
};

__device__ inline float4 row_of(const unsigned char* column, unsigned offset) {
  return *reinterpret_cast<const float4*>(column + offset);
}

__device__ inline void add_row(float theta, const float4& m, float* dot) {
  dot[0] = fmaf(theta, m.x, dot[0]);
  dot[1] = fmaf(theta, m.y, dot[1]);
  dot[2] = fmaf(theta, m.z, dot[2]);
  dot[3] = fmaf(theta, m.w, dot[3]);
}

__device__ inline void add_squares(const float4& m, float* norm) {
  norm[0] = fmaf(m.x, m.x, norm[0]);
  norm[1] = fmaf(m.y, m.y, norm[1]);
  norm[2] = fmaf(m.z, m.z, norm[2]);
  norm[3] = fmaf(m.w, m.w, norm[3]);
}

// pairs + first[g]: where target g's begin; the next slot is kWarpSize on.
template <int kTargets>
__device__ __forceinline__ void add_products(const uint4* pairs, const int (&first)[kTargets], int n_slots,
                                             const unsigned char* column, Sums<kTargets>* sums) {
#pragma unroll kTargets == 1 ? 4 : 1
  for (int s = 0; s < n_slots; ++s, pairs += kWarpSize) {
    uint4 pair[kTargets];
#pragma unroll
    for (int g = 0; g < kTargets; ++g) pair[g] = __ldg(pairs + first[g]);
    const float4 a = row_of(column, pair[0].x), b = row_of(column, pair[0].z);
    add_squares(a, sums->norm);
#pragma unroll
    for (int g = 0; g < kTargets; ++g) add_row(__uint_as_float(pair[g].y), a, sums->dot[g]);
    add_squares(b, sums->norm);
#pragma unroll
    for (int g = 0; g < kTargets; ++g) add_row(__uint_as_float(pair[g].w), b, sums->dot[g]);
  }
}

// Whether the candidate is zero on the support, so that it can never win.
__device__ inline bool is_zero_on(const uint4* pairs, int n_slots, const unsigned char* column, int v) {
  for (int s = 0; s < n_slots; ++s) {
    const uint4 pair = __ldg(pairs + s * kWarpSize);
    const float* a = reinterpret_cast<const float*>(column + pair.x);
    const float* b = reinterpret_cast<const float*>(column + pair.z);
    if (a[v] != 0 || b[v] != 0) return false;
  }
  return true;
}

// Signed cosine^2; inf where float32 cannot tell.
__device__ inline float score_of(float dot, float norm) {
  if (!(norm >= kLeastNorm && norm < kMostNorm)) return kFarFloat;
  return __fdividef(dot * fabsf(dot), norm);
}

// The largest over a lane's candidates, those in `free`. n_slots: of this target in the tile, -1 where panels of it are
// gone.
__device__ inline float best_of_lane(const float* dot, const float* norm, unsigned free, const uint4* pairs,
                                     int n_slots, const unsigned char* column) {
  float best = -kFarFloat;
#pragma unroll
  for (int v = 0; v < kPerLane; ++v) {
    if ((free >> v & 1) == 0) continue;
    const float score = score_of(dot[v], norm[v]);
    if (norm[v] < kLeastNorm && n_slots >= 0 && is_zero_on(pairs, n_slots, column, v)) continue;
    best = fmaxf(best, score);
  }
  return best;
}

// The largest over the group of `lanes` lanes, for four values: each lane ends with that of the target it returns.
// Lanes trade values for halves of the group, 6 exchanges for 32 lanes where one value after the other takes 20.
struct GroupBest {
  float value;
  int target;
};
__device__ inline GroupBest best_of_group(const float (&value)[kNeighbours], int lanes) {
  const bool is_odd = threadIdx.x & 1, is_upper = threadIdx.x & 2;
  const float a = fmaxf(is_odd ? value[2] : value[0], __shfl_xor_sync(kAllLanes, is_odd ? value[0] : value[2], 1));
  const float b = fmaxf(is_odd ? value[3] : value[1], __shfl_xor_sync(kAllLanes, is_odd ? value[1] : value[3], 1));
  float best = fmaxf(is_upper ? b : a, __shfl_xor_sync(kAllLanes, is_upper ? a : b, 2));
  for (int step = 4; step < lanes; step *= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, step));
  return {best, 2 * is_odd + is_upper};
}

template <typename T>
struct Tile {
  TileSource<T> source;  // of the first panel
  int64_t first_target;  // of the problem
  int64_t at;            // of the problem's tiles
  unsigned free;         // bit v: candidate v of this lane
};

template <typename T>
__device__ Tile<T> tile_of_block(const Problem<T>& p, const Plan& plan, const Workspace& w, int64_t block) {
  const int64_t problem = block / plan.n_tiles, at = block % plan.n_tiles;
  const int64_t first = at << plan.log2_tile, left = p.n_candidates - first;
  Tile<T> tile{};
  tile.at = at;
  tile.first_target = problem * p.n_targets;
  const int n_rows = left < plan.tile() ? static_cast<int>(left) : plan.tile();
  const bool is_aligned = p.n_parameters % 4 == 0 && reinterpret_cast<uintptr_t>(p.candidates) % 16 == 0;
  tile.source = {p.candidates + (problem * p.n_candidates + first) * p.n_parameters, p.n_parameters, n_rows, plan.panel,
                 is_aligned};
  const int mine = kPerLane * (threadIdx.x % plan.lanes());
  for (int v = 0; v < kPerLane; ++v) {
    const int64_t c = problem * p.n_candidates + first + mine + v;
    if (mine + v < n_rows && w.owner[c] >= 0) tile.free |= 1u << v;
  }
  return tile;
}

template <typename T>
__device__ void load_panel(const Tile<T>& tile, const Plan& plan, int panel, float* values) {
  TileSource<T> source = tile.source;
  const int64_t column = int64_t{panel} * plan.panel;
  source.row += column;
  const int64_t left = source.stride - column;
  source.n_columns = left < plan.panel ? static_cast<int>(left) : plan.panel;
  __syncthreads();  // the panel before has been used
  load_tile(source, plan.log2_tile, values);
  if (static_cast<int>(threadIdx.x) < plan.tile()) values[row_start(plan.log2_tile, plan.panel) + threadIdx.x] = 0;
  __syncthreads();
}

// Asks for the rows of the tile that this SM will take next, as far as can be known.
template <typename T>
__device__ void fetch_later_tile(const Problem<T>& p, const Plan& plan) {
  const int64_t n_rows = p.n_problems * p.n_candidates, row = (blockIdx.x + kLeastTiles) << plan.log2_tile;
  const int64_t n = min_of(n_rows - row, plan.tile()) * p.n_parameters;
  constexpr int64_t kLine = 128 / sizeof(T);
  const T* from = p.candidates + row * p.n_parameters;
  for (int64_t i = threadIdx.x * kLine; i < n; i += blockDim.x * kLine) fetch_ahead(from + i);
}

// Of a small tile: a target a group of lanes, panel after panel.
template <typename T>
__device__ void score_singles(const Problem<T>& p, const Plan& plan, const Workspace& w, const Tile<T>& tile,
                              float* values) {
  const int lanes = plan.lanes(), lane = threadIdx.x % lanes;
  const unsigned char* column = reinterpret_cast<const unsigned char*>(values + kPerLane * lane);
  const int64_t together = blockDim.x / lanes;
  if (plan.n_panels == 1) fetch_later_tile(p, plan);
  for (int64_t first = 0; first < p.n_targets; first += together) {
    const int64_t t = first + threadIdx.x / lanes;
    const bool is_there = t < p.n_targets;
    const int64_t target = tile.first_target + (is_there ? t : 0);
    const int32_t* first_slot = w.first_slot + target * (plan.n_panels + 1);
    Sums<1> sums{};
    const uint4* pairs = nullptr;
    int n_slots = 0;
    for (int q = 0; q < plan.n_panels; ++q) {
      if (plan.n_panels > 1 || first == 0) load_panel(tile, plan, q, values);
      n_slots = is_there ? first_slot[q + 1] - first_slot[q] : 0;
      pairs = w.pairs + slot_at(plan, target, first_slot[q]);
      add_products<1>(pairs, {0}, n_slots, column, &sums);
    }
    float best = best_of_lane(sums.dot[0], sums.norm, is_there ? tile.free : 0, pairs,
                              plan.n_panels > 1 ? -1 : n_slots, column);
    for (int step = 1; step < lanes; step *= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, step));
    if (is_there && lane == 0) w.tile_score[target * plan.n_tiles + tile.at] = best;
  }
}

// Whether one of the n targets has no scores from match_dense.cuh. The same in all lanes of a group, which then is a warp.
__device__ inline bool has_left_over(const Workspace& w, int64_t target, int64_t n) {
  for (int64_t g = 0; g < n; ++g) {
    if (w.info[target + g].dense_scale == 0) return true;
  }
  return false;
}

// Of a large tile, all in one panel: four targets in turn a group of lanes, together where they have one support.
template <typename T>
__device__ void score_quads(const Problem<T>& p, const Plan& plan, const Workspace& w, const Tile<T>& tile,
                            float* values) {
  load_panel(tile, plan, 0, values);
  const int lanes = plan.lanes(), lane = threadIdx.x % lanes;
  const unsigned char* column = reinterpret_cast<const unsigned char*>(values + kPerLane * lane);
  const int64_t together = int64_t{kNeighbours} * (blockDim.x / lanes);
  for (int64_t first = 0; first < p.n_targets; first += together) {
    const int64_t t = first + int64_t{kNeighbours} * (threadIdx.x / lanes);
    const int64_t target = tile.first_target + t;
    if (plan.dense_steps > 0 && !has_left_over(w, target, min_of(p.n_targets - t, kNeighbours))) continue;
    const uint4* pairs = w.pairs + slot_at(plan, t < p.n_targets ? target : 0, 0);
    auto first_pair = [&](int g) {
      return t + g < p.n_targets ? static_cast<int>(slot_at(plan, target + g, 0) - slot_at(plan, target, 0)) : 0;
    };
    auto slots_of = [&](int g) { return t + g < p.n_targets ? __ldg(w.first_slot + 2 * (target + g) + 1) : 0; };
    const int n_slots = slots_of(0);
    bool is_alike = t + kNeighbours <= p.n_targets;
    for (int g = 1; g < kNeighbours && is_alike; ++g) {
      // A target that is not finite has no features; its neighbours must not take it for their like.
      is_alike = w.info[target + g].is_like_previous != 0 && slots_of(g) == n_slots;
    }
    float best[kNeighbours];
    if (is_alike) {
      Sums<kNeighbours> sums{};
      add_products<kNeighbours>(pairs, {0, first_pair(1), first_pair(2), first_pair(3)}, n_slots, column, &sums);
#pragma unroll
      for (int g = 0; g < kNeighbours; ++g) {
        best[g] = best_of_lane(sums.dot[g], sums.norm, tile.free, pairs + first_pair(g), n_slots, column);
      }
    } else {
#pragma unroll
      for (int g = 0; g < kNeighbours; ++g) {
        Sums<1> sums{};
        const uint4* own = pairs + first_pair(g);
        add_products<1>(own, {0}, slots_of(g), column, &sums);
        best[g] = best_of_lane(sums.dot[0], sums.norm, tile.free, own, slots_of(g), column);
      }
    }
    const GroupBest of_group = best_of_group(best, lanes);
    if (lane < kNeighbours && t + of_group.target < p.n_targets) {
      w.tile_score[(target + of_group.target) * plan.n_tiles + tile.at] = of_group.value;
    }
  }
}

// 80 registers for the quads' blocks of 256 threads (128 of double, which would spill), 64 for those of 512.
template <typename T, bool kHasQuads>
__global__ void __launch_bounds__(kHasQuads ? kThreads : kMostThreads, kHasQuads && sizeof(T) == 4 ? 3 : 2)
    best_match_score_kernel(Problem<T> p, Plan plan, Workspace w) {
  PNS_DYNAMIC_SHARED(memory);
  float* values = reinterpret_cast<float*>(memory);
  if constexpr (!kHasQuads) {
    score_singles(p, plan, w, tile_of_block(p, plan, w, blockIdx.x), values);
  } else if (plan.dense_steps == 0) {
    score_quads(p, plan, w, tile_of_block(p, plan, w, blockIdx.x), values);
  } else {
    for (unsigned problem = 0; problem < p.n_problems; ++problem) {
      bool is_needed = false;
      for (int64_t t = threadIdx.x; t < p.n_targets && !is_needed; t += kThreads) {
        is_needed = has_left_over(w, problem * p.n_targets + t, 1);
      }
      if (block_scan(is_needed).total == 0) continue;
      for (unsigned at = blockIdx.x; at < plan.n_tiles; at += gridDim.x) {
        score_quads(p, plan, w, tile_of_block(p, plan, w, problem * plan.n_tiles + at), values);
      }
    }
  }
}

}  // namespace
}  // namespace pns
