// Stage two on a device, for best_match and existence_search: the operations of targets.h's evaluate in their order, each
// rounded once. Without the intrinsics the compiler would contract them to FMAs, and the bits would not be the CPU's.
#pragma once

#include <cstdint>
#include <limits>

#include "core/cuda_check.cuh"

namespace pns {
namespace {

constexpr double kFar = std::numeric_limits<double>::infinity();

struct DeviceMatch {
  double distance, scale;  // both times 2^-exponent of the target
  double cosine2;
  int64_t index;  // -1: none
};

__device__ inline bool is_better(const DeviceMatch& a, const DeviceMatch& b) {
  return a.distance < b.distance || (a.distance == b.distance && a.index < b.index);
}

// float32 rounding of a cosine^2 of this many terms, with slack; the same as the CPU's.
__host__ __device__ inline double rounding_of(int64_t n_features) { return 2.5e-7 * static_cast<double>(n_features + 4); }

// theta(k), m(k): the k-th supported parameter. Index -1 where the candidate can never win, or where its cosine^2 is
// below least_cosine2. kUnroll: loads in flight.
template <int kUnroll, typename Theta, typename M>
__device__ DeviceMatch evaluate_exactly(int n_features, Theta theta, M m, double length2, double least_cosine2,
                                        int64_t index) {
  const DeviceMatch none{kFar, 1, -1, -1};
  double dot = 0, norm = 0;
#pragma unroll kUnroll
  for (int k = 0; k < n_features; ++k) {
    const double x = m(k);
    dot = __dadd_rn(dot, __dmul_rn(theta(k), x));
    norm = __dadd_rn(norm, __dmul_rn(x, x));
  }
  const double scale = dot / norm;
  if (!(dot > 0) || !(fabs(scale) < kFar) || scale == 0) return none;
  const double cosine2 = __dmul_rn(dot, dot) / __dmul_rn(norm, length2);
  if (cosine2 < least_cosine2) return none;
  double residual = 0;
#pragma unroll kUnroll
  for (int k = 0; k < n_features; ++k) {
    const double r = __dsub_rn(theta(k), __dmul_rn(scale, m(k)));
    residual = __dadd_rn(residual, __dmul_rn(r, r));
  }
  const double distance = n_features == 1 ? 0 : sqrt(residual);
  if (!(distance < kFar)) return none;
  return {distance, scale, cosine2, index};
}

}  // namespace
}  // namespace pns
