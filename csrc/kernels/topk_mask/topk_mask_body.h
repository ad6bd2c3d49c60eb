// The loops of topk_mask in blocks of 64 scores, one bit each. A comparison of W lanes gives W bits; lists are filled
// from the bits, so one body serves every width. (AVX-512's compress, at work in every vector, was slower: 237 us
// instead of 195 us for 10^6 floats with a hint, 295 us instead of 245 us without.)
#pragma once

#include <type_traits>

#include "core/vec.h"
#include "kernels/topk_mask/topk_mask.h"

namespace pns {
namespace {

constexpr int kBlock = 64;
// Bytes prefetched ahead: 47 ms instead of 58 ms a core for 10^8 floats on a Xeon; 4 KB ahead are 49 ms. Past the caches
// farther, and scores too: with masks so stored a pass over 10^8 takes a Zen 5's two cores 7.3 ms, 8.7 with 2 KB and all
// caches, 7.9 with 4 KB and these; while other guests of the machine use its memory, 11.4, 11.3 and 12.5 ms.
constexpr int kAhead = 2048, kAheadPastCaches = 4096;

// Scores as lanes that can be compared: floats as they are, half precision by its 16-bit keys.
template <typename T, int W>
struct Ranked {
  using V = Vec<T, W>;
  static V load(const T* p) { return V::load(p); }
  static V bound(Key<T> key) { return V::broadcast(from_key<T>(key)); }
};
template <typename T, int W>
struct RankedHalf {
  using V = Vec<int16_t, W>;
  static V load(const T* p) {
    const V x = V::load(reinterpret_cast<const int16_t*>(p));
    const auto sign = x.v >> 15;
    return V{((x.v & int16_t{0x7FFF}) ^ sign) - sign};
  }
  static V bound(Key<T> key) { return V::broadcast(static_cast<int16_t>(key)); }
};
template <int W> struct Ranked<Float16, W> : RankedHalf<Float16, W> {};
template <int W> struct Ranked<BFloat16, W> : RankedHalf<BFloat16, W> {};

// Bit j: lane j is not <= bound. A NaN is above everything here and at least nothing below, so it ends up inside.
#if defined(__AVX512BW__)
inline uint64_t above_bits(Vec<float, 16> x, Vec<float, 16> b) {
  return _mm512_cmp_ps_mask((__m512)x.v, (__m512)b.v, _CMP_NLE_UQ);
}
inline uint64_t above_bits(Vec<double, 8> x, Vec<double, 8> b) {
  return _mm512_cmp_pd_mask((__m512d)x.v, (__m512d)b.v, _CMP_NLE_UQ);
}
inline uint64_t above_bits(Vec<int16_t, 32> x, Vec<int16_t, 32> b) {
  return _mm512_cmpgt_epi16_mask((__m512i)x.v, (__m512i)b.v);
}
inline uint64_t at_least_bits(Vec<float, 16> x, Vec<float, 16> b) {
  return _mm512_cmp_ps_mask((__m512)x.v, (__m512)b.v, _CMP_GE_OQ);
}
inline uint64_t at_least_bits(Vec<double, 8> x, Vec<double, 8> b) {
  return _mm512_cmp_pd_mask((__m512d)x.v, (__m512d)b.v, _CMP_GE_OQ);
}
inline uint64_t at_least_bits(Vec<int16_t, 32> x, Vec<int16_t, 32> b) {
  return _mm512_cmpge_epi16_mask((__m512i)x.v, (__m512i)b.v);
}
template <bool kPastCaches>
inline void store_bits(uint64_t bits, uint8_t* bytes) {
  const __m512i entries = _mm512_maskz_set1_epi8(bits, 1);
  if constexpr (kPastCaches) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(bytes), entries);
  } else {
    _mm512_storeu_si512(bytes, entries);
  }
}
constexpr int kRegisterBytes = 64;
#else
inline uint64_t above_bits(Vec<float, 8> x, Vec<float, 8> b) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x.v, (__m256)b.v, _CMP_NLE_UQ));
}
inline uint64_t above_bits(Vec<double, 4> x, Vec<double, 4> b) {
  return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)x.v, (__m256d)b.v, _CMP_NLE_UQ));
}
inline uint64_t above_bits(Vec<int16_t, 16> x, Vec<int16_t, 16> b) {
  const __m256i is_above = _mm256_cmpgt_epi16((__m256i)x.v, (__m256i)b.v);
  return _mm_movemask_epi8(_mm_packs_epi16(_mm256_castsi256_si128(is_above), _mm256_extracti128_si256(is_above, 1)));
}
inline uint64_t at_least_bits(Vec<float, 8> x, Vec<float, 8> b) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x.v, (__m256)b.v, _CMP_GE_OQ));
}
inline uint64_t at_least_bits(Vec<double, 4> x, Vec<double, 4> b) {
  return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)x.v, (__m256d)b.v, _CMP_GE_OQ));
}
inline uint64_t at_least_bits(Vec<int16_t, 16> x, Vec<int16_t, 16> b) { return above_bits(b, x) ^ 0xFFFF; }
template <bool kPastCaches>
inline void store_bits(uint64_t bits, uint8_t* bytes) {
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  for (int half = 0; half < 2; ++half) {
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits >> (32 * half))), byte_of);
    const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of), bit_of);
    const __m256i entries = _mm256_and_si256(is_set, _mm256_set1_epi8(1));
    const auto to = reinterpret_cast<__m256i*>(bytes + 32 * half);
    if constexpr (kPastCaches) {
      _mm256_stream_si256(to, entries);
    } else {
      _mm256_storeu_si256(to, entries);
    }
  }
}
constexpr int kRegisterBytes = 32;
#endif

struct BlockBits {
  uint64_t above_hi, from_hi, above_lo, from_lo, inside;  // without ties neither above_hi nor from_lo
};

template <bool kTies, typename T>
[[gnu::always_inline]] inline BlockBits compare_block(const T* scores, Key<T> lo_key, Key<T> hi_key) {
  constexpr int W = kRegisterBytes / sizeof(T);
  using R = Ranked<T, W>;
  const auto lo = R::bound(lo_key), hi = R::bound(hi_key);
  BlockBits b{};
  uint64_t is_nan = 0;
#pragma GCC unroll 16
  for (int i = 0; i < kBlock; i += W) {
    const auto x = R::load(scores + i);
    b.from_hi |= at_least_bits(x, hi) << i;
    b.above_lo |= above_bits(x, lo) << i;
    if constexpr (kTies) {
      b.above_hi |= above_bits(x, hi) << i;
      b.from_lo |= at_least_bits(x, lo) << i;
    }
    if constexpr (sizeof(T) == 2) {
      is_nan |= above_bits(x, R::bound(KeyOf<T>::kInfinity)) << i;
      is_nan |= above_bits(R::bound(-KeyOf<T>::kInfinity), x) << i;
    }
  }
  b.inside = (b.above_lo & ~b.from_hi) | is_nan;
  return b;
}

// Four entries are written without asking, since how many there are cannot be predicted; more are rare.
template <typename T>
[[gnu::always_inline]] inline void append(uint64_t bits, const T* block, uint32_t at, T* inside, uint32_t* position) {
  int64_t i = 0;
  do {
#pragma GCC unroll 4
    for (int j = 0; j < kListSlack; ++j, ++i) {
      const int lane = __builtin_ctzll(bits | uint64_t{1} << 63);
      inside[i] = block[lane];
      position[i] = at + lane;
      bits &= bits - 1;
    }
  } while (__builtin_expect(bits != 0, 0));
}

template <typename K>
inline K larger_magnitude(K largest, K key) {
  const K magnitude = key < 0 ? -key : key;
  return magnitude > largest ? magnitude : largest;
}

template <bool kTies, bool kPastCaches, typename T>
BracketCounts split_blocks(const T* scores, int64_t n, Key<T> lo, Key<T> hi, uint8_t* mask, T* inside,
                           uint32_t* position) {
  BracketCounts c{};
  const auto take = [&](const T* block, int64_t at, uint64_t valid, uint8_t* bytes,
                        auto past_caches) __attribute__((always_inline)) {
    const BlockBits b = compare_block<kTies>(block, lo, hi);
    c.from_hi += __builtin_popcountll(b.from_hi & valid);
    c.above_lo += __builtin_popcountll(b.above_lo & valid);
    if constexpr (kTies) {
      c.above_hi += __builtin_popcountll(b.above_hi & valid);
      c.from_lo += __builtin_popcountll(b.from_lo & valid);
    }
    if (bytes != nullptr) store_bits<past_caches()>(b.from_hi, bytes);
    if (const uint64_t listed = b.inside & valid; kTies || listed != 0) {  // without ties most blocks list nothing
      append(listed, block, static_cast<uint32_t>(at), inside + c.inside, position + c.inside);
      c.inside += __builtin_popcountll(listed);
    }
  };
  int64_t at = 0;
  for (; at + kBlock <= n; at += kBlock) {
    // may lie behind the array
    const auto ahead = reinterpret_cast<uintptr_t>(scores + at) + (kPastCaches ? kAheadPastCaches : kAhead);
    for (size_t line = 0; line < kBlock * sizeof(T); line += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(ahead + line), 0, kPastCaches ? 0 : 3);
    }
    take(scores + at, at, ~uint64_t{0}, mask == nullptr ? nullptr : mask + at, std::bool_constant<kPastCaches>());
  }
  if (at < n) {
    T block[kBlock] = {};
    uint8_t bytes[kBlock];
    std::memcpy(block, scores + at, (n - at) * sizeof(T));
    take(block, at, (uint64_t{1} << (n - at)) - 1, bytes, std::false_type());
    if (mask != nullptr) std::memcpy(mask + at, bytes, n - at);
  }
  if constexpr (kPastCaches) _mm_sfence();  // before another thread corrects an entry
  Key<T> largest = 0;  // in magnitude; every NaN is inside
  for (int64_t i = 0; i < c.inside; ++i) {
    largest = larger_magnitude(largest, score_key(inside[i]));
  }
  c.has_nan = largest > KeyOf<T>::kInfinity;
  return c;
}

template <typename T>
BracketCounts split_loop(const T* scores, int64_t n, Key<T> lo, Key<T> hi, bool counts_ties, uint8_t* mask,
                         bool past_caches, T* inside, uint32_t* position) {
  const bool ties = sizeof(T) == 2 || counts_ties, past = past_caches && reinterpret_cast<uintptr_t>(mask) % kBlock == 0;
  const auto split = past ? (ties ? split_blocks<true, true, T> : split_blocks<false, true, T>)
                          : (ties ? split_blocks<true, false, T> : split_blocks<false, false, T>);
  return split(scores, n, lo, hi, mask, inside, position);
}

template <typename T>
void write_loop(const T* scores, int64_t n, Key<T> threshold, bool or_equal, uint8_t* mask) {
  const Key<T> from = threshold + !or_equal;  // the next key: no score lies between
  for (int64_t i = 0; i < n; ++i) mask[i] = score_key(scores[i]) >= from;
}

template <typename T>
bool keys_loop(const T* scores, int64_t n, Key<T>* keys) {
  Key<T> largest = 0;  // in magnitude
  for (int64_t i = 0; i < n; ++i) {
    keys[i] = score_key(scores[i]);
    largest = larger_magnitude(largest, keys[i]);
  }
  return largest <= KeyOf<T>::kInfinity;
}

// How many of n keys, fewer than 2^31, are at least `bound`.
template <typename K>
int64_t count_at_least(const K* keys, int64_t n, K bound) {
  constexpr int W = kRegisterBytes / sizeof(K);
  using V = Vec<K, W>;
  const V at = V::broadcast(bound);
  V counts[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    for (int j = 0; j < 4; ++j) counts[j].v -= V::load(keys + i + j * W).v >= at.v;
  }
  counts[0].v += counts[1].v + counts[2].v + counts[3].v;
  int64_t count = 0;
  for (int j = 0; j < W; ++j) count += counts[0].v[j];
  for (; i < n; ++i) count += keys[i] >= bound;
  return count;
}

// The least of the keys that are at least `bound`. (GCC 12 leaves this loop scalar where it is written plainly.)
template <typename K>
K least_from(const K* keys, int64_t n, K bound) {
  constexpr int W = kRegisterBytes / sizeof(K);
  using V = Vec<K, W>;
  const V at = V::broadcast(bound), most = V::broadcast(std::numeric_limits<K>::max());
  V least = most;
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const V key = V::load(keys + i);
    const V from = select(key.v >= at.v, key, most);
    least = select(from < least, from, least);
  }
  K result = std::numeric_limits<K>::max();
  for (int j = 0; j < W; ++j) result = least.v[j] < result ? least.v[j] : result;
  for (; i < n; ++i) result = keys[i] >= bound && keys[i] < result ? keys[i] : result;
  return result;
}

// Halves the range of keys until one key, or k of them, are left: some log2(n) counts of the array at a vector's
// speed. 512 keys take 0.4 us, where std::nth_element takes 3.1 us; 8,192 take 7 us, where it takes 45 us.
template <typename K>
K select_loop(const K* keys, int64_t n, int64_t k) {
  using U = std::make_unsigned_t<K>;  // the distance of two keys may be too large for a K
  K low = keys[0], high = keys[0];
  for (int64_t i = 0; i < n; ++i) {
    low = keys[i] < low ? keys[i] : low;
    high = keys[i] > high ? keys[i] : high;
  }
  while (low < high) {
    const K middle = static_cast<K>(U(low) + (U(high) - U(low) + 1) / 2);  // in (low, high]
    const int64_t count = count_at_least(keys, n, middle);
    if (count == k) return least_from(keys, n, middle);
    low = count > k ? middle : low;
    high = count > k ? high : middle - 1;
  }
  return low;
}

template <typename T>
constexpr TopkLoops<T> loops_of_this_level() {
  return {split_loop<T>, write_loop<T>, keys_loop<T>, select_loop<Key<T>>};
}

}  // namespace
}  // namespace pns
