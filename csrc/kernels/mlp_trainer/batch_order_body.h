// The order of an epoch over vectors: order[j] = shuffled(shuffle, j).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/philox.h"
#include "core/vec.h"

namespace pns {
namespace {

// Written out: GCC forgets vector_size where it depends on W and the type is a template's argument.
template <int W> struct WordLanes;
template <> struct WordLanes<8> { typedef uint32_t type __attribute__((vector_size(32))); };
template <> struct WordLanes<16> { typedef uint32_t type __attribute__((vector_size(64))); };

template <int W>
struct BatchOrder {
  using Words = typename WordLanes<W>::type;
  // Vectors a round at a time: one alone waits for its own multiplications, and the processor does not look far enough
  // ahead to find the next one. On a Zen 5 2.1 cycles a number, 2.9 with one at a time.
  static constexpr int kVectors = 4;
  static constexpr uint32_t kTogether = kVectors * W, kBlock = 2048;

  static void run(const Shuffle& caller, uint32_t* order) {
    const Shuffle shuffle = caller;
    for (uint32_t at = 0; at < shuffle.n; at += kBlock) block(shuffle, at, std::min(kBlock, shuffle.n - at), order);
  }

 private:
  static void feistel(const Shuffle& s, Words* i) {
    Words left[kVectors], right[kVectors];
    for (int u = 0; u < kVectors; ++u) left[u] = i[u] >> s.half_bits, right[u] = i[u] & s.low_mask;
    for (int r = 0; r < kShuffleRounds; ++r) {
      for (int u = 0; u < kVectors; ++u) {
        const Words next = left[u] ^ feistel_round(s, r, right[u]);
        left[u] = right[u];
        right[u] = next;
      }
    }
    for (int u = 0; u < kVectors; ++u) i[u] = (left[u] << s.half_bits) | right[u];
  }

  // order[at, at + n). Cycle walking: indices that fall outside [0, shuffle.n) go round again, next to each other.
  static void block(const Shuffle& shuffle, uint32_t at, uint32_t n, uint32_t* order) {
    uint32_t index[kBlock + kTogether], slot[kBlock + kTogether];
    for (uint32_t j = 0; j < kBlock + kTogether; ++j) index[j] = slot[j] = at + j;
    while (n > 0) {
      uint32_t n_outside = 0;
      for (uint32_t j = 0; j < n; j += kTogether) {
        Words value[kVectors], place[kVectors];
        std::memcpy(value, index + j, sizeof(value));
        std::memcpy(place, slot + j, sizeof(place));
        feistel(shuffle, value);
        std::memcpy(index + j, value, sizeof(value));
        for (uint32_t k = j; k < std::min(n, j + kTogether); ++k) order[slot[k]] = index[k];
        for (uint32_t u = 0; u < kVectors && j + u * W < n; ++u) {
          const uint32_t n_left = n - j - u * W;
          uint32_t outside = lane_bits<W>((typename Vec<float, W>::IntLanes)(value[u] >= shuffle.n));
          if (n_left < W) outside &= (1u << n_left) - 1;
          store_where<W>(outside, value[u], index + n_outside);
          n_outside += store_where<W>(outside, place[u], slot + n_outside);
        }
      }
      n = n_outside;
    }
  }
};

}  // namespace
}  // namespace pns
