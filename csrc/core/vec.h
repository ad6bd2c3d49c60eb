// Vec<T, W>: W lanes of T in one register, on the compiler's vector extensions (GCC, Clang): one body compiles to
// AVX2, AVX-512 or NEON; only the two estimates and lane_bits need intrinsics. Everything sits in an unnamed namespace,
// since each SIMD level is its own file: a shared inline function would be merged by the linker and could carry AVX-512
// into the baseline.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pns {
namespace {

template <int N> struct IntOfSize;
template <> struct IntOfSize<2> { using type = int16_t; };
template <> struct IntOfSize<4> { using type = int32_t; };
template <> struct IntOfSize<8> { using type = int64_t; };

template <typename T, int W>
struct Vec {
  using Int = typename IntOfSize<sizeof(T)>::type;
  typedef T Lanes __attribute__((vector_size(W * sizeof(T))));
  typedef Int IntLanes __attribute__((vector_size(W * sizeof(T))));
  static constexpr int kLanes = W;
  Lanes v;

  static Vec load(const T* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof(r.v));
    return r;
  }
  static Vec broadcast(T x) { return Vec{x - Lanes{}}; }
  static Vec zero() { return Vec{Lanes{}}; }
  void store(T* p) const { std::memcpy(p, &v, sizeof(v)); }

  friend Vec operator+(Vec a, Vec b) { return Vec{a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return Vec{a.v - b.v}; }
  friend Vec operator-(Vec a) { return Vec{-a.v}; }
  friend Vec operator*(Vec a, Vec b) { return Vec{a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return Vec{a.v / b.v}; }
  friend IntLanes operator>(Vec a, Vec b) { return a.v > b.v; }
  friend IntLanes operator<(Vec a, Vec b) { return a.v < b.v; }
};

// a * b + c; contracted to one FMA under the files' flags.
template <typename V> V fma(V a, V b, V c) { return V{a.v * b.v + c.v}; }
// a > b ? a : b: b where one of them is NaN. One instruction, which GCC does not make of the comparison.
template <typename V> V max(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float, 16>>) return V{(typename V::Lanes)_mm512_maskz_max_ps(0xFFFF, (__m512)a.v, (__m512)b.v)};
#endif
#if defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float, 8>>) return V{(typename V::Lanes)_mm256_max_ps((__m256)a.v, (__m256)b.v)};
#endif
  return V{a.v > b.v ? a.v : b.v};
}
template <typename V> V select(typename V::IntLanes condition, V yes, V no) {
  return V{condition ? yes.v : no.v};
}

template <typename V> V sqrt(V x) {
  for (int j = 0; j < V::kLanes; ++j) x.v[j] = __builtin_sqrtf(x.v[j]);
  return x;
}

#if defined(__AVX512F__)
// 1 / sqrt(x) and 1 / x to 14 bits. x is normal and positive.
inline Vec<float, 16> estimated_inverse_sqrt(Vec<float, 16> x) {
  return {(Vec<float, 16>::Lanes)_mm512_maskz_rsqrt14_ps(0xFFFF, (__m512)x.v)};
}
inline Vec<float, 16> estimated_reciprocal(Vec<float, 16> x) {
  return {(Vec<float, 16>::Lanes)_mm512_maskz_rcp14_ps(0xFFFF, (__m512)x.v)};
}
#endif

// Bit j is set where lane j of a comparison's result is true.
template <int W> uint32_t lane_bits(typename Vec<float, W>::IntLanes condition) {
#if defined(__AVX512DQ__)
  if constexpr (W == 16) return _mm512_movepi32_mask((__m512i)condition);
#endif
#if defined(__AVX2__)
  if constexpr (W == 8) return static_cast<uint32_t>(_mm256_movemask_ps((__m256)condition));
#endif
  uint32_t bits = 0;
  for (int j = 0; j < W; ++j) bits |= static_cast<uint32_t>(condition[j] & 1) << j;
  return bits;
}
template <int W> uint32_t lane_bits(typename Vec<double, W>::IntLanes condition) {
#if defined(__AVX512DQ__)
  if constexpr (W == 8) return _mm512_movepi64_mask((__m512i)condition);
#endif
#if defined(__AVX2__)
  if constexpr (W == 4) return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)condition));
#endif
  uint32_t bits = 0;
  for (int j = 0; j < W; ++j) bits |= static_cast<uint32_t>(condition[j] & 1) << j;
  return bits;
}
// The reverse: a condition for select.
template <typename V> typename V::IntLanes lanes_of_bits(uint32_t bits) {
  typename V::IntLanes bit;
  for (int j = 0; j < V::kLanes; ++j) bit[j] = typename V::Int{1} << j;
  return ((typename V::IntLanes{} + static_cast<typename V::Int>(bits)) & bit) != 0;
}

// The 32-bit lanes whose bit is set next to each other at p, which has room for all of them; returns how many they are.
template <int W, typename Lanes> int store_where(uint32_t bits, const Lanes& lanes, uint32_t* p) {
  static_assert(sizeof(lanes) == W * sizeof(*p));
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), (__m512i)lanes));
    return __builtin_popcount(bits);
  }
#endif
  int n = 0;
  for (int j = 0; j < W; ++j) {
    p[n] = lanes[j];
    n += bits >> j & 1;
  }
  return n;
}

// Blocks of kBlock lanes of a and b, each one's neighbouring units of kUnit lanes added: a's sums, then b's.
template <int kUnit, int kBlock, typename V, int... J> V add_neighbours(V a, V b, std::integer_sequence<int, J...>) {
  constexpr int W = V::kLanes;
  constexpr auto even = [](int j) {
    const int lane = j / kBlock * kBlock + j % kUnit, unit = j % kBlock / kUnit * 2 * kUnit;
    return lane + unit % kBlock + (unit < kBlock ? 0 : W);
  };
  return V{__builtin_shufflevector(a.v, b.v, even(J)...) + __builtin_shufflevector(a.v, b.v, even(J) + kUnit...)};
}

// The horizontal sums of W vectors at once: lane j of the result is the sum of the lanes of f(j), f(j) asked for in
// order. W - 1 times two shuffles and an add, about 3 instructions a sum instead of 8 for one at a time; within 16 bytes
// first, where a processor may start four shuffles a cycle instead of two, and depth first, so that few wait.
template <typename V, int N = V::kLanes, typename F> [[gnu::always_inline]] inline V horizontal_sums(F&& f, int first = 0) {
  if constexpr (N == 1) {
    return f(first);
  } else {
    constexpr int W = V::kLanes, kNear = 16 / sizeof(V{}.v[0]);
    constexpr int kUnit = N <= kNear ? 1 : kNear, kBlock = N <= kNear ? kNear : W;
    const V a = horizontal_sums<V, N / 2>(f, first), b = horizontal_sums<V, N / 2>(f, first + N / 2);
    return add_neighbours<kUnit, kBlock>(a, b, std::make_integer_sequence<int, W>());
  }
}
template <typename V> [[gnu::always_inline]] inline V horizontal_sums(const V* of) {
  return horizontal_sums<V>([of](int j) { return of[j]; });
}

// Lanes of row pairs j, j + S exchanged: log2(W) such steps transpose a W x W block.
template <int S, typename V, int... J> [[gnu::always_inline]] inline void swap_pair(V& a, V& b, std::integer_sequence<int, J...>) {
  constexpr int W = V::kLanes;
  const V low{__builtin_shufflevector(a.v, b.v, ((J & S) ? W + (J ^ S) : J)...)};
  const V high{__builtin_shufflevector(a.v, b.v, ((J & S) ? W + J : (J ^ S))...)};
  a = low;
  b = high;
}
template <int S, typename V> [[gnu::always_inline]] inline void transpose_steps(V* rows) {
  for (int j = 0; j < V::kLanes; ++j) {
    if ((j & S) == 0) swap_pair<S>(rows[j], rows[j + S], std::make_integer_sequence<int, V::kLanes>());
  }
  if constexpr (S > 1) transpose_steps<S / 2>(rows);
}
template <typename V> [[gnu::always_inline]] inline void transpose(V* rows) { transpose_steps<V::kLanes / 2>(rows); }

// exp(x) to about 2 ulp: 2^n * p(r), r in [-ln2/2, ln2/2] (Cephes expf). Below -87.3 the result is 0.
template <int W> Vec<float, W> exp(Vec<float, W> x) {
  using V = Vec<float, W>;
  const V low = V::broadcast(-87.3f), high = V::broadcast(88.7f);
  const V clamped = select(x < low, low, select(x > high, high, x));
  const V magic = V::broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const V n = fma(clamped, V::broadcast(1.44269504f), magic) - magic;
  V r = fma(n, V::broadcast(-0.693359375f), clamped);
  r = fma(n, V::broadcast(2.12194440e-4f), r);
  V p = V::broadcast(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    p = fma(p, r, V::broadcast(c));
  }
  p = fma(p, r * r, r + V::broadcast(1.0f));
  const auto exponent = (__builtin_convertvector(n.v, typename V::IntLanes) + 127) << 23;
  V scale;
  std::memcpy(&scale.v, &exponent, sizeof(exponent));
  // NaN passes through: it is neither below nor above the bounds.
  return select(x < low, V::zero(), p * scale);
}

}  // namespace
}  // namespace pns
