// The CUDA module: the same seam as the CPU one (raw addresses from pns_fast/ops), plus a device index and a stream.
#include <cuda_runtime.h>

#include <optional>
#include <string>

#include <pybind11/stl.h>

#include "bindings/bindings_cuda.h"

namespace pns {
namespace {

std::string version_name(int version) {  // 13000 is 13.0
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// None without a driver or a device. Creates no context on the device.
std::optional<std::string> describe_device() {
  int n_devices = 0, device = 0, major = 0, minor = 0, driver = 0, runtime = 0;
  const bool is_there = cudaGetDeviceCount(&n_devices) == cudaSuccess && n_devices > 0 &&
                        cudaGetDevice(&device) == cudaSuccess &&
                        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
                        cudaDriverGetVersion(&driver) == cudaSuccess &&
                        cudaRuntimeGetVersion(&runtime) == cudaSuccess;
  if (!is_there) {
    cudaGetLastError();  // or the next launch would report it as its own
    return std::nullopt;
  }
  return "sm_" + std::to_string(major) + std::to_string(minor) + ", driver " + version_name(driver) + ", runtime " +
         version_name(runtime);
}

}  // namespace
}  // namespace pns

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of pns_fast over raw pointers; call them through pns_fast.ops.";
  m.def("describe_device", &pns::describe_device);
  pns::bind_masked_linear_cuda(m);
  pns::bind_topk_mask_cuda(m);
  pns::bind_mlp_trainer_cuda(m);
  pns::bind_best_match_cuda(m);
  pns::bind_existence_search_cuda(m);
}
