#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "kernels/topk_mask/topk_mask.h"

namespace pns {
namespace {

Ties ties_of(bool legacy) { return legacy ? Ties::kLegacy : Ties::kIndex; }

// Addresses that may be 0: hints, thresholds.
template <typename T>
bool mask_rows(uintptr_t scores, uintptr_t masks, int64_t n_rows, int64_t n, int64_t keep, bool legacy, int n_threads,
               uintptr_t hints, uintptr_t thresholds) {
  return topk_mask_rows<T>({as_pointer<T>(scores), as_pointer<uint8_t>(masks), n_rows, n, keep, ties_of(legacy),
                            n_threads, as_pointer<T>(hints), as_pointer<T>(thresholds)});
}

template <typename T>
bool mask_arrays(const std::vector<uintptr_t>& scores, const std::vector<uintptr_t>& masks,
                 const std::vector<int64_t>& sizes, int64_t keep, bool legacy, int n_threads, uintptr_t hint,
                 uintptr_t threshold) {
  std::vector<const T*> in;
  std::vector<uint8_t*> out;
  for (uintptr_t s : scores) in.push_back(as_pointer<T>(s));
  for (uintptr_t m : masks) out.push_back(as_pointer<uint8_t>(m));
  return topk_mask<T>({static_cast<int64_t>(in.size()), in.data(), out.data(), sizes.data(), keep, ties_of(legacy),
                       n_threads, as_pointer<T>(hint), as_pointer<T>(threshold)});
}

template <typename T>
bool kth_rows(uintptr_t scores, uintptr_t values, int64_t n_rows, int64_t n, int64_t k, int n_threads,
              uintptr_t hints) {
  return kth_largest_rows<T>(as_pointer<T>(scores), n_rows, n, k, n_threads, as_pointer<T>(hints),
                             as_pointer<T>(values));
}

template <typename T>
void bind_dtype(pybind11::module_& m, const std::string& suffix) {
  m.def(("topk_mask_rows_" + suffix).c_str(), &mask_rows<T>, ReleaseGil());
  m.def(("topk_mask_arrays_" + suffix).c_str(), &mask_arrays<T>, ReleaseGil());
  m.def(("kth_largest_" + suffix).c_str(), &kth_rows<T>, ReleaseGil());
}

}  // namespace

void bind_topk_mask(pybind11::module_& m) {
  bind_dtype<float>(m, "f32");
  bind_dtype<double>(m, "f64");
  bind_dtype<Float16>(m, "f16");
  bind_dtype<BFloat16>(m, "bf16");
}

}  // namespace pns
