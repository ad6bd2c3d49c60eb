#include <pybind11/stl.h>

#include <vector>

#include "bindings/bindings.h"
#include "kernels/topk_mask/topk_mask.h"

namespace pns {
namespace {

// Rows each on their own: `n_rows` calls over [n_rows, n]; arrays together: one call.
template <typename T>
bool mask_rows(uintptr_t scores, uintptr_t mask, int64_t n_rows, int64_t n, int64_t keep, bool legacy, int n_threads) {
  for (int64_t r = 0; r < n_rows; ++r) {
    const T* row = as_pointer<T>(scores) + r * n;
    uint8_t* out = as_pointer<uint8_t>(mask) + r * n;
    if (!topk_mask<T>({1, &row, &out, &n, keep, legacy ? Ties::kLegacy : Ties::kIndex, n_threads})) return false;
  }
  return true;
}

template <typename T>
bool mask_arrays(const std::vector<uintptr_t>& scores, const std::vector<uintptr_t>& masks,
                 const std::vector<int64_t>& sizes, int64_t keep, bool legacy, int n_threads) {
  std::vector<const T*> in;
  std::vector<uint8_t*> out;
  for (uintptr_t s : scores) in.push_back(as_pointer<T>(s));
  for (uintptr_t m : masks) out.push_back(as_pointer<uint8_t>(m));
  return topk_mask<T>({static_cast<int64_t>(in.size()), in.data(), out.data(), sizes.data(), keep,
                       legacy ? Ties::kLegacy : Ties::kIndex, n_threads});
}

template <typename T>
bool kth_rows(uintptr_t scores, uintptr_t values, int64_t n_rows, int64_t n, int64_t k, int n_threads) {
  for (int64_t r = 0; r < n_rows; ++r) {
    if (!kth_largest<T>(as_pointer<T>(scores) + r * n, n, k, n_threads, as_pointer<T>(values) + r)) return false;
  }
  return true;
}

}  // namespace

void bind_topk_mask(pybind11::module_& m) {
  m.def("topk_mask_rows_f32", &mask_rows<float>, ReleaseGil());
  m.def("topk_mask_rows_f64", &mask_rows<double>, ReleaseGil());
  m.def("topk_mask_arrays_f32", &mask_arrays<float>, ReleaseGil());
  m.def("topk_mask_arrays_f64", &mask_arrays<double>, ReleaseGil());
  m.def("kth_largest_f32", &kth_rows<float>, ReleaseGil());
  m.def("kth_largest_f64", &kth_rows<double>, ReleaseGil());
}

}  // namespace pns
