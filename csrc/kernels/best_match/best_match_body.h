// The cosine filter of best_match over Vec<float, W>: lanes are candidates, so a target's support is walked once for
// 64 of them, and no sqrt or division is needed to compare.
#pragma once

#include "core/vec.h"
#include "kernels/best_match/best_match.h"

namespace pns {
namespace {

constexpr float kSmallestNorm = 1e-30f, kLargestNorm = 1e30f;

template <int W>
uint64_t match_filter(const float* tile, const int32_t* feature, const float* theta, int64_t n_features,
                      float threshold) {
  using Vector = Vec<float, W>;
  constexpr int kVectors = kCandidateTile / W;
  Vector dot[kVectors], norm[kVectors];
  for (int v = 0; v < kVectors; ++v) dot[v] = norm[v] = Vector::zero();
  for (int64_t k = 0; k < n_features; ++k) {
    const Vector t = Vector::broadcast(theta[k]);
    const float* row = tile + int64_t{feature[k]} * kCandidateTile;
    for (int v = 0; v < kVectors; ++v) {
      const Vector m = Vector::load(row + v * W);
      dot[v] = fma(t, m, dot[v]);
      norm[v] = fma(m, m, norm[v]);
    }
  }
  uint64_t pass = 0;
  for (int v = 0; v < kVectors; ++v) {
    const auto magnitude = dot[v].v > 0.0f ? dot[v].v : -dot[v].v;
    const auto is_close = dot[v].v * magnitude >= threshold * norm[v].v;
    const auto is_safe = (norm[v].v > kSmallestNorm) & (norm[v].v < kLargestNorm);
    const auto may_win = is_close | ~is_safe;
    for (int j = 0; j < W; ++j) pass |= static_cast<uint64_t>(may_win[j] & 1) << (v * W + j);
  }
  return pass;
}

}  // namespace
}  // namespace pns
