// What is needed of DLPack 1.x's C exchange table: of a framework's tensor object its address, sizes and dtype, from C and
// without linking the framework. https://dmlc.github.io/dlpack/latest/c_api.html (DLPackExchangeAPI)
#pragma once

#include <cstdint>

namespace pns::dlpack {

constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2, kBool = 6;

struct Version {
  uint32_t major, minor;
};

struct Tensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t n_dims;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t* sizes;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeApi {
  Version version;
  const ExchangeApi* previous;
  void* allocator;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // borrowed; not 0: a Python error is set. May be null
  void* current_stream;
};

}  // namespace pns::dlpack
