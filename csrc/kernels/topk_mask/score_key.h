// An unsigned key in the order of the scores: comparisons become integer digits, which a histogram can count.
#pragma once

#include <cstdint>
#include <cstring>

namespace pns {
namespace {

inline uint32_t score_key(float x) {
  x += 0.0f;  // -0 becomes +0
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits ^ ((bits >> 31) ? 0xFFFFFFFFu : 0x80000000u);
}
inline uint64_t score_key(double x) {
  x += 0.0;
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  return bits ^ ((bits >> 63) ? ~uint64_t{0} : uint64_t{1} << 63);
}

template <typename T, int Bits>
inline uint32_t top_bits(T x) {
  return static_cast<uint32_t>(score_key(x) >> (8 * sizeof(T) - Bits));
}

}  // namespace
}  // namespace pns
