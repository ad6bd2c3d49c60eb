#include "bindings/bindings_cuda.h"
#include "kernels/existence_search/existence_search_cuda.h"

namespace pns {
namespace {

// Every argument by name: see CudaExistenceSearchParams. A pending signal (Ctrl-C), or what progress(done, total)
// raises, stops the call and is raised here.
void run(int64_t n_targets, int64_t n_parameters, uintptr_t theta, int64_t first, int64_t n_candidates, uint64_t seed,
         bool is_normal, double eps, uintptr_t index, uintptr_t scale, uintptr_t distance, uintptr_t candidate,
         uintptr_t n_matches, uintptr_t workspace, int device, uintptr_t stream, const pybind11::object& progress) {
  const CudaExistenceSearchParams p{
      n_targets, n_parameters, as_pointer<const double>(theta), first, n_candidates, seed, is_normal, eps,
      as_pointer<int64_t>(index), as_pointer<double>(scale), as_pointer<double>(distance),
      as_pointer<double>(candidate), as_pointer<int64_t>(n_matches), as_pointer<void>(workspace), device,
      as_pointer<CUstream_st>(stream), [&](int64_t done) {
        pybind11::gil_scoped_acquire gil;
        return is_interrupted(progress, done, n_candidates);
      }};
  bool is_complete;
  {
    pybind11::gil_scoped_release release;
    is_complete = run_existence_search(p);
  }
  if (!is_complete || is_interrupted(progress, n_candidates, n_candidates)) throw pybind11::error_already_set();
}

}  // namespace

void bind_existence_search_cuda(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("existence_search_workspace", &existence_search_workspace);
  m.def("existence_search", &run, py::kw_only(), py::arg("n_targets"), py::arg("n_parameters"), py::arg("theta"),
        py::arg("first"), py::arg("n_candidates"), py::arg("seed"), py::arg("is_normal"), py::arg("eps"),
        py::arg("index"), py::arg("scale"), py::arg("distance"), py::arg("candidate"), py::arg("n_matches"),
        py::arg("workspace"), py::arg("device"), py::arg("stream"), py::arg("progress"));
}

}  // namespace pns
