#include "bindings/torch_objects.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/bindings.h"

namespace pns {
namespace {

namespace py = pybind11;

TorchObjects* objects = nullptr;  // never deleted: layers that were not differentiated yet refer to it

py::object called(py::handle function) {
  PyObject* result = PyObject_CallNoArgs(function.ptr());
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

bool is_contiguous(const dlpack::Tensor& t) {
  int64_t step = 1;
  for (int d = t.n_dims - 1; d >= 0; --d) {
    if (t.sizes[d] != 1 && t.strides[d] != step) return false;
    step *= t.sizes[d];
  }
  return true;
}

bool ask(const TorchObjects& torch, py::handle object, dlpack::Tensor& t) {
  if (torch.api->tensor_from_object(object.ptr(), &t) == 0) return true;
  PyErr_Clear();  // no memory of its own: sparse, or a transform's that has ended
  return false;
}

}  // namespace

const TorchObjects* torch_objects() { return objects; }

bool is_true(py::handle function) {
  const int truth = PyObject_IsTrue(called(function).ptr());
  if (truth < 0) throw py::error_already_set();
  return truth != 0;
}

bool is_any_true(const std::vector<py::object>& functions) {
  for (const py::object& function : functions) {
    if (is_true(function)) return true;
  }
  return false;
}

bool is_set(py::handle object, PyObject* name) {
  PyObject* value = PyObject_GetAttr(object.ptr(), name);
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value).is(py::handle(Py_True));
}

bool read_plain(const TorchObjects& torch, py::handle object, PlainTensor& plain) {
  const py::handle type(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())));
  if (!type.is(torch.tensor) && !type.is(torch.parameter)) return false;
  dlpack::Tensor t;
  if (!ask(torch, object, t) || t.device.type != dlpack::kCpu || t.data == nullptr || !is_contiguous(t)) return false;
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");  // its numbers are those at `data`, negated
  PyObject* value = PyObject_CallMethodNoArgs(object.ptr(), is_neg);
  if (value == nullptr) throw py::error_already_set();
  if (!py::reinterpret_steal<py::object>(value).is(py::handle(Py_False))) return false;
  plain = {static_cast<char*>(t.data) + t.byte_offset, t.n_dims, t.sizes, t.dtype.code, t.dtype.bits};
  return true;
}

const void* address_of(const TorchObjects& torch, py::handle object) {
  dlpack::Tensor t;
  return ask(torch, object, t) ? static_cast<const char*>(t.data) + t.byte_offset : nullptr;
}

py::object make_empty(const TorchObjects& torch, bool is_double, int64_t n_rows, int64_t n_columns, void*& data) {
  static PyObject* const names = PyTuple_Pack(1, PyUnicode_InternFromString("dtype"));
  const py::object& dtype = is_double ? torch.float64 : torch.float32;
  const py::int_ rows(n_rows), columns(n_columns);
  py::object tensor;
  if (n_rows * std::max<int64_t>(n_columns, 1) * (is_double ? 8 : 4) >= torch.smallest_large) {
    const py::tuple sizes = n_columns < 0 ? py::tuple(py::make_tuple(rows)) : py::tuple(py::make_tuple(rows, columns));
    tensor = torch.empty_large(sizes, dtype);
  } else {  // sizes one by one: to take them out of a tuple costs torch another 2 us
    PyObject* const arguments[] = {rows.ptr(), n_columns < 0 ? dtype.ptr() : columns.ptr(), dtype.ptr()};
    PyObject* made = PyObject_Vectorcall(torch.empty.ptr(), arguments, n_columns < 0 ? 1 : 2, names);
    if (made == nullptr) throw py::error_already_set();
    tensor = py::reinterpret_steal<py::object>(made);
  }
  data = const_cast<void*>(address_of(torch, tensor));
  return tensor;
}

void bind_torch_objects(py::module_& m) {
  m.def("connect_torch", [](const py::dict& given) {
    const auto* api = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(py::object(given["api"]).ptr(), "dlpack_exchange_api"));
    if (api == nullptr) throw py::error_already_set();
    if (api->version.major != 1 || api->tensor_from_object == nullptr) return;
    objects = new TorchObjects{api,
                               given["tensor"],
                               given["parameter"],
                               given["float32"],
                               given["float64"],
                               given["empty"],
                               given["empty_large"],
                               given["smallest_large"].cast<int64_t>(),
                               given["is_grad_enabled"],
                               given["get_num_threads"],
                               given["modes"].cast<std::vector<py::object>>(),
                               given["watchers"].cast<std::vector<py::object>>()};
  });
}

}  // namespace pns
