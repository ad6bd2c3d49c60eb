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

#include <stdexcept>
#include <string>
#include <utility>

namespace pns {

inline void cuda_check(const char* kernel, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

// Launches without synchronising; `name` is what an error says. A function instead of <<<>>>, so that the same source
// compiles under the emulator.
template <typename... Params, typename... Args>
void cuda_launch(const char* name, dim3 grid, int n_threads, cudaStream_t stream, void (*kernel)(Params...),
                 Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(n_threads));
  config.stream = stream;
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
