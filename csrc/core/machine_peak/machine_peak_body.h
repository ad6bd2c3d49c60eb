// The two loops over Vec<float, W>: FMAs on registers alone, and loads added into a few accumulators.
#pragma once

#include "core/machine_peak/machine_peak.h"
#include "core/vec.h"

namespace pns {
namespace {

template <int W>
float fma_loop(int64_t n_rounds) {
  using Vector = Vec<float, W>;
  Vector chain[kFmaChains];
  for (int c = 0; c < kFmaChains; ++c) chain[c] = Vector::broadcast(1.0f + static_cast<float>(c));
  // Volatile: GCC otherwise sees that a chain which starts at 1 stays there, and leaves it out. (It once did, and the peak
  // was 12 / 11 of what it is.)
  volatile float factor = 0.999f, addend = 0.001f;
  const Vector a = Vector::broadcast(factor), b = Vector::broadcast(addend);
  for (int64_t i = 0; i < n_rounds; ++i) {
    for (int c = 0; c < kFmaChains; ++c) chain[c] = fma(chain[c], a, b);
  }
  for (int c = 1; c < kFmaChains; ++c) chain[0] = chain[0] + chain[c];
  return chain[0].v[0];
}

template <int W>
float read_loop(const float* source, int64_t n) {
  using Vector = Vec<float, W>;
  Vector sum[4] = {Vector::zero(), Vector::zero(), Vector::zero(), Vector::zero()};
  for (int64_t i = 0; i + 4 * W <= n; i += 4 * W) {
    for (int j = 0; j < 4; ++j) sum[j] = sum[j] + Vector::load(source + i + j * W);
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])).v[0];
}

}  // namespace
}  // namespace pns
