// match_dense.cuh's first stage for float candidates on Hopper. A block of two warpgroups takes tile after tile: a bulk
// copy brings the next one's rows while this one is worked on, each warp rounds 16 candidates and writes them to shared
// memory as the products want them, each warpgroup multiplies them with its 64 targets, which stay in registers. The
// products of 32 candidates run while the results of those before are looked at.
//
// 128 registers and 68 KB of shared memory: two blocks an SM. For 128 targets of 64 parameters and 2^20 candidates on an
// H200 97.6 us, where reading them takes 64: memory was busy 54% of the time, shared memory's data pipe 45% (of a tile 512
// cycles for the products, 768 for the rows in, out and in again as halves, 128 for the scores), instructions 43%. With
// the targets in shared memory too it was 112 us and that pipe busy 66%.
#pragma once

#include "kernels/best_match/match_dense.cuh"
#include "kernels/best_match/warpgroup.cuh"

namespace pns {
namespace {

constexpr int kGroupThreads = 256, kGroupWarps = kGroupThreads / kWarpSize, kWarpsOfGroup = 4;
constexpr int kOwnColumns = kDenseTile / kGroupWarps / 8;  // candidates a warp rounds, in eights
constexpr int kBesideOperands = 1024;                      // bytes: the targets' scales, the barrier

inline size_t warpgroup_bytes(int64_t n_parameters, int dense_steps) {
  return static_cast<size_t>(2 * dense_steps * 2 * kNextColumns) + kBesideOperands +
         kDenseTile * n_parameters * sizeof(float);
}

static_assert(kGroupThreads == 2 * kDenseTargets && kGroupWarps == 2 * kWarpsOfGroup && kOwnColumns == 2);

#ifdef PNS_WARPGROUPS

struct QuarterSums {  // of 64 targets and 32 candidates, a warpgroup
  float dot[4][4], norm[4][4];
};

// Where a tile's candidates lie in half precision, and their squares.
struct TileOperands {
  SharedOperand m, square;
};

template <int kSteps>
__device__ __forceinline__ void start_products(const DenseTargets<kSteps>& targets, const TileOperands& tile, int quarter,
                                               QuarterSums* sums) {
  SharedOperand m = tile.m + quarter * 4 * kNextRows, square = tile.square + quarter * 4 * kNextRows;
  keep_registers(sums->dot);
  keep_registers(sums->norm);
  multiply_begin();
  multiply_async<false>(sums->dot, targets.direction[0], m);
  multiply_async<false>(sums->norm, targets.support[0], square);
#pragma unroll
  for (int s = 1; s < kSteps; ++s) {
    multiply_async<true>(sums->dot, targets.direction[s], m += 2 * kNextColumns);
    multiply_async<true>(sums->norm, targets.support[s], square += 2 * kNextColumns);
  }
  multiply_commit();
}

// Waits for these products, of which kRunning later groups may still run, and adds what they found to the best.
template <int kRunning>
__device__ __forceinline__ void finish_products(QuarterSums* sums, PairBest* best) {
  multiply_wait<kRunning>();
  keep_registers(sums->dot);
  keep_registers(sums->norm);
  PairBest of_quarter{{-kFarFloat, -kFarFloat}};
  int least = kInfinity;
  add_best(sums->dot, sums->norm, &of_quarter, &least);
  if (is_odd(max_or_nan(of_quarter.cosine[0], of_quarter.cosine[1]), least)) {
    of_quarter = {{-kFarFloat, -kFarFloat}};
    add_best_carefully(sums->dot, sums->norm, &of_quarter);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) best->cosine[i] = fmaxf(best->cosine[i], of_quarter.cosine[i]);
}

// The targets of this warp's group, in the order of their parameters: of w.dense's, which has another one (see
// write_dense), word `row / 8 + 2 (pair mod 2)` of lane 4 (row mod 8) + pair / 2 is pair `pair` of a row's 16 parameters.
template <int kSteps>
__device__ DenseTargets<kSteps> load_group(const uint4* group) {
  const unsigned* words = reinterpret_cast<const unsigned*>(group);
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  auto operand = [&](int which) {
    auto word = [&](int row, int pair) {
      return words[(which * kWarpSize + 4 * g + pair / 2) * 4 + row / 8 + 2 * (pair % 2)];
    };
    return uint4{word(0, t), word(8, t), word(0, t + 4), word(8, t + 4)};
  };
  DenseTargets<kSteps> targets;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) targets.direction[s] = operand(2 * s), targets.support[s] = operand(2 * s + 1);
  return targets;
}

// Which 16 parameters of its row a lane takes as its s-th: odd rows another than even ones, since two rows of 64 parameters
// lie in the same banks.
__device__ inline int place_of(int s) { return s ^ (threadIdx.x / 4 & 1); }

// The warp's 16 rows of a tile in shared memory, to registers.
template <int kSteps>
__device__ __forceinline__ void read_rows(const DenseRows<float>& rows, const float* tile, int64_t first,
                                          float (&v)[kOwnColumns][4 * kSteps]) {
  const int lane = threadIdx.x % kWarpSize, own = threadIdx.x / kWarpSize * 8 * kOwnColumns + lane / 4;
  if (rows.available == nullptr && rows.n_columns == 16 * kSteps && first + kDenseTile <= rows.n_rows) {  // most are
#pragma unroll
    for (int j = 0; j < kOwnColumns; ++j) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const Four four = load_aligned(tile + (own + 8 * j) * (16 * kSteps) + 16 * place_of(s) + 4 * (lane % 4));
#pragma unroll
        for (int i = 0; i < 4; ++i) v[j][4 * s + i] = four.x[i];
      }
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kOwnColumns; ++j) {
    const int64_t row = first + own + 8 * j;
    const bool is_there = row < rows.n_rows && (rows.available == nullptr || rows.available[row] != 0);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int column = 16 * place_of(s) + 4 * (lane % 4);
      Four four{};
      if (is_there && column < rows.n_columns) four = load_aligned(tile + (own + 8 * j) * rows.n_columns + column);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j][4 * s + i] = four.x[i];
    }
  }
}

template <int kSteps>
__device__ __forceinline__ void write_operands(const DenseHalves<kOwnColumns, kSteps>& halves, unsigned char* m,
                                               unsigned char* square) {
  const int warp = threadIdx.x / kWarpSize, g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
  const int first = t / 2 * kNextColumns + warp * kOwnColumns * kNextRows + g * 16 + t % 2 * 8;
#pragma unroll
  for (int j = 0; j < kOwnColumns; ++j) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int at = first + 2 * place_of(s) * kNextColumns + j * kNextRows;
      *reinterpret_cast<uint2*>(m + at) = {halves.m[j][s][0], halves.m[j][s][1]};
      *reinterpret_cast<uint2*>(square + at) = {halves.square[j][s][0], halves.square[j][s][1]};
    }
  }
}

// The largest cosine of a tile's candidates with each of the warp's targets; lanes with t < 2 get that of target
// g + 8 t of the group.
template <int kSteps>
__device__ __forceinline__ float best_of_tile(const DenseTargets<kSteps>& targets, const TileOperands& tile) {
  PairBest best{{-kFarFloat, -kFarFloat}};
  QuarterSums low, high;
  start_products(targets, tile, 0, &low);
  start_products(targets, tile, 1, &high);
  finish_products<1>(&low, &best);
  start_products(targets, tile, 2, &low);
  finish_products<1>(&high, &best);
  start_products(targets, tile, 3, &high);
  finish_products<1>(&low, &best);
  finish_products<0>(&high, &best);
  return best_of_lanes(best);
}

#endif

// A block takes up to kDenseTargets targets of a problem through every n_parts-th of its tiles.
template <int kSteps>
__global__ void __launch_bounds__(kGroupThreads, 2)
    best_match_warpgroup_kernel(Problem<float> p, Plan plan, Workspace w, int n_parts) {
#ifdef PNS_WARPGROUPS
  PNS_DYNAMIC_SHARED(memory);
  constexpr int kOperand = 2 * kSteps * kNextColumns;
  unsigned char *m = memory, *square = m + kOperand;
  float* const scales = reinterpret_cast<float*>(square + kOperand);
  uint64_t* const barrier = reinterpret_cast<uint64_t*>(scales + kDenseTargets);
  float* const rows_of_tile = reinterpret_cast<float*>(square + kOperand + kBesideOperands);
  const int part = static_cast<int>(blockIdx.x % n_parts), warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t chunk = blockIdx.x / n_parts % plan.n_chunks(), problem = blockIdx.x / n_parts / plan.n_chunks();
  const int64_t group = chunk * kBlockGroups + warp;
  const bool has_targets = group < plan.n_groups, takes_part = group - warp % kWarpsOfGroup < plan.n_groups;
  DenseTargets<kSteps> targets{};
  if (has_targets) {
    targets = load_group<kSteps>(w.dense + (problem * plan.n_groups + group) * (2 * kSteps * kWarpSize));
  }
  const int64_t first_target = problem * p.n_targets + chunk * kDenseTargets;
  if (threadIdx.x < kDenseTargets) {
    const bool is_target = chunk * kDenseTargets + threadIdx.x < p.n_targets;
    scales[threadIdx.x] = is_target ? w.info[first_target + threadIdx.x].dense_scale : 0;
  }
  const int64_t first_candidate = problem * p.n_candidates;
  const DenseRows<float> rows{p.candidates + first_candidate * p.n_parameters,
                              p.available == nullptr ? nullptr : p.available + first_candidate, p.n_candidates,
                              static_cast<int>(p.n_parameters)};
  auto load = [&](int tile) {
    const int64_t first = int64_t{tile} * kDenseTile, n_rows = min_of(rows.n_rows - first, kDenseTile);
    const unsigned bytes = static_cast<unsigned>(n_rows * rows.n_columns * sizeof(float));
    load_bulk(rows_of_tile, rows.row + first * rows.n_columns, bytes, barrier);
  };
  const int n_tiles = static_cast<int>(plan.n_tiles);
  if (threadIdx.x == 0) {
    init_bulk_barrier(barrier);
    load(part);
  }
  __syncthreads();

  const TileOperands operands{SharedOperand(m), SharedOperand(square)};
  const int own = warp * kDenseGroup + lane % 4 * 8 + lane / 4;  // target, of lanes with t < 2
  unsigned phase = 0;
#pragma unroll 1
  for (int tile = part; tile < n_tiles; tile += n_parts, phase ^= 1) {
    DenseHalves<kOwnColumns, kSteps> halves;
    {
      float v[kOwnColumns][4 * kSteps];
      wait_bulk(barrier, phase);
      read_rows<kSteps>(rows, rows_of_tile, int64_t{tile} * kDenseTile, v);
      round_rows<kOwnColumns, kSteps>(v, &halves);
    }
    __syncthreads();  // the rows have been read, and the operands by the products of the tile before
    if (threadIdx.x == 0 && tile + n_parts < n_tiles) load(tile + n_parts);
    write_operands<kSteps>(halves, m, square);
    fence_for_products();
    __syncthreads();
    if (!takes_part) continue;
    const float of_tile = best_of_tile<kSteps>(targets, operands);
    const float scale = lane % 4 < 2 ? scales[own] : 0;
    if (scale > 0) w.tile_score[(first_target + own) * n_tiles + tile] = of_tile * fabsf(of_tile) * scale;
  }
#endif
}

}  // namespace
}  // namespace pns
