// A signed integer in the order of the scores: it can be halved, counted and sampled without a care for rounding,
// infinities or -0, which gets the key of +0. A NaN's key lies outside [-kInfinity, kInfinity].
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace pns {

// Half precision as it lies in memory: the kernel ranks, it never computes with scores.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T> struct KeyOf;
template <> struct KeyOf<float> {
  using Bits = int32_t;
  using type = int32_t;
  static constexpr type kInfinity = 0x7F800000;
};
template <> struct KeyOf<double> {
  using Bits = int64_t;
  using type = int64_t;
  static constexpr type kInfinity = 0x7FF0000000000000;
};
template <> struct KeyOf<Float16> {
  using Bits = int16_t;
  using type = int32_t;
  static constexpr type kInfinity = 0x7C00;
};
template <> struct KeyOf<BFloat16> {
  using Bits = int16_t;
  using type = int32_t;
  static constexpr type kInfinity = 0x7F80;
};

template <typename T> using Key = typename KeyOf<T>::type;

namespace {

template <typename T>
inline Key<T> score_key(T x) {
  using Bits = typename KeyOf<T>::Bits;
  Bits bits;
  std::memcpy(&bits, &x, sizeof(x));
  const Key<T> magnitude = bits & std::numeric_limits<Bits>::max();
  return bits < 0 ? -magnitude : magnitude;
}

template <typename T>
inline T from_key(Key<T> key) {
  using Bits = typename KeyOf<T>::Bits;
  const auto bits = static_cast<Bits>(key < 0 ? -key | std::numeric_limits<Bits>::min() : key);
  T x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

template <typename T>
inline bool is_nan_key(Key<T> key) {
  return key > KeyOf<T>::kInfinity || key < -KeyOf<T>::kInfinity;
}

}  // namespace
}  // namespace pns
