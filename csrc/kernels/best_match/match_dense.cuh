// best_match's first stage by tensor cores, for few parameters and many candidates: of every tile of 128 candidates the
// largest cosine^2 with every target, to within kDenseRounding. Two products over all parameters in half precision, of
// theta / |theta| with the candidates and of the supports with their squares, cost less than one walk over a sparse
// support: no load is gathered. Targets of less than kLeastDense features are left to match_score.cuh, since of few
// features so many candidates are close that the rounding would let thousands of tiles pass.
//
// A block's four warps share a tile, 32 candidates each, which a warp reads into registers, and the targets, up to 128, as
// the instruction wants them, in 32 KB of shared memory. At most 168 registers: 12 warps an SM.
// For 128 targets of 64 parameters: 256 products of 16 x 8 x 16 for 32 candidates, 64 us for 2^20 at the 62% of the
// tensor cores' rate that mma.sync reaches, about as long as reading them takes; measured on an H200: 126 us for both,
// with shared memory's data pipe busy 54% of the time, tensor cores and memory 43%. There match_warpgroup.cuh takes
// candidates in float; this takes those in double, and all on other architectures.
//
// Rounding, with u = 2^-11 for half precision. A row is scaled so that its largest |m| lies in [64, 128): nothing
// overflows, and what vanishes is below 2^-25. A candidate whose |m|^2 over the support comes out below kLeastDenseNorm
// = 2^-4, or NaN, is of unknown score. For others rounding m turns the vector by u + 2^-20, rounding theta by u + 2^-22
// (its new length is divided out): cosine^2 moves by 2 u. The squares of the rounded m are rounded to u, and the 64 may
// each be off by 2^-24 + 2^-25 besides, 2^-13 of the norm. The sums, exact products in float32 that may be truncated, are
// off by less than 2^-16 of |theta| |m| and of |m|^2. Together less than 3 u + 2^-13 + 2^-14 < 1.7e-3.
#pragma once

#include "kernels/best_match/half_products.cuh"
#include "kernels/best_match/match_score.cuh"

namespace pns {
namespace {

constexpr float kLeastDenseNorm = 0x1p-4f;
constexpr int kStepCandidates = 32, kStepColumns = 4;  // of a warp; of them 8 a product
constexpr int kDenseThreads = 128, kDenseWarps = kDenseThreads / kWarpSize;

// Candidates in half precision: lane 4 g + t holds of candidates 8 j + g the parameters 16 s + 4 t + 0..3.
template <int kColumns, int kSteps>
struct DenseHalves {
  unsigned m[kColumns][kSteps][2], square[kColumns][kSteps][2];
};

// The operands of a step of candidates. Their parameters are taken for the rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of product
// s (any order will do that the targets have too).
template <int kSteps>
using DenseStep = DenseHalves<kStepColumns, kSteps>;

template <typename T>
struct DenseRows {
  const T* row;              // of the problem's first candidate
  const uint8_t* available;  // likewise, or null
  int64_t n_rows;
  int n_columns;  // a multiple of 4, and the rows are aligned to 16 bytes
};

// Rows that are not there or not available are zero, so they never count.
template <typename T, int kSteps>
__device__ __forceinline__ void load_rows(const DenseRows<T>& rows, int64_t first,
                                          float (&v)[kStepColumns][4 * kSteps]) {
  const int lane = threadIdx.x % kWarpSize;
  bool is_there[kStepColumns];
#pragma unroll
  for (int j = 0; j < kStepColumns; ++j) is_there[j] = first + 8 * j + lane / 4 < rows.n_rows;
  if (rows.available != nullptr) {
#pragma unroll
    for (int j = 0; j < kStepColumns; ++j) {
      if (is_there[j]) is_there[j] = rows.available[first + 8 * j + lane / 4] != 0;
    }
  }
  const T* from = rows.row + (first + lane / 4) * rows.n_columns + 4 * (lane % 4);
#pragma unroll
  for (int j = 0; j < kStepColumns; ++j) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      Four four{};
      const bool is_in = is_there[j] && 16 * s + 4 * (lane % 4) < rows.n_columns;
      if (is_in) four = load_aligned(from + 8 * j * rows.n_columns + 16 * s);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j][4 * s + i] = four.x[i];
    }
  }
}

// Scales the rows, of which a lane has 4 kSteps values each, and rounds them. What is not zero has a square that is not
// zero: then a norm of zero is a candidate that is zero on the support. A row with an infinity becomes NaN.
template <int kColumns, int kSteps>
__device__ __forceinline__ void round_rows(const float (&v)[kColumns][4 * kSteps], DenseHalves<kColumns, kSteps>* halves) {
  unsigned smallest = 0x7BFF7BFF;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 4 * kSteps; ++i) largest = fmaxf(largest, fabsf(v[j][i]));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const int exponent = __float_as_int(largest) >> 23;  // 2^exponent-127 <= largest
    const float scale = __int_as_float(exponent == 255 ? 0x7FFFFFFF : (260 - (exponent < 6 ? 6 : exponent)) << 23);
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const unsigned h = pack_halves(v[j][2 * i] * scale, v[j][2 * i + 1] * scale);
      halves->m[j][i / 2][i % 2] = h;
      halves->square[j][i / 2][i % 2] = squares_plus(h, 0);
      smallest = least_size(smallest, h);
    }
  }
  constexpr unsigned kSquareVanishesBelow = 0x0C00;  // 2^-12 as a half
  if (!__any_sync(kAllLanes, min(smallest & 0xFFFF, smallest >> 16) < kSquareVanishesBelow)) return;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const float a = fabsf(v[j][2 * i]), b = fabsf(v[j][2 * i + 1]);
      const unsigned tiny = pack_halves(fminf(a * 0x1p126f, 0x1p-24f), fminf(b * 0x1p126f, 0x1p-24f));
      halves->square[j][i / 2][i % 2] = squares_plus(halves->m[j][i / 2][i % 2], tiny);
    }
  }
}

// Of 16 targets, kHalf columns of a step.
constexpr int kHalf = kStepColumns / 2;
struct DenseSums {
  float dot[kHalf][4], norm[kHalf][4];
};

template <int kSteps>
struct DenseTargets {  // 16: two operands a product
  uint4 direction[kSteps], support[kSteps];
};

template <int kSteps>
__device__ __forceinline__ DenseTargets<kSteps> load_targets(const uint4* operands) {
  DenseTargets<kSteps> targets;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    targets.direction[s] = operands[2 * s * kWarpSize];
    targets.support[s] = operands[(2 * s + 1) * kWarpSize];
  }
  return targets;
}

template <int kFirst, int kSteps>
__device__ __forceinline__ DenseSums multiply(const DenseTargets<kSteps>& targets, const DenseStep<kSteps>& step) {
  DenseSums sums{};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
      multiply_add(sums.dot[j], targets.direction[s], step.m[kFirst + j][s][0], step.m[kFirst + j][s][1]);
      multiply_add(sums.norm[j], targets.support[s], step.square[kFirst + j][s][0], step.square[kFirst + j][s][1]);
    }
  }
  return sums;
}

// The largest cosine of a lane's candidates with its two targets, lane / 4 and lane / 4 + 8 of a group.
struct PairBest {
  float cosine[2];
};

constexpr int kInfinity = 0x7F800000;  // its bits

// Adds what is found among the columns. Wrong where is_odd of the largest cosine and of the norms' least bits: no norm is
// negative but a NaN's.
template <int kColumns>
__device__ __forceinline__ void add_best(const float (&dot)[kColumns][4], const float (&norm)[kColumns][4], PairBest* best,
                                         int* least) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float a = dot[j][2 * i] * inverse_root(norm[j][2 * i]);
      const float b = dot[j][2 * i + 1] * inverse_root(norm[j][2 * i + 1]);
      best->cosine[i] = max_or_nan(best->cosine[i], max_or_nan(a, b));
      *least = least_of(*least, __float_as_int(norm[j][2 * i]), __float_as_int(norm[j][2 * i + 1]));
    }
  }
}

__device__ __forceinline__ bool is_odd(float most, int least) {
  return least < __float_as_int(kLeastDenseNorm) || !(most < kFarFloat);
}

// The same of any numbers: inf where one is not known, -inf without a candidate.
template <int kColumns>
__device__ inline void add_best_carefully(const float (&dot)[kColumns][4], const float (&norm)[kColumns][4],
                                          PairBest* best) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (norm[j][i] == 0) continue;
      const float cosine = norm[j][i] >= kLeastDenseNorm ? dot[j][i] * inverse_root(norm[j][i]) : kFarFloat;
      best->cosine[i / 2] = fmaxf(best->cosine[i / 2], cosine);
    }
  }
}

// Over the lanes 4 g + 0..3: lanes 4 g get that of target g, lanes 4 g + 1 that of g + 8.
__device__ __forceinline__ float best_of_lanes(const PairBest& pair) {
  const bool is_second = threadIdx.x & 1;
  float mine = is_second ? pair.cosine[1] : pair.cosine[0];
  mine = fmaxf(mine, __shfl_xor_sync(kAllLanes, is_second ? pair.cosine[0] : pair.cosine[1], 1));
  return fmaxf(mine, __shfl_xor_sync(kAllLanes, mine, 2));
}

__device__ __forceinline__ void write_best(const PairBest& pair, float* best) {
  const int lane = threadIdx.x % kWarpSize;
  const float mine = best_of_lanes(pair);
  if (lane % 4 < 2) best[lane / 4 + lane % 4 * 8] = mine;
}

// best[t] = the largest cosine of the step's candidates with target t. The products of one half of the candidates run
// while the results of the other are looked at.
template <int kSteps>
__device__ __forceinline__ void best_of_step(const uint4* operands, int n_groups, const DenseStep<kSteps>& step,
                                             float* best) {
  constexpr int kOfGroup = 2 * kSteps * kWarpSize;
  int least = kInfinity;
  float most = -kFarFloat;
  auto finish = [&](const PairBest& pair, int r) {
    most = max_or_nan(most, max_or_nan(pair.cosine[0], pair.cosine[1]));
    write_best(pair, best + r * kDenseGroup);
  };
  DenseTargets<kSteps> targets = load_targets<kSteps>(operands);
  DenseSums low = multiply<0>(targets, step);
#pragma unroll 1
  for (int r = 0; r + 1 < n_groups; ++r) {
    PairBest pair{{-kFarFloat, -kFarFloat}};
    const DenseSums high = multiply<kHalf>(targets, step);
    add_best(low.dot, low.norm, &pair, &least);
    targets = load_targets<kSteps>(operands + (r + 1) * kOfGroup);
    low = multiply<0>(targets, step);
    add_best(high.dot, high.norm, &pair, &least);
    finish(pair, r);
  }
  PairBest pair{{-kFarFloat, -kFarFloat}};
  const DenseSums high = multiply<kHalf>(targets, step);
  add_best(low.dot, low.norm, &pair, &least);
  add_best(high.dot, high.norm, &pair, &least);
  finish(pair, n_groups - 1);
  if (!__any_sync(kAllLanes, is_odd(most, least))) return;
#pragma unroll 1
  for (int r = 0; r < n_groups; ++r) {
    targets = load_targets<kSteps>(operands + r * kOfGroup);
    pair = {{-kFarFloat, -kFarFloat}};
    const DenseSums first = multiply<0>(targets, step), second = multiply<kHalf>(targets, step);
    add_best_carefully(first.dot, first.norm, &pair);
    add_best_carefully(second.dot, second.norm, &pair);
    write_best(pair, best + r * kDenseGroup);
  }
}

// Asks for the rows of a step before they are wanted.
template <typename T>
__device__ inline void fetch_step(const DenseRows<T>& rows, int64_t first) {
  if (first >= rows.n_rows) return;
  const int64_t end = first + kStepCandidates < rows.n_rows ? first + kStepCandidates : rows.n_rows;
  const char* from = reinterpret_cast<const char*>(rows.row + first * rows.n_columns);
  const char* to = reinterpret_cast<const char*>(rows.row + end * rows.n_columns);
  for (from += threadIdx.x % kWarpSize * 128; from < to; from += kWarpSize * 128) fetch_ahead(from);
}

// A block takes up to kDenseTargets targets of a problem through every n_parts-th of its tiles, a warp 32 candidates of
// each.
template <typename T, int kSteps>
__global__ void __launch_bounds__(kDenseThreads, 3)
    best_match_dense_kernel(Problem<T> p, Plan plan, Workspace w, int n_parts) {
  static_assert(kDenseTargets == kDenseThreads && kDenseTile == kDenseWarps * kStepCandidates);
  PNS_DYNAMIC_SHARED(memory);
  uint4* operands = reinterpret_cast<uint4*>(memory);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t part = blockIdx.x % n_parts, chunk = blockIdx.x / n_parts % plan.n_chunks();
  const int64_t problem = blockIdx.x / n_parts / plan.n_chunks();
  const int64_t first_group = chunk * kBlockGroups;
  const int n_groups = static_cast<int>(min_of(plan.n_groups - first_group, kBlockGroups));
  constexpr int kOfGroup = 2 * kSteps * kWarpSize;  // operands
  const uint4* from = w.dense + (problem * plan.n_groups + first_group) * kOfGroup;
  for (int i = threadIdx.x; i < n_groups * kOfGroup; i += kDenseThreads) operands[i] = from[i];
  __syncthreads();

  const int64_t target = problem * p.n_targets + chunk * kDenseTargets + threadIdx.x;
  const bool is_target = chunk * kDenseTargets + threadIdx.x < p.n_targets;
  const float scale = is_target ? w.info[target].dense_scale : 0;
  const int64_t first_candidate = problem * p.n_candidates;
  const DenseRows<T> rows{p.candidates + first_candidate * p.n_parameters,
                          p.available == nullptr ? nullptr : p.available + first_candidate, p.n_candidates,
                          static_cast<int>(p.n_parameters)};
  // [2][kDenseWarps][kDenseTargets]: a tile's are read while the next tile's are written
  float* const both = reinterpret_cast<float*>(operands + kBlockGroups * kOfGroup);
  int other = 0;
#pragma unroll 1
  for (int64_t tile = part; tile < plan.n_tiles; tile += n_parts, other ^= kDenseWarps * kDenseTargets) {
    const int64_t first = tile * kDenseTile + warp * kStepCandidates;
    DenseStep<kSteps> step;
    {
      float v[kStepColumns][4 * kSteps];
      load_rows<T, kSteps>(rows, first, v);
      fetch_step(rows, first + n_parts * kDenseTile);
      round_rows<kStepColumns, kSteps>(v, &step);
    }
    float* const best = both + other;
    best_of_step<kSteps>(operands + lane, n_groups, step, best + warp * kDenseTargets);
    __syncthreads();
    if (scale > 0) {
      float of_tile = best[threadIdx.x];
#pragma unroll
      for (int v = 1; v < kDenseWarps; ++v) of_tile = fmaxf(of_tile, best[v * kDenseTargets + threadIdx.x]);
      w.tile_score[target * plan.n_tiles + tile] = of_tile * fabsf(of_tile) * scale;
    }
  }
}

}  // namespace
}  // namespace pns
