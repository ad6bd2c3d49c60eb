// What every CUDA kernel's host side shares: errors that name the kernel, launches, the device guard.
//
// The static runtime keeps its own last error, apart from torch's: clearing it here hides nothing from torch, and not
// clearing it would make every later call fail.
#pragma once

#ifdef PNS_EMULATE_CUDA
#include "core/simt_emulator.h"
#else
#include <cuda_runtime.h>
#endif

// In a kernel: `name` is the launch's dynamic shared memory, 16-byte aligned.
#ifdef PNS_EMULATE_CUDA
#define PNS_DYNAMIC_SHARED(name) \
  unsigned char* name = reinterpret_cast<unsigned char*>(pns::simt::machine().shared.data())
#else
#define PNS_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace pns {

inline void cuda_check(const char* kernel, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

struct CudaLaunch {
  dim3 grid;
  int n_threads;
  cudaStream_t stream;
  size_t shared_bytes = 0;  // dynamic
  int cluster = 1;          // blocks a cluster
};

// How much dynamic shared memory a kernel may have is a setting of the kernel, not of a launch: without this another thread
// could lower it between the two.
inline std::mutex& shared_memory_setting() {
  static std::mutex mutex;
  return mutex;
}

// Launches without synchronising; `name` is what an error says. A function instead of <<<>>>, so that the same source
// compiles under the emulator.
template <typename... Params, typename... Args>
void cuda_launch(const char* name, const CudaLaunch& launch, void (*kernel)(Params...), Args&&... args) {
  std::unique_lock<std::mutex> lock(shared_memory_setting(), std::defer_lock);
  if (launch.shared_bytes > 0) {  // with the static shared memory it may be more than the 48 KB allowed unasked
    lock.lock();
    cuda_check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(launch.shared_bytes)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = launch.grid;
  config.blockDim = dim3(static_cast<unsigned>(launch.n_threads));
  config.stream = launch.stream;
  config.dynamicSmemBytes = launch.shared_bytes;
#ifndef PNS_EMULATE_CUDA
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(launch.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = launch.cluster > 1 ? 1 : 0;
#endif
  cuda_check(name, cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
  cuda_check(name, cudaPeekAtLastError());
}

// The device of the tensors for the time of a call; the caller's device afterwards.
class CudaDeviceGuard {
 public:
  CudaDeviceGuard(const char* kernel, int device) {
    cuda_check(kernel, cudaGetDevice(&previous_));
    is_switched_ = previous_ != device;
    if (is_switched_) cuda_check(kernel, cudaSetDevice(device));
  }
  ~CudaDeviceGuard() {
    if (is_switched_) cudaSetDevice(previous_);
  }
  CudaDeviceGuard(const CudaDeviceGuard&) = delete;
  CudaDeviceGuard& operator=(const CudaDeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool is_switched_ = false;
};

}  // namespace pns
