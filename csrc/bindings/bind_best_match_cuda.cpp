#include "bindings/bindings_cuda.h"
#include "kernels/best_match/best_match_cuda.h"

namespace pns {
namespace {

// Every argument by name: see CudaBestMatchParams.
void best_match_on_device(int64_t n_problems, int64_t n_targets, int64_t n_candidates, int64_t n_parameters,
                          uintptr_t target, bool target_is_f64, uintptr_t support, uintptr_t candidates,
                          bool candidates_are_f64, uintptr_t available, uintptr_t index, uintptr_t scale,
                          uintptr_t distance, bool results_are_f64, uintptr_t workspace, int device, uintptr_t stream) {
  launch_best_match({n_problems, n_targets, n_candidates, n_parameters, as_pointer<const void>(target), target_is_f64,
                     as_pointer<const uint8_t>(support), as_pointer<const void>(candidates), candidates_are_f64,
                     as_pointer<const uint8_t>(available), as_pointer<int64_t>(index), as_pointer<void>(scale),
                     as_pointer<void>(distance), results_are_f64, as_pointer<void>(workspace), device,
                     as_pointer<CUstream_st>(stream)});
}

}  // namespace

void bind_best_match_cuda(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("best_match_workspace", &best_match_workspace);
  m.def("best_match", &best_match_on_device, ReleaseGil(), py::kw_only(), py::arg("n_problems"), py::arg("n_targets"),
        py::arg("n_candidates"), py::arg("n_parameters"), py::arg("target"), py::arg("target_is_f64"),
        py::arg("support"), py::arg("candidates"), py::arg("candidates_are_f64"), py::arg("available"),
        py::arg("index"), py::arg("scale"), py::arg("distance"), py::arg("results_are_f64"),
        py::arg("workspace"), py::arg("device"), py::arg("stream"));
}

}  // namespace pns
