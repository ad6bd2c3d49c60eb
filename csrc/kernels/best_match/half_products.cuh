// Half precision in pairs and the tensor cores' product, as instructions on a device and as plain C++ under the emulator,
// where sums are rounded elsewhere: what uses them allows for either.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/cuda_check.cuh"

namespace pns {
namespace {

#ifdef PNS_EMULATE_CUDA

inline float from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float x = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                          : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  if (exponent == 31) x = fraction != 0 ? NAN : INFINITY;
  return (bits >> 15) != 0 ? -x : x;
}

// To the nearest, ties to even.
inline uint16_t to_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7FFF;
  const float size = std::fabs(x);
  if (size >= 65520.0f) return sign | 0x7C00;
  if (size < 0x1p-14f) return sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f));
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // in [1/2, 1)
  const int rounded = static_cast<int>(std::nearbyint(fraction * 2048));
  return sign | static_cast<uint16_t>((exponent + 13) * 1024 + rounded);
}

inline unsigned pack_halves(float low, float high) { return to_half(low) | static_cast<unsigned>(to_half(high)) << 16; }
inline float half_of(unsigned pair, int i) { return from_half(static_cast<uint16_t>(pair >> (16 * i))); }
inline unsigned squares_plus(unsigned h, unsigned t) {
  return pack_halves(half_of(h, 0) * half_of(h, 0) + half_of(t, 0), half_of(h, 1) * half_of(h, 1) + half_of(t, 1));
}

inline unsigned least_size(unsigned least, unsigned h) {
  const float low = std::fmin(half_of(least, 0), std::fabs(half_of(h, 0)));
  return pack_halves(low, std::fmin(half_of(least, 1), std::fabs(half_of(h, 1))));
}

inline void multiply_add(float (&sums)[4], const uint4& a, unsigned b0, unsigned b1) {
  static unsigned regs[2][32][simt::kWarp][6];
  simt::Warp& warp = simt::machine().warps[threadIdx.x / simt::kWarp];
  auto& all = regs[warp.barrier.generation % 2][threadIdx.x / simt::kWarp];
  const int lane = threadIdx.x % simt::kWarp;
  const unsigned mine[6] = {a.x, a.y, a.z, a.w, b0, b1};
  std::memcpy(all[lane], mine, sizeof(mine));
  simt::wait(warp.barrier);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = sums[i];
    for (int k = 0; k < 16; ++k) {
      const float x = half_of(all[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
      sum += x * half_of(all[column * 4 + k % 8 / 2][4 + k / 8], k % 2);
    }
    sums[i] = sum;
  }
}

inline float inverse_root(float x) { return 1 / std::sqrt(x); }
inline float max_or_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b); }
inline int least_of(int a, int b, int c) { return min(min(a, b), c); }
inline void fetch_ahead(const void*) {}

#else

__device__ inline uint16_t to_half(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
__device__ inline float from_half(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ inline unsigned pack_halves(float low, float high) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
// h h + t of each half, rounded once.
__device__ inline unsigned squares_plus(unsigned h, unsigned t) {
  unsigned sum;
  asm("fma.rn.f16x2 %0, %1, %1, %2;" : "=r"(sum) : "r"(h), "r"(t));
  return sum;
}

// Of each half the lesser of `least` and |h|; a NaN counts for nothing.
__device__ inline unsigned least_size(unsigned least, unsigned h) {
  asm("{\n.reg .b32 size;\nabs.f16x2 size, %1;\nmin.f16x2 %0, %0, size;\n}" : "+r"(least) : "r"(h));
  return least;
}

// sums += a b of a warp: a [16, 16], b [16, 8], the sums [16, 8] in float32. Of lane 4 g + t, with i = 0, 1:
// a: rows g, g + 8, g, g + 8, columns 2 t + i, in the latter two 8 on; b: rows 2 t + i, then 8 on, column g;
// sums: row g, then g + 8, columns 2 t + i.
__device__ inline void multiply_add(float (&sums)[4], const uint4& a, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

__device__ inline float inverse_root(float x) {
  float root;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
__device__ inline float max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}
__device__ inline int least_of(int a, int b, int c) { return __vimin3_s32(a, b, c); }
__device__ inline void fetch_ahead(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

#endif

}  // namespace
}  // namespace pns
