#include "bindings/bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <vector>

#include "core/aligned_buffer.h"
#include "kernels/masked_linear/mask_pattern.h"
#include "kernels/masked_linear/masked_linear.h"

namespace pns {
namespace {

template <typename T>
void forward(int64_t n_networks, int64_t batch, int64_t n_in, int64_t n_out, uintptr_t x, uintptr_t weight,
             uintptr_t mask, uintptr_t bias, uintptr_t bias_mask, bool has_relu, uintptr_t y, int n_threads) {
  masked_linear_forward<T>({n_networks, batch, n_in, n_out, as_pointer<T>(x), as_pointer<T>(weight),
                            as_pointer<uint8_t>(mask), as_pointer<T>(bias), as_pointer<uint8_t>(bias_mask), has_relu,
                            as_pointer<T>(y), n_threads});
}

// Entries of a mask from which its backward is given what the forward found out.
constexpr int64_t kKeptFrom = 1 << 18;

// The same of one network, for a backward to come: what it is to be given, or None.
template <typename T>
std::unique_ptr<KeptWeights<T>> first_forward(int64_t batch, int64_t n_in, int64_t n_out, uintptr_t x, uintptr_t weight,
                                              uintptr_t mask, uintptr_t bias, uintptr_t bias_mask, uintptr_t y,
                                              int n_threads) {
  auto keep = n_in * n_out < kKeptFrom ? nullptr : std::make_unique<KeptWeights<T>>();
  masked_linear_forward<T>({1, batch, n_in, n_out, as_pointer<T>(x), as_pointer<T>(weight), as_pointer<uint8_t>(mask),
                            as_pointer<T>(bias), as_pointer<uint8_t>(bias_mask), false, as_pointer<T>(y), n_threads,
                            keep.get()});
  return keep;
}

template <typename T>
void backward(int64_t n_networks, int64_t batch, int64_t n_in, int64_t n_out, uintptr_t grad, uintptr_t y, uintptr_t x,
              uintptr_t weight, uintptr_t mask, uintptr_t bias_mask, uintptr_t grad_x, uintptr_t grad_weight,
              uintptr_t grad_bias, int n_threads, const KeptWeights<T>* kept) {
  masked_linear_backward<T>({n_networks, batch, n_in, n_out, as_pointer<T>(grad), as_pointer<T>(y), as_pointer<T>(x),
                             as_pointer<T>(weight), as_pointer<uint8_t>(mask), as_pointer<uint8_t>(bias_mask),
                             as_pointer<T>(grad_x), as_pointer<T>(grad_weight), as_pointer<T>(grad_bias), n_threads, kept});
}

// A layer of a chain: (I, O, weight, mask, bias, bias_mask, has_relu, y).
using ForwardLayer = std::array<uintptr_t, 8>;

template <typename T>
void chain_forward(int64_t batch, uintptr_t x, const std::vector<ForwardLayer>& layers, int n_threads) {
  const pybind11::gil_scoped_release release;
  for (const auto& [n_in, n_out, weight, mask, bias, bias_mask, has_relu, y] : layers) {
    forward<T>(1, batch, n_in, n_out, x, weight, mask, bias, bias_mask, has_relu, y, n_threads);
    x = y;
  }
}

// (I, O, y of a relu, x, weight, mask, bias_mask, grad_weight, grad_bias)
using BackwardLayer = std::array<uintptr_t, 9>;

// Of the layers, the first first; grad_x is that of the first.
template <typename T>
void chain_backward(int64_t batch, uintptr_t grad, const std::vector<BackwardLayer>& layers, uintptr_t grad_x,
                    int n_threads) {
  const pybind11::gil_scoped_release release;
  AlignedBuffer<T> between[2];  // layers, in turns: one is read while the other is written
  for (size_t l = layers.size(); l-- > 0;) {
    const auto& [n_in, n_out, y, x, weight, mask, bias_mask, grad_weight, grad_bias] = layers[l];
    uintptr_t grad_below = grad_x;
    if (l > 0) {
      between[l % 2].resize(batch * n_in);
      grad_below = reinterpret_cast<uintptr_t>(between[l % 2].data());
    }
    backward<T>(1, batch, n_in, n_out, grad, y, x, weight, mask, bias_mask, grad_below, grad_weight, grad_bias, n_threads,
                nullptr);
    grad = grad_below;
  }
}

}  // namespace

void bind_masked_linear(pybind11::module_& m) {
  pybind11::class_<KeptWeights<float>>(m, "KeptWeightsF32");
  pybind11::class_<KeptWeights<double>>(m, "KeptWeightsF64");
  m.def("masked_linear_first_forward_f32", &first_forward<float>, ReleaseGil());
  m.def("masked_linear_first_forward_f64", &first_forward<double>, ReleaseGil());
  m.def("masked_linear_forward_f32", &forward<float>, ReleaseGil());
  m.def("masked_linear_forward_f64", &forward<double>, ReleaseGil());
  m.def("masked_linear_backward_f32", &backward<float>, ReleaseGil());
  m.def("masked_linear_backward_f64", &backward<double>, ReleaseGil());
  m.def("masked_chain_forward_f32", &chain_forward<float>);
  m.def("masked_chain_forward_f64", &chain_forward<double>);
  m.def("masked_chain_backward_f32", &chain_backward<float>);
  m.def("masked_chain_backward_f64", &chain_backward<double>);
  m.def("mask_pattern_cache_bytes", &mask_pattern_cache_bytes);
  m.def("clear_mask_pattern_cache", &clear_mask_pattern_cache);
}

}  // namespace pns
