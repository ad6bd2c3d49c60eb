// The candidates of existence_search on a device, bit for bit those of the CPU: Philox's words to odd integers
// (existence_search.h), and these to normal numbers by the operations of normal.h in their order, each rounded once.
#pragma once

#include <cstdint>

#include "core/cuda_check.cuh"

namespace pns {
namespace {

constexpr uint32_t kCandidateWord = 2;  // counter word 3
constexpr int kQuadsPerTile = 16;       // a quad: four candidates, 16 apart, that share Philox's calls

constexpr int kRounds = 10;

// A kernel's argument: the keys of all rounds are read from there as they are, where computing them took 20 registers.
struct Drawing {
  uint32_t key[kRounds][2];
  int n_parameters;
  bool is_normal;
};

inline Drawing make_drawing(uint64_t seed, int n_parameters, bool is_normal) {
  Drawing d{{}, n_parameters, is_normal};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kRounds; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    d.key[round][0] = key0;
    d.key[round][1] = key1;
  }
  return d;
}

// philox4x32 of core/philox.h.
__device__ inline uint4 philox(const Drawing& d, int64_t quad, int parameter) {
  uint4 c{static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32), static_cast<uint32_t>(parameter),
          kCandidateWord};
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = uint64_t{c.x} * 0xD2511F53u, p1 = uint64_t{c.z} * 0xCD9E8D57u;
    c = {static_cast<uint32_t>(p1 >> 32) ^ c.y ^ d.key[round][0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c.w ^ d.key[round][1], static_cast<uint32_t>(p0)};
  }
  return c;
}

__host__ __device__ inline int64_t candidate_of_quad(int64_t quad, int word) {
  return quad / kQuadsPerTile * (4 * kQuadsPerTile) + word * kQuadsPerTile + quad % kQuadsPerTile;
}

template <int kTerms>
__device__ inline float horner(float x, const float (&coefficient)[kTerms]) {
  float p = coefficient[0];
#pragma unroll
  for (int i = 1; i < kTerms; ++i) p = __fadd_rn(__fmul_rn(p, x), coefficient[i]);
  return p;
}

__device__ inline float logarithm(float y) {
  constexpr float kTerms[] = {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f,
                              1.4249322787e-1f, -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f,
                              3.3333331174e-1f};
  const int bits = __float_as_int(y);
  float exponent = static_cast<float>((bits >> 23) - 126);
  float m = __int_as_float((bits & 0x7FFFFF) | 0x3F000000);
  const bool is_low = m < 0.70710678f;
  exponent = is_low ? __fsub_rn(exponent, 1.0f) : exponent;
  m = __fsub_rn(is_low ? __fadd_rn(m, m) : m, 1.0f);
  const float square = __fmul_rn(m, m);
  float p = __fmul_rn(__fmul_rn(horner(m, kTerms), m), square);
  p = __fadd_rn(p, __fmul_rn(exponent, -2.12194440e-4f));
  p = __fsub_rn(p, __fmul_rn(0.5f, square));
  return __fadd_rn(__fadd_rn(m, p), __fmul_rn(exponent, 0.693359375f));
}

__device__ inline float to_normal(float odd) {
  constexpr float kCentre[] = {2.81022636e-8f,  3.43273939e-7f,  -3.5233877e-6f, -4.39150654e-6f, 2.1858087e-4f,
                               -1.25372503e-3f, -4.17768164e-3f, 2.46640727e-1f, 1.50140941f};
  constexpr float kTail[] = {-2.00214257e-4f, 1.00950558e-4f,  1.34934322e-3f, -3.67342844e-3f, 5.73950773e-3f,
                             -7.6224613e-3f,  9.43887047e-3f, 1.00167406f,    2.83297682f};
  const float x = __fmul_rn(odd, 1.0f / (1 << 24)), size = fabsf(x);
  const float w = -logarithm(__fmul_rn(__fsub_rn(1.0f, size), __fadd_rn(1.0f, size)));
  float p;
  if (w > 5.0f) {
    p = horner(__fsub_rn(__fsqrt_rn(w), 3.0f), kTail);
  } else {
    p = horner(__fsub_rn(w, 2.5f), kCentre);
  }
  return __fmul_rn(p, __fmul_rn(x, 1.41421356f));
}

__device__ inline float draw_from(uint32_t word, bool is_normal) {
  const float odd = static_cast<float>((static_cast<int32_t>(word) >> 7) | 1);
  return is_normal ? to_normal(odd) : odd;
}

// Parameter i of the four candidates of a quad; uniform ones times 2^24, exact.
__device__ inline float4 draw_quad(const Drawing& d, bool is_normal, int64_t quad, int i) {
  const uint4 words = philox(d, quad, i);
  return {draw_from(words.x, is_normal), draw_from(words.y, is_normal), draw_from(words.z, is_normal),
          draw_from(words.w, is_normal)};
}

__device__ inline double unit_of(bool is_normal) { return is_normal ? 1.0 : 1.0 / (1 << 24); }

// One parameter of one candidate.
__device__ inline double draw_one(const Drawing& d, int64_t candidate, int i) {
  const int64_t quad = candidate / (4 * kQuadsPerTile) * kQuadsPerTile + candidate % kQuadsPerTile;
  const int which = static_cast<int>(candidate % (4 * kQuadsPerTile)) / kQuadsPerTile;
  const uint4 words = philox(d, quad, i);
  const uint32_t word = which < 2 ? (which == 0 ? words.x : words.y) : (which == 2 ? words.z : words.w);
  return draw_from(word, d.is_normal) * unit_of(d.is_normal);
}

}  // namespace
}  // namespace pns
