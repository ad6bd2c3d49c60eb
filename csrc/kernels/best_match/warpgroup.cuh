// Hopper's own instructions, as such on sm_90a and as plain C++ under the emulator: products of a warpgroup (128 threads)
// with an operand in shared memory, and bulk copies into shared memory. Other architectures have neither: there
// PNS_WARPGROUPS is not defined.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/cuda_check.cuh"
#include "kernels/best_match/half_products.cuh"

#if defined(PNS_EMULATE_CUDA) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PNS_WARPGROUPS
#endif

namespace pns {
namespace {

// Whether launches may take kernels for warpgroups: on such a device, in a build for it.
inline bool has_warpgroups([[maybe_unused]] const char* kernel, [[maybe_unused]] int device) {
#if defined(PNS_HAS_SM90A) && !defined(PNS_EMULATE_CUDA)
  int major = 0;
  cuda_check(kernel, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9;
#else
  return false;
#endif
}

// Halves in shared memory as a product takes them, row by row 8 columns = 16 bytes: 8 rows are 128 bytes, the next 8 rows
// follow, the next 8 columns lie kNextColumns on. 64 bytes more than 128 rows take: what lies in neighbours is written
// to other banks.
constexpr int kNextRows = 128, kNextColumns = 16 * kNextRows + 64;

#ifdef PNS_WARPGROUPS

struct SharedOperand {
  uint64_t bits;

#ifdef PNS_EMULATE_CUDA
  explicit SharedOperand(const void* at) : bits(reinterpret_cast<uint64_t>(at)) {}
  SharedOperand& operator+=(int bytes) { return bits += static_cast<uint64_t>(bytes), *this; }
#else
  __device__ explicit SharedOperand(const void* at) {
    const uint64_t address = static_cast<uint64_t>(__cvta_generic_to_shared(at));
    bits = address >> 4 | uint64_t{kNextColumns >> 4} << 16 | uint64_t{kNextRows >> 4} << 32;
  }
  __device__ SharedOperand& operator+=(int bytes) { return bits += bytes >> 4, *this; }
#endif
  __device__ friend SharedOperand operator+(SharedOperand a, int bytes) { return a += bytes; }
};

#ifdef PNS_EMULATE_CUDA

inline void multiply_begin() {}
inline void multiply_commit() {}
template <int kRunning>
void multiply_wait() {}
inline void keep_registers(float (&)[4][4]) {}
template <bool kAdds>
void multiply_async(float (&sums)[4][4], const uint4& a, SharedOperand b) {
  const int lane = threadIdx.x % simt::kWarp;
  for (int j = 0; j < 4; ++j) {
    const auto* row = reinterpret_cast<const unsigned char*>(b.bits) + j * kNextRows + lane / 4 * 16 + lane % 4 * 4;
    unsigned pairs[2];
    std::memcpy(&pairs[0], row, 4);
    std::memcpy(&pairs[1], row + kNextColumns, 4);
    if (!kAdds) std::memset(sums[j], 0, sizeof(sums[j]));
    multiply_add(sums[j], a, pairs[0], pairs[1]);
  }
}
inline void fence_for_products() {}

inline void init_bulk_barrier(uint64_t* barrier) { *barrier = 0; }
inline void load_bulk(void* to, const void* from, unsigned bytes, uint64_t* barrier) {
  std::memcpy(to, from, bytes);
  ++*barrier;
}
inline void wait_bulk(const uint64_t* barrier, unsigned phase) {
  if (*barrier % 2 == phase) std::abort();  // the load has not been asked for
}

#else

// Between multiply_begin and multiply_commit lie products that run together; multiply_wait returns when no more than
// kRunning such groups are left. Until then nothing may touch their sums, which keep_registers tells the compiler.
__device__ inline void multiply_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kRunning>
__device__ inline void multiply_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kRunning) : "memory");
}
__device__ inline void keep_registers(float (&sums)[4][4]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) asm volatile("" : "+f"(sums[i / 4][i % 4])::"memory");
}

// sums (+)= a b^T of a warpgroup: a [64, 16] in registers, 16 rows a warp, as multiply_add has them; b [32, 16] in shared
// memory; sums [64, 32] in float32, those of four multiply_adds in a row.
template <bool kAdds>
__device__ inline void multiply_async(float (&sums)[4][4], const uint4& a, SharedOperand b) {
  asm volatile(
      "{\n.reg .pred adds;\nsetp.ne.b32 adds, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
      "%14, %15}, {%16, %17, %18, %19}, %20, adds, 1, 1, 0;\n}"
      : "+f"(sums[0][0]), "+f"(sums[0][1]), "+f"(sums[0][2]), "+f"(sums[0][3]), "+f"(sums[1][0]), "+f"(sums[1][1]),
        "+f"(sums[1][2]), "+f"(sums[1][3]), "+f"(sums[2][0]), "+f"(sums[2][1]), "+f"(sums[2][2]), "+f"(sums[2][3]),
        "+f"(sums[3][0]), "+f"(sums[3][1]), "+f"(sums[3][2]), "+f"(sums[3][3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b.bits), "n"(kAdds ? 1 : 0));
}

// What this thread wrote to shared memory is there for products after the next barrier.
__device__ inline void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline unsigned shared_address(const void* at) {
  return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// One thread inits, then loads; all others wait behind a barrier after the first load. The phase of the n-th is n % 2.
__device__ inline void init_bulk_barrier(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Both addresses and the size are multiples of 16 bytes.
__device__ inline void load_bulk(void* to, const void* from, unsigned bytes, uint64_t* barrier) {
  const unsigned at = shared_address(barrier);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(at)
               : "memory");
}
__device__ inline void wait_bulk(uint64_t* barrier, unsigned phase) {
  asm volatile(
      "{\n.reg .pred done;\nagain_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again_%=;\n}" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}

#endif
#endif

}  // namespace
}  // namespace pns
