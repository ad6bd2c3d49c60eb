// A mask as bits, 64 bytes to a word.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/masked_linear/mask_pattern.h"

namespace pns {
namespace {

inline uint64_t word_of(const uint8_t* mask) {
#if defined(__AVX512BW__)
  const __m512i bytes = _mm512_loadu_si512(mask);
  return _mm512_test_epi8_mask(bytes, bytes);
#elif defined(__AVX2__)
  uint64_t word = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask + 32 * half));
    const int zeros = _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256()));
    word |= static_cast<uint64_t>(~static_cast<uint32_t>(zeros)) << 32 * half;
  }
  return word;
#else
  uint64_t word = 0;
  for (int j = 0; j < 64; ++j) word |= static_cast<uint64_t>(mask[j] != 0) << j;
  return word;
#endif
}

inline uint64_t last_word(const uint8_t* mask, int64_t n) {
  uint64_t word = 0;
  for (int64_t j = 0; j < n; ++j) word |= static_cast<uint64_t>(mask[j] != 0) << j;
  return word;
}

inline void pack_mask(const uint8_t* mask, int64_t n, uint64_t* words) {
  int64_t at = 0;
  for (; at + 64 <= n; at += 64) *words++ = word_of(mask + at);
  if (at < n) *words = last_word(mask + at, n - at);
}

inline bool mask_equals(const uint8_t* mask, int64_t n, const uint64_t* words) {
  uint64_t differing = 0;
  int64_t at = 0;
  for (; at + 64 <= n; at += 64) differing |= word_of(mask + at) ^ *words++;
  if (at < n) differing |= last_word(mask + at, n - at) ^ *words;
  return differing == 0;
}

inline MaskBitFunctions mask_bit_functions() { return {pack_mask, mask_equals}; }

}  // namespace
}  // namespace pns
