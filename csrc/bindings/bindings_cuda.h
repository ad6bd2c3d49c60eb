// The CUDA module's binding files: the same seam as the CPU's (bindings.h), plus a device index and a stream. Plain C++:
// they include <kernel>_cuda.h, which needs no CUDA header.
#pragma once

#include "bindings/bindings.h"

namespace pns {

void bind_masked_linear_cuda(pybind11::module_& m);
void bind_topk_mask_cuda(pybind11::module_& m);
void bind_mlp_trainer_cuda(pybind11::module_& m);
void bind_best_match_cuda(pybind11::module_& m);
void bind_existence_search_cuda(pybind11::module_& m);

}  // namespace pns
