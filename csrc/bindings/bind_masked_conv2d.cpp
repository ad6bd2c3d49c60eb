#include "bindings/bindings.h"

#include <pybind11/stl.h>

#include <array>

#include "kernels/masked_conv2d/masked_conv2d.h"

namespace pns {
namespace {

// (B, I, H, W, O, KH, KW, stride, padding and dilation, each of rows and columns, window)
using Sizes = std::array<int64_t, 14>;

ConvShape shape_of(const Sizes& s) {
  return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13]};
}

template <typename T>
bool forward(const Sizes& sizes, uintptr_t x, uintptr_t weight, uintptr_t mask, uintptr_t bias, uintptr_t bias_mask,
             uintptr_t y, bool has_relu, uintptr_t passes, int n_threads, bool is_forced) {
  const pybind11::gil_scoped_release release;
  return masked_conv2d_forward<T>(
      {shape_of(sizes), as_pointer<T>(x), as_pointer<T>(weight), as_pointer<uint8_t>(mask), as_pointer<T>(bias),
       as_pointer<uint8_t>(bias_mask), as_pointer<T>(y), has_relu, as_pointer<uint16_t>(passes), n_threads}, is_forced);
}

template <typename T>
bool backward(const Sizes& sizes, uintptr_t grad, uintptr_t x, uintptr_t weight, uintptr_t mask, uintptr_t bias_mask,
              uintptr_t passes, uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias, int n_threads,
              bool is_forced) {
  const pybind11::gil_scoped_release release;
  return masked_conv2d_backward<T>(
      {shape_of(sizes), as_pointer<T>(grad), as_pointer<T>(x), as_pointer<T>(weight), as_pointer<uint8_t>(mask),
       as_pointer<uint8_t>(bias_mask), as_pointer<uint16_t>(passes), as_pointer<T>(grad_x), as_pointer<T>(grad_weight),
       as_pointer<T>(grad_bias), n_threads}, is_forced);
}

}  // namespace

void bind_masked_conv2d(pybind11::module_& m) {
  m.def("masked_conv2d_forward_f32", &forward<float>);
  m.def("masked_conv2d_forward_f64", &forward<double>);
  m.def("masked_conv2d_backward_f32", &backward<float>);
  m.def("masked_conv2d_backward_f64", &backward<double>);
}

}  // namespace pns
