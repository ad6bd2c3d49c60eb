#include "bindings/bindings.h"
#include "kernels/masked_linear/masked_linear.h"

namespace pns {
namespace {

template <typename T>
void run(int product, int64_t n_networks, int64_t batch, int64_t n_in, int64_t n_out, uintptr_t x, uintptr_t grad,
         uintptr_t weight, uintptr_t mask, uintptr_t bias, uintptr_t y, int n_threads) {
  masked_linear<T>(static_cast<MaskedProduct>(product),
                   {n_networks, batch, n_in, n_out, as_pointer<T>(x), as_pointer<T>(grad), as_pointer<T>(weight),
                    as_pointer<uint8_t>(mask), as_pointer<T>(bias), as_pointer<T>(y), n_threads});
}

}  // namespace

void bind_masked_linear(pybind11::module_& m) {
  m.attr("MASKED_FORWARD") = static_cast<int>(MaskedProduct::kForward);
  m.attr("MASKED_TRANSPOSED") = static_cast<int>(MaskedProduct::kTransposed);
  m.attr("MASKED_OUTER") = static_cast<int>(MaskedProduct::kOuter);
  m.def("masked_linear_f32", &run<float>, ReleaseGil());
  m.def("masked_linear_f64", &run<double>, ReleaseGil());
}

}  // namespace pns
