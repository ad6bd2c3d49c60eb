// Philox4x32-10 (Salmon et al. 2011) and the shuffle built on it. Integer arithmetic only: the same numbers on
// every processor and on the GPU. Twin: pns_fast/reference/batch_order.py.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PNS_HOST_DEVICE __host__ __device__
#else
#define PNS_HOST_DEVICE
#endif

namespace pns {

constexpr int kShuffleRounds = 8;

struct Shuffle {
  uint32_t n, low_mask;
  int half_bits;
  uint32_t key[kShuffleRounds];
};

namespace {

struct Philox4 {
  uint32_t word[4];
};

PNS_HOST_DEVICE inline Philox4 philox4x32(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{c0} * 0xD2511F53u, p1 = uint64_t{c2} * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox4{{c0, c1, c2, c3}};
}

// A permutation of [0, n) as a function of the index: a Feistel network of 8 rounds on the next power of four,
// applied again while the result lies outside [0, n). No table and no order, so any batch can be drawn alone:
// that is why it replaces the usual Fisher-Yates, which is sequential and keeps n numbers.
PNS_HOST_DEVICE inline Shuffle make_shuffle(uint32_t n, uint64_t seed, uint32_t network, uint32_t epoch) {
  Shuffle s;
  s.n = n;
  s.half_bits = 1;
  while ((uint64_t{1} << (2 * s.half_bits)) < n) ++s.half_bits;
  s.low_mask = (1u << s.half_bits) - 1;
  for (uint32_t j = 0; j < 2; ++j) {
    const Philox4 words = philox4x32(seed, j, network, epoch, 1);
    for (int i = 0; i < 4; ++i) s.key[4 * j + i] = words.word[i];
  }
  return s;
}

// What round r adds to the left half. Word: uint32_t, or a vector of them.
template <typename Word>
PNS_HOST_DEVICE inline Word feistel_round(const Shuffle& s, int r, Word right) {
  Word v = (right ^ s.key[r]) * 0x9E3779B1u;
  v ^= v >> 15;
  v *= 0x85EBCA77u;
  v ^= v >> 13;
  return v & s.low_mask;
}

// One pass of the network: a permutation of [0, 4^half_bits).
PNS_HOST_DEVICE inline uint32_t feistel(const Shuffle& s, uint32_t i) {
  uint32_t left = i >> s.half_bits, right = i & s.low_mask;
  for (int r = 0; r < kShuffleRounds; ++r) {
    const uint32_t next = left ^ feistel_round(s, r, right);
    left = right;
    right = next;
  }
  return (left << s.half_bits) | right;
}

PNS_HOST_DEVICE inline uint32_t shuffled(const Shuffle& s, uint32_t i) {
  do {
    i = feistel(s, i);
  } while (i >= s.n);
  return i;
}

}  // namespace
}  // namespace pns
