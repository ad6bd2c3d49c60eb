// Odd integers below 2^24 in size, uniform, to normal numbers by the inverse of the distribution function:
// sqrt(2) erfinv(x), x = integer * 2^-24 (Giles 2010, single precision, relative error 3e-7; logarithm after Cephes).
// Only operations that IEEE 754 rounds one way, and the folder is compiled without contraction to FMA: the bits are the
// same at every level and in the twin. No number is beyond 5.42 standard deviations, which 6e-8 of them should be.
#pragma once

#include "core/vec.h"

namespace pns {
namespace {

template <typename V, int N>
V horner(V x, const float (&coefficient)[N]) {
  V p = V::broadcast(coefficient[0]);
  for (int i = 1; i < N; ++i) p = p * x + V::broadcast(coefficient[i]);
  return p;
}

constexpr float kLogarithm[] = {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f,
                                1.4249322787e-1f, -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f,
                                3.3333331174e-1f};
constexpr float kCentre[] = {2.81022636e-8f,  3.43273939e-7f,  -3.5233877e-6f, -4.39150654e-6f, 2.1858087e-4f,
                             -1.25372503e-3f, -4.17768164e-3f, 2.46640727e-1f, 1.50140941f};
constexpr float kTail[] = {-2.00214257e-4f, 1.00950558e-4f,  1.34934322e-3f, -3.67342844e-3f, 5.73950773e-3f,
                           -7.6224613e-3f,  9.43887047e-3f, 1.00167406f,    2.83297682f};

// log(y) for normal y > 0.
template <int W>
Vec<float, W> logarithm(Vec<float, W> y) {
  using V = Vec<float, W>;
  using Ints = typename V::IntLanes;
  const Ints bits = (Ints)y.v;
  V exponent{__builtin_convertvector((bits >> 23) - 126, typename V::Lanes)};
  V m{(typename V::Lanes)((bits & 0x7FFFFF) | 0x3F000000)};
  const Ints is_low = m < V::broadcast(0.70710678f);
  exponent = select(is_low, exponent - V::broadcast(1.0f), exponent);
  m = select(is_low, m + m, m) - V::broadcast(1.0f);
  const V square = m * m;
  V p = horner(m, kLogarithm) * m * square;
  p = p + exponent * V::broadcast(-2.12194440e-4f);
  p = p - V::broadcast(0.5f) * square;
  return m + p + exponent * V::broadcast(0.693359375f);
}

// In place; n is a multiple of W.
template <int W>
void to_normal(float* values, int64_t n) {
  using V = Vec<float, W>;
  const V one = V::broadcast(1.0f);
  for (int64_t i = 0; i < n; i += W) {
    const V x = V::load(values + i) * V::broadcast(1.0f / (1 << 24));
    const V size = max(x, -x);
    const V w = -logarithm((one - size) * (one + size));
    V p = horner(w - V::broadcast(2.5f), kCentre);
    const auto is_tail = w > V::broadcast(5.0f);
    if (lane_bits<W>(is_tail) != 0) {  // so in one vector of 16 in 20, and a root takes as long as ten products
      p = select(is_tail, horner(sqrt(w) - V::broadcast(3.0f), kTail), p);
    }
    (p * (x * V::broadcast(1.41421356f))).store(values + i);
  }
}

}  // namespace
}  // namespace pns
