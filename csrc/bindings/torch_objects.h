// torch's own objects from C, without linking torch. Where a tensor lies is said in 0.1 us by a table that torch offers
// from 2.10 on (dlpack.h); Python's attributes, one after the other, take 1 us. All else is asked of functions that Python
// calls too; pns_fast/ops/_masked_plain.py gives them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "bindings/dlpack.h"

namespace pns {

struct TorchObjects {
  const dlpack::ExchangeApi* api;
  pybind11::object tensor, parameter;   // types
  pybind11::object float32, float64;    // dtypes
  pybind11::object empty, empty_large;  // called with (*sizes, dtype=) and (sizes, dtype)
  int64_t smallest_large;               // bytes
  pybind11::object is_grad_enabled, get_num_threads;
  std::vector<pybind11::object> modes;     // one is true while a mode sees the ops that run,
  std::vector<pybind11::object> watchers;  // or anything else but autograd does
};

// Null where torch has no such table, or pns_fast.ops was not imported.
const TorchObjects* torch_objects();

// A contiguous tensor on the CPU and nothing else: its numbers lie at `data`, and the dispatcher has nothing to add.
struct PlainTensor {
  void* data;
  int n_dims;
  const int64_t* sizes;  // the tensor's own
  uint8_t code, bits;

  bool is_matrix(int64_t rows, int64_t columns) const { return n_dims == 2 && sizes[0] == rows && sizes[1] == columns; }
  bool is_vector(int64_t n) const { return n_dims == 1 && sizes[0] == n; }
  bool is_float(bool is_double) const { return code == dlpack::kFloat && bits == (is_double ? 64 : 32); }
  bool is_bool() const { return code == dlpack::kBool; }
};

// False for all else: a subclass, a transform's, fake or lazily negated tensor, one without numbers.
bool read_plain(const TorchObjects& torch, pybind11::handle object, PlainTensor& plain);

// Where such a tensor lies, without asking whether it is one; null if it says nothing.
const void* address_of(const TorchObjects& torch, pybind11::handle object);

constexpr int64_t kVector = -1;

// A new tensor [n_rows, n_columns], or [n_rows] with kVector columns, and its address.
pybind11::object make_empty(const TorchObjects& torch, bool is_double, int64_t n_rows, int64_t n_columns, void*& data);

bool is_true(pybind11::handle function);
bool is_any_true(const std::vector<pybind11::object>& functions);
bool is_set(pybind11::handle object, PyObject* name);

}  // namespace pns
