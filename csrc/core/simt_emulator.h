// Runs CUDA kernels on the CPU, for tests on machines without a GPU: a .cu file compiled as C++ with PNS_EMULATE_CUDA
// takes this in place of <cuda_runtime.h>. Blocks run one after the other; the threads of a block are coroutines that
// change at barriers and warp exchanges, in an order the test picks: a result that depends on the order is a race.
// It checks what a kernel computes and that all threads meet at each barrier. It does not know the memory model (a
// missing fence), shared memory limits, or time. Shared memory keeps the values of the block before.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct CUstream_st;
using cudaStream_t = CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace pns::simt {

enum class Order { kForward, kReverse, kScattered };

constexpr int kWarp = 32, kMostThreads = 1024;
constexpr size_t kStackBytes = size_t{1} << 17;

struct Barrier {
  int expected = 0, arrived = 0;
  unsigned generation = 0;
};

// A coroutine, for good: it runs the body of one block after the other.
struct Thread {
  jmp_buf at;
  std::unique_ptr<char[]> stack;  // none: not begun yet
  const Barrier* waits_at = nullptr;
  unsigned generation = 0;  // of that barrier, on arrival
  bool is_done = false;

  bool is_waiting() const { return waits_at != nullptr && waits_at->generation == generation; }
};

struct Warp {
  Barrier barrier;
  // Exchanges alternate: a fast lane may give its next value while a slow one still reads.
  uint64_t slots[2][kWarp] = {};
};

struct Machine {
  Order order = Order::kForward;
  int device = 0, n_launches = 0;
  cudaError_t next_launch = cudaSuccess, last_error = cudaSuccess;

  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<float4> shared;  // dynamic; as much as the launch asked for, so that a sanitizer sees what is beyond
  Barrier block;
  std::function<void()> body;
  jmp_buf scheduler;
  int running = 0;
  bool has_progress = false;
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated kernel, block (%u, %u), thread %u: %s\n", blockIdx.x, blockIdx.y, threadIdx.x, what);
  std::abort();
}

// swapcontext would ask the operating system for the signal mask, every time: the host checks took four times as long.
__attribute__((noinline)) inline void change(jmp_buf& from, jmp_buf& to) {
  if (_setjmp(from) == 0) _longjmp(to, 1);
}

inline void wait(Barrier& barrier) {
  Machine& m = machine();
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  Thread& self = m.threads[m.running];
  self.waits_at = &barrier;
  self.generation = barrier.generation;
  change(self.at, m.scheduler);
}

// Each lane gives a value, `read` sees all 32.
template <typename Read>
auto exchange(unsigned lanes, uint64_t value, Read read) {
  if (lanes != 0xFFFFFFFFu) fail("only whole warps are emulated");
  Warp& warp = machine().warps[threadIdx.x / kWarp];
  uint64_t* slots = warp.slots[warp.barrier.generation % 2];
  slots[threadIdx.x % kWarp] = value;
  wait(warp.barrier);
  return read(slots);
}

inline void thread_main() {
  Machine& m = machine();
  for (Thread& self = m.threads[m.running];;) {
    m.body();
    self.is_done = true;
    change(self.at, m.scheduler);
  }
}

__attribute__((noinline)) inline void begin(Thread& thread) {
  Machine& m = machine();
  if (_setjmp(m.scheduler) != 0) return;
  thread.stack.reset(new char[kStackBytes]);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, thread_main, 0);
  setcontext(&context);
}

inline int position(Order order, int step, int n) {
  switch (order) {
    case Order::kForward: return step;
    case Order::kReverse: return n - 1 - step;
    default: return (step * 37 + 11) % n;  // 37 is odd, n a power of two
  }
}

// Runs a warp as far as it gets, so that others are far behind when it writes. Returns how many threads ended.
inline int run_warp(int warp) {
  Machine& m = machine();
  int n_ended = 0;
  for (bool has_run = true; has_run;) {
    has_run = false;
    for (int step = 0; step < kWarp; ++step) {
      m.running = warp * kWarp + position(m.order, step, kWarp);
      Thread& thread = m.threads[m.running];
      if (thread.is_done || thread.is_waiting()) continue;
      threadIdx = {static_cast<unsigned>(m.running), 0, 0};
      if (thread.stack == nullptr) {
        begin(thread);
      } else {
        change(m.scheduler, thread.at);
      }
      n_ended += thread.is_done;
      m.has_progress = has_run = true;
    }
  }
  return n_ended;
}

inline void run_block(int n_threads) {
  Machine& m = machine();
  if (m.threads.empty()) m.threads.resize(kMostThreads);  // never moved: they run on what is in them
  m.warps.assign(n_threads / kWarp, Warp{});
  for (Warp& warp : m.warps) warp.barrier.expected = kWarp;
  m.block = Barrier{n_threads, 0, 0};
  for (int t = 0; t < n_threads; ++t) {
    Thread& thread = m.threads[t];
    thread.is_done = false;
    thread.waits_at = nullptr;
  }
  const int n_warps = n_threads / kWarp;
  for (int n_left = n_threads; n_left > 0;) {
    m.has_progress = false;
    for (int step = 0; step < n_warps; ++step) n_left -= run_warp(position(m.order, step, n_warps));
    if (!m.has_progress) fail("the threads wait at different barriers");
  }
}

}  // namespace pns::simt

inline void __syncthreads() { pns::simt::wait(pns::simt::machine().block); }

inline void __syncwarp(unsigned lanes = 0xFFFFFFFFu) {
  if (lanes != 0xFFFFFFFFu) pns::simt::fail("only whole warps are emulated");
  pns::simt::wait(pns::simt::machine().warps[threadIdx.x / pns::simt::kWarp].barrier);
}

template <typename T>
T pns_shuffle(unsigned lanes, T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = pns::simt::exchange(lanes, bits, [=](const uint64_t* slots) { return slots[source]; });
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T __shfl_xor_sync(unsigned lanes, T value, int bits) {
  return pns_shuffle(lanes, value, static_cast<int>(threadIdx.x % pns::simt::kWarp) ^ bits);
}

template <typename T>
T __shfl_down_sync(unsigned lanes, T value, unsigned delta) {
  const int lane = threadIdx.x % pns::simt::kWarp, source = lane + static_cast<int>(delta);
  return pns_shuffle(lanes, value, source < pns::simt::kWarp ? source : lane);
}

template <typename T>
T __shfl_up_sync(unsigned lanes, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % pns::simt::kWarp;
  return pns_shuffle(lanes, value, static_cast<int>(lane >= delta ? lane - delta : lane));
}

template <typename T>
T __shfl_sync(unsigned lanes, T value, int source) {
  return pns_shuffle(lanes, value, source % pns::simt::kWarp);
}

inline unsigned __ballot_sync(unsigned lanes, bool is_set) {
  return pns::simt::exchange(lanes, is_set, [](const uint64_t* slots) {
    unsigned bits = 0;
    for (int lane = 0; lane < pns::simt::kWarp; ++lane) bits |= static_cast<unsigned>(slots[lane]) << lane;
    return bits;
  });
}

inline int __reduce_add_sync(unsigned lanes, int value) {
  return static_cast<int>(pns::simt::exchange(lanes, static_cast<uint32_t>(value), [](const uint64_t* slots) {
    uint32_t sum = 0;
    for (int lane = 0; lane < pns::simt::kWarp; ++lane) sum += static_cast<uint32_t>(slots[lane]);
    return sum;
  }));
}
inline bool __any_sync(unsigned lanes, bool is_set) { return __ballot_sync(lanes, is_set) != 0; }
inline bool __all_sync(unsigned lanes, bool is_set) { return __ballot_sync(lanes, is_set) == 0xFFFFFFFFu; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(unsigned bits) { return bits == 0 ? 32 : __builtin_clz(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline void __threadfence() {}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

// Rounded once each, like the intrinsics: built without FMA instructions, or with -ffp-contract=off.
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }

template <typename T>
T __ldcg(const T* address) {
  return *address;
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address += value;
  return old;
}

template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}
template <typename T>
T atomicExch(T* address, T value) {
  return std::exchange(*address, value);
}
template <typename T>
T atomicOr(T* address, T value) {
  const T old = *address;
  *address |= value;
  return old;
}

inline cudaError_t cudaPeekAtLastError() { return pns::simt::machine().last_error; }
inline cudaError_t cudaGetLastError() {
  return std::exchange(pns::simt::machine().last_error, cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = pns::simt::machine().device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  pns::simt::machine().device = device;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* address, int value, size_t n_bytes, cudaStream_t) {
  std::memset(address, value, n_bytes);
  return cudaSuccess;
}

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  pns::simt::Machine& m = pns::simt::machine();
  ++m.n_launches;
  const unsigned n_threads = config->blockDim.x;
  m.last_error = std::exchange(m.next_launch, cudaSuccess);
  if (config->gridDim.x == 0 || config->gridDim.y == 0 || config->gridDim.y > 65535 || n_threads == 0 ||
      n_threads > pns::simt::kMostThreads || n_threads % pns::simt::kWarp != 0) {
    m.last_error = cudaErrorInvalidConfiguration;
  }
  if (m.last_error != cudaSuccess) return m.last_error;
  m.body = [&] { kernel(args...); };
  m.shared.resize((config->dynamicSmemBytes + sizeof(float4) - 1) / sizeof(float4));
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = {x, y, 0};
      pns::simt::run_block(static_cast<int>(n_threads));
    }
  }
  return cudaSuccess;
}
