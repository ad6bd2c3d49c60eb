#include "bindings/bindings.h"

#include "kernels/masked_linear/mask_pattern.h"
#include "kernels/masked_linear/masked_linear.h"

namespace pns {
namespace {

template <typename T>
void forward(int64_t n_networks, int64_t batch, int64_t n_in, int64_t n_out, uintptr_t x, uintptr_t weight,
             uintptr_t mask, uintptr_t bias, uintptr_t y, int n_threads) {
  masked_linear_forward<T>({n_networks, batch, n_in, n_out, as_pointer<T>(x), as_pointer<T>(weight),
                            as_pointer<uint8_t>(mask), as_pointer<T>(bias), nullptr, false, as_pointer<T>(y), n_threads});
}

template <typename T>
void backward(int64_t n_networks, int64_t batch, int64_t n_in, int64_t n_out, uintptr_t grad, uintptr_t x,
              uintptr_t weight, uintptr_t mask, uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias,
              int n_threads) {
  masked_linear_backward<T>({n_networks, batch, n_in, n_out, as_pointer<T>(grad), nullptr, as_pointer<T>(x),
                             as_pointer<T>(weight), as_pointer<uint8_t>(mask), nullptr, as_pointer<T>(grad_x),
                             as_pointer<T>(grad_weight), as_pointer<T>(grad_bias), n_threads});
}

}  // namespace

void bind_masked_linear(pybind11::module_& m) {
  m.def("masked_linear_forward_f32", &forward<float>, ReleaseGil());
  m.def("masked_linear_forward_f64", &forward<double>, ReleaseGil());
  m.def("masked_linear_backward_f32", &backward<float>, ReleaseGil());
  m.def("masked_linear_backward_f64", &backward<double>, ReleaseGil());
  m.def("mask_pattern_cache_bytes", &mask_pattern_cache_bytes);
  m.def("clear_mask_pattern_cache", &clear_mask_pattern_cache);
}

}  // namespace pns
