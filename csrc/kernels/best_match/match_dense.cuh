// best_match's first stage by tensor cores, for few parameters and many candidates: of every tile of 128 candidates the
// largest cosine^2 with every target, to within kDenseRounding. Two products over all parameters in half precision, of
// theta / |theta| with the candidates and of the supports with their squares, cost less than one walk over a sparse
// support: no load is gathered. Targets of less than kLeastDense features are left to match_score.cuh, since of few
// features so many candidates are close that the rounding would let thousands of tiles pass.
//
// A warp owns a tile, 32 candidates at a time, which it reads once into registers; a block's eight warps share the
// targets, up to 128, as the instruction wants them, in 32 KB of shared memory. 128 registers: 16 warps an SM.
// For 128 targets of 64 parameters: 256 products of 16 x 8 x 16 for 32 candidates, 64 us for 2^20 at the 62% of the
// tensor cores' rate that mma.sync reaches, about as long as reading them takes; measured on an H200: 135 us for both.
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
constexpr int kDenseWarps = kThreads / kWarpSize;

// The operands of a step of candidates: lane 4 g + t holds of candidates 8 j + g the parameters 16 s + 4 t + 0..3, which
// are taken for the rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of product s (any order will do that the targets have too).
template <int kSteps>
struct DenseStep {
  unsigned m[kStepColumns][kSteps][2], square[kStepColumns][kSteps][2];
};

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

// Scales the rows and rounds them. What is not zero has a square that is not zero: then a norm of zero is a candidate
// that is zero on the support. A row with an infinity becomes NaN.
template <int kSteps>
__device__ __forceinline__ void round_rows(const float (&v)[kStepColumns][4 * kSteps], DenseStep<kSteps>* step) {
#pragma unroll
  for (int j = 0; j < kStepColumns; ++j) {
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 4 * kSteps; ++i) largest = fmaxf(largest, fabsf(v[j][i]));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const int exponent = __float_as_int(largest) >> 23;  // 2^exponent-127 <= largest
    const float scale = __int_as_float(exponent == 255 ? 0x7FFFFFFF : (260 - (exponent < 6 ? 6 : exponent)) << 23);
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const float a = v[j][2 * i], b = v[j][2 * i + 1];
      const unsigned h = pack_halves(a * scale, b * scale);
      const unsigned tiny = pack_halves(fminf(fabsf(a) * 0x1p126f, 0x1p-24f), fminf(fabsf(b) * 0x1p126f, 0x1p-24f));
      step->m[j][i / 2][i % 2] = h;
      step->square[j][i / 2][i % 2] = squares_plus(h, tiny);
    }
  }
}

struct DenseSums {
  float dot[kStepColumns][4], norm[kStepColumns][4];
};

// Of 16 targets; `target`: two operands a product, the directions and the supports.
template <int kSteps>
__device__ __forceinline__ void multiply(const uint4* target, const DenseStep<kSteps>& step, DenseSums* sums) {
  *sums = {};
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const uint4 direction = target[2 * s * kWarpSize], support = target[(2 * s + 1) * kWarpSize];
#pragma unroll
    for (int j = 0; j < kStepColumns; ++j) {
      multiply_add(sums->dot[j], direction, step.m[j][s][0], step.m[j][s][1]);
      multiply_add(sums->norm[j], support, step.square[j][s][0], step.square[j][s][1]);
    }
  }
}

// The largest cosine of a lane's candidates with target `half` of its two: inf where one is not known, -inf without one.
__device__ inline float careful_best(const DenseSums& sums, int half) {
  float best = -kFarFloat;
#pragma unroll
  for (int j = 0; j < kStepColumns; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float dot = half == 0 ? sums.dot[j][i] : sums.dot[j][i + 2];
      const float norm = half == 0 ? sums.norm[j][i] : sums.norm[j][i + 2];
      if (norm == 0) continue;
      best = fmaxf(best, norm >= kLeastDenseNorm ? dot * inverse_root(norm) : kFarFloat);
    }
  }
  return best;
}

// The same of both targets, then over the candidates of the step: lanes 4 g hold target g's, lanes 4 g + 1 that of g + 8.
__device__ __forceinline__ float best_of_step(const DenseSums& sums) {
  float best[2] = {-kFarFloat, -kFarFloat};
  int least = 0x7F800000;  // bits of the norms, none of them negative but a NaN's
#pragma unroll
  for (int j = 0; j < kStepColumns; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) best[i / 2] = max_or_nan(best[i / 2], sums.dot[j][i] * inverse_root(sums.norm[j][i]));
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      least = least_of(least, __float_as_int(sums.norm[j][i]), __float_as_int(sums.norm[j][i + 1]));
    }
  }
  if (least < __float_as_int(kLeastDenseNorm) || !(best[0] + best[1] < kFarFloat)) {
    best[0] = careful_best(sums, 0);
    best[1] = careful_best(sums, 1);
  }
  const bool is_odd = threadIdx.x & 1;
  float mine = is_odd ? best[1] : best[0];
  mine = fmaxf(mine, __shfl_xor_sync(kAllLanes, is_odd ? best[0] : best[1], 1));
  return fmaxf(mine, __shfl_xor_sync(kAllLanes, mine, 2));
}

// Asks for the rows of a step before they are wanted.
template <typename T>
__device__ inline void fetch_step(const DenseRows<T>& rows, int64_t first) {
  const int64_t end = first + kStepCandidates < rows.n_rows ? first + kStepCandidates : rows.n_rows;
  const char* from = reinterpret_cast<const char*>(rows.row + first * rows.n_columns);
  const char* to = reinterpret_cast<const char*>(rows.row + end * rows.n_columns);
  for (from += threadIdx.x % kWarpSize * 128; from < to; from += kWarpSize * 128) fetch_ahead(from);
}

// A block takes up to kDenseTargets targets of a problem through every n_parts-th eight of its tiles.
template <typename T, int kSteps>
__global__ void __launch_bounds__(kThreads, 2)
    best_match_dense_kernel(Problem<T> p, Plan plan, Workspace w, int n_parts) {
  PNS_DYNAMIC_SHARED(memory);
  uint4* operands = reinterpret_cast<uint4*>(memory);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t part = blockIdx.x % n_parts, chunk = blockIdx.x / n_parts % plan.n_chunks();
  const int64_t problem = blockIdx.x / n_parts / plan.n_chunks();
  const int64_t first_group = chunk * kBlockGroups;
  const int n_groups = static_cast<int>(min_of(plan.n_groups - first_group, kBlockGroups));
  constexpr int kOfGroup = 2 * kSteps * kWarpSize;  // operands
  float* best = reinterpret_cast<float*>(operands + kBlockGroups * kOfGroup) + warp * kDenseTargets;
  const uint4* from = w.dense + (problem * plan.n_groups + first_group) * kOfGroup;
  for (int i = threadIdx.x; i < n_groups * kOfGroup; i += kThreads) operands[i] = from[i];
  __syncthreads();

  const int64_t first_target = problem * p.n_targets + chunk * kDenseTargets;
  const int n_targets = static_cast<int>(min_of(p.n_targets - chunk * kDenseTargets, kDenseTargets));
  const int64_t first_candidate = problem * p.n_candidates;
  const DenseRows<T> rows{p.candidates + first_candidate * p.n_parameters,
                          p.available == nullptr ? nullptr : p.available + first_candidate, p.n_candidates,
                          static_cast<int>(p.n_parameters)};
  for (int64_t tile = part * kDenseWarps + warp; tile < plan.n_tiles; tile += int64_t{n_parts} * kDenseWarps) {
    for (int b = 0; b < kDenseTile / kStepCandidates; ++b) {
      const int64_t first = tile * kDenseTile + b * kStepCandidates;
      DenseStep<kSteps> step;
      {
        float v[kStepColumns][4 * kSteps];
        load_rows<T, kSteps>(rows, first, v);
        const bool is_last = b + 1 == kDenseTile / kStepCandidates;
        fetch_step(rows, is_last ? (tile + int64_t{n_parts} * kDenseWarps) * kDenseTile : first + kStepCandidates);
        round_rows<kSteps>(v, &step);
      }
#pragma unroll 1
      for (int r = 0; r < n_groups; ++r) {
        DenseSums sums;
        multiply<kSteps>(operands + r * kOfGroup + lane, step, &sums);
        const float of_step = best_of_step(sums);
        float* to = best + r * kDenseGroup + lane / 4 + lane % 4 * 8;
        if (lane % 4 < 2) *to = b == 0 ? of_step : fmaxf(*to, of_step);
      }
    }
    __syncwarp();
    for (int i = lane; i < n_targets; i += kWarpSize) {
      const float scale = w.info[first_target + i].dense_scale;
      if (scale > 0) w.tile_score[(first_target + i) * plan.n_tiles + tile] = best[i] * fabsf(best[i]) * scale;
    }
    __syncwarp();
  }
}

}  // namespace
}  // namespace pns
