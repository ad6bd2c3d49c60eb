// Shared by the binding files. Python checks shapes, dtypes, devices and contiguity before a pointer leaves it
// (pns_fast/ops); addresses arrive as integers (tensor.data_ptr()). bind_plain_layers.cpp takes tensors and checks itself.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace pns {

template <typename T>
T* as_pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A kernel's report, under the GIL: calls progress(done, total) unless it is None. True: a signal's handler (Ctrl-C) or
// progress raised, and the Python error is set.
inline bool is_interrupted(const pybind11::object& progress, int64_t done, int64_t total) {
  if (PyErr_CheckSignals() != 0) return true;
  try {
    if (!progress.is_none()) progress(done, total);
    return false;
  } catch (pybind11::error_already_set& error) {
    error.restore();
    return true;
  }
}

using ReleaseGil = pybind11::call_guard<pybind11::gil_scoped_release>;

void bind_topk_mask(pybind11::module_& m);
void bind_best_match(pybind11::module_& m);
void bind_existence_search(pybind11::module_& m);
void bind_masked_linear(pybind11::module_& m);
void bind_masked_conv2d(pybind11::module_& m);
void bind_mlp_trainer(pybind11::module_& m);
void bind_machine_peak(pybind11::module_& m);
void bind_torch_objects(pybind11::module_& m);
void bind_plain_layers(pybind11::module_& m);

}  // namespace pns
