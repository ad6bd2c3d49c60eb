#include <pybind11/stl.h>

#include <vector>

#include "bindings/bindings_cuda.h"
#include "kernels/topk_mask/topk_mask_cuda.h"

namespace pns {
namespace {

// Addresses that may be 0: the mask (then only thresholds are written), hints, thresholds.
void topk_mask_on_device(ScoreType type, uintptr_t scores, uintptr_t mask, uintptr_t hints, uintptr_t thresholds,
                         uintptr_t workspace, int64_t n_rows, int64_t n, int64_t keep, bool legacy, int device,
                         uintptr_t stream) {
  launch_topk_mask({type, as_pointer<const void>(scores), as_pointer<uint8_t>(mask), nullptr, 0,
                    as_pointer<const void>(hints), as_pointer<void>(thresholds), as_pointer<void>(workspace), n_rows,
                    n, keep, legacy ? Ties::kLegacy : Ties::kIndex, device, as_pointer<CUstream_st>(stream)});
}

void topk_mask_list_on_device(ScoreType type, const std::vector<uintptr_t>& scores,
                              const std::vector<uintptr_t>& masks, const std::vector<int64_t>& sizes, uintptr_t hint,
                              uintptr_t threshold, uintptr_t workspace, int64_t n, int64_t keep, bool legacy,
                              int device, uintptr_t stream) {
  std::vector<CudaTensor> tensors;
  for (size_t t = 0; t < sizes.size(); ++t) {
    tensors.push_back({as_pointer<const void>(scores[t]), as_pointer<uint8_t>(masks[t]), sizes[t]});
  }
  launch_topk_mask({type, nullptr, nullptr, tensors.data(), static_cast<int64_t>(tensors.size()),
                    as_pointer<const void>(hint), as_pointer<void>(threshold), as_pointer<void>(workspace), 1, n, keep,
                    legacy ? Ties::kLegacy : Ties::kIndex, device, as_pointer<CUstream_st>(stream)});
}

}  // namespace

void bind_topk_mask_cuda(pybind11::module_& m) {
  pybind11::enum_<ScoreType>(m, "ScoreType")
      .value("f32", ScoreType::kFloat32)
      .value("f16", ScoreType::kFloat16)
      .value("bf16", ScoreType::kBFloat16);
  m.def("topk_mask_workspace", &topk_mask_workspace);
  m.def("topk_mask", &topk_mask_on_device, ReleaseGil());
  m.def("topk_mask_list", &topk_mask_list_on_device, ReleaseGil());
}

}  // namespace pns
