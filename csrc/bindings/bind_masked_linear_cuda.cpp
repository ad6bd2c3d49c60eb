#include "bindings/bindings_cuda.h"
#include "kernels/masked_linear/masked_linear_cuda.h"

namespace pns {
namespace {

CudaQueue queue_of(int device, uintptr_t stream) { return {device, as_pointer<CUstream_st>(stream)}; }

void count_on_device(int64_t n_networks, int64_t n_out, int64_t n_in, uintptr_t mask, uintptr_t bits, uintptr_t bits_t,
                     uintptr_t row_begin, uintptr_t row_begin_t, int device, uintptr_t stream) {
  launch_mask_count({n_networks, n_out, n_in, as_pointer<const uint8_t>(mask), as_pointer<uint32_t>(bits),
                     as_pointer<uint32_t>(bits_t), as_pointer<int32_t>(row_begin), as_pointer<int32_t>(row_begin_t)},
                    queue_of(device, stream));
}

void fill_on_device(int64_t n_rows, int64_t n_columns, uintptr_t bits, uintptr_t row_begin, uintptr_t starts,
                    uintptr_t columns, int device, uintptr_t stream) {
  launch_mask_fill({n_rows, n_columns, as_pointer<const uint32_t>(bits), as_pointer<const int32_t>(row_begin),
                    as_pointer<int32_t>(starts), as_pointer<uint16_t>(columns)},
                   queue_of(device, stream));
}

void product_on_device(int64_t n_networks, int64_t batch, int64_t n_in, int64_t n_rows, uintptr_t x, uintptr_t starts,
                       uintptr_t columns, uintptr_t weight, bool is_transposed, uintptr_t packed, uintptr_t bias,
                       uintptr_t y, int device, uintptr_t stream) {
  launch_masked_product({n_networks, batch, n_in, n_rows, as_pointer<const float>(x), as_pointer<const int32_t>(starts),
                         as_pointer<const uint16_t>(columns), as_pointer<const float>(weight), is_transposed,
                         as_pointer<float>(packed), as_pointer<const float>(bias), as_pointer<float>(y)},
                        queue_of(device, stream));
}

void outer_on_device(int64_t n_networks, int64_t batch, int64_t n_in, int64_t n_out, uintptr_t grad, uintptr_t x,
                     uintptr_t starts, uintptr_t columns, uintptr_t grad_columns, uintptr_t grad_weight, int device,
                     uintptr_t stream) {
  launch_masked_outer({n_networks, batch, n_in, n_out, as_pointer<const float>(grad), as_pointer<const float>(x),
                       as_pointer<const int32_t>(starts), as_pointer<const uint16_t>(columns),
                       as_pointer<float>(grad_columns), as_pointer<float>(grad_weight)},
                      queue_of(device, stream));
}

// Both gradients in one call from Python; grad_x, grad_weight: 0 where not wanted.
void backward_on_device(int64_t n_networks, int64_t batch, int64_t n_in, int64_t n_out, uintptr_t grad, uintptr_t x,
                        uintptr_t weight, uintptr_t starts, uintptr_t columns, uintptr_t starts_t, uintptr_t columns_t,
                        uintptr_t packed, uintptr_t grad_columns, uintptr_t grad_x, uintptr_t grad_weight, int device,
                        uintptr_t stream) {
  if (grad_x != 0) {
    product_on_device(n_networks, batch, n_out, n_in, grad, starts_t, columns_t, weight, true, packed, 0, grad_x,
                      device, stream);
  }
  if (grad_weight != 0) {
    outer_on_device(n_networks, batch, n_in, n_out, grad, x, starts, columns, grad_columns, grad_weight, device,
                    stream);
  }
}

void select_on_device(int64_t n, int64_t element_bytes, uintptr_t in, uintptr_t mask, uintptr_t out, int device,
                      uintptr_t stream) {
  launch_select({n, element_bytes, as_pointer<const void>(in), as_pointer<const uint8_t>(mask), as_pointer<void>(out)},
                queue_of(device, stream));
}

}  // namespace

void bind_masked_linear_cuda(pybind11::module_& m) {
  m.attr("mask_index_segment") = kCudaSegment;
  m.def("padded_batch", &cuda_padded_batch);
  m.def("mask_index_count", &count_on_device, ReleaseGil());
  m.def("mask_index_fill", &fill_on_device, ReleaseGil());
  m.def("masked_product", &product_on_device, ReleaseGil());
  m.def("masked_outer", &outer_on_device, ReleaseGil());
  m.def("masked_backward", &backward_on_device, ReleaseGil());
  m.def("masked_select", &select_on_device, ReleaseGil());
}

}  // namespace pns
