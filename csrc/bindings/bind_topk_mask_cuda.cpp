#include "bindings/bindings_cuda.h"
#include "kernels/topk_mask/topk_mask_cuda.h"

namespace pns {
namespace {

void topk_mask_on_device(uintptr_t scores, uintptr_t mask, uintptr_t workspace, int64_t n_rows, int64_t n, int64_t keep,
                         bool legacy, int device, uintptr_t stream) {
  launch_topk_mask({as_pointer<const float>(scores), as_pointer<uint8_t>(mask), as_pointer<void>(workspace), n_rows, n,
                    keep, legacy ? Ties::kLegacy : Ties::kIndex, device, as_pointer<CUstream_st>(stream)});
}

}  // namespace

void bind_topk_mask_cuda(pybind11::module_& m) {
  m.def("topk_mask_workspace", &topk_mask_workspace);
  m.def("topk_mask", &topk_mask_on_device, ReleaseGil());
}

}  // namespace pns
