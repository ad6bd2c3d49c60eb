// Masked linear layers, one behind the other, as one step of autograd on plain CPU tensors: all checks, allocations and
// products of a forward or a backward in one call from Python. At 100 x 100 what lies around the products takes several
// times as long as they do. What is not plain, or does not fit, is for the registered ops: None, and nothing was done.
#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/torch_objects.h"
#include "core/aligned_buffer.h"
#include "kernels/masked_linear/masked_linear.h"

namespace pns {
namespace {

namespace py = pybind11;

// Entries of a mask from which its backward is given what the forward found out.
constexpr int64_t kKeptFrom = 1 << 18;

struct Layer {
  int64_t n_in, n_out;
  const void *weight, *mask, *bias, *bias_mask;  // the last two may be null
  bool has_relu;
  const void* x = nullptr;
  void* y = nullptr;
  std::tuple<std::unique_ptr<KeptWeights<float>>, std::unique_ptr<KeptWeights<double>>> kept = {};
};

struct PlainLayers {
  const TorchObjects& torch;
  bool is_double = false;
  int64_t batch = 0;
  std::vector<Layer> layers = {};
  std::vector<const void*> saved = {};  // addresses of what autograd saves, in order

  py::tuple forward(const py::object& x, const py::tuple& tensors);
  py::object backward(py::handle grad, const py::tuple& tensors, const py::tuple& is_wanted);

  py::object run_forward(py::object& inner, bool is_for_backward);
  template <typename T> void run_products(bool is_for_backward);
  template <typename T>
  void run_backward(const void* grad, void* grad_x, const std::vector<void*>& grad_trained, size_t lowest);
};

int n_threads(const TorchObjects& torch) { return torch.get_num_threads().cast<int>(); }

py::tuple to_tuple(const std::vector<py::object>& objects) {
  py::tuple tuple(objects.size());
  for (size_t i = 0; i < objects.size(); ++i) tuple[i] = objects[i];
  return tuple;
}

template <typename T>
void PlainLayers::run_products(bool is_for_backward) {
  const int threads = n_threads(torch);
  const py::gil_scoped_release release;
  for (Layer& l : layers) {
    auto& kept = std::get<std::unique_ptr<KeptWeights<T>>>(l.kept);
    if (is_for_backward && l.n_in * l.n_out >= kKeptFrom) kept = std::make_unique<KeptWeights<T>>();
    masked_linear_forward<T>({1, batch, l.n_in, l.n_out, static_cast<const T*>(l.x), static_cast<const T*>(l.weight),
                              static_cast<const uint8_t*>(l.mask), static_cast<const T*>(l.bias),
                              static_cast<const uint8_t*>(l.bias_mask), l.has_relu, static_cast<T*>(l.y), threads,
                              kept.get()});
  }
}

// The last layer's output; `inner`: those of the others, one behind the other.
py::object PlainLayers::run_forward(py::object& inner, bool is_for_backward) {
  int64_t n_inner = 0;
  for (size_t l = 0; l + 1 < layers.size(); ++l) n_inner += batch * layers[l].n_out;
  void *y = nullptr, *between = nullptr;
  if (n_inner > 0) inner = make_empty(torch, is_double, n_inner, kVector, between);
  py::object output = make_empty(torch, is_double, batch, layers.back().n_out, y);
  for (size_t l = 0; l + 1 < layers.size(); ++l) {
    layers[l].y = between;
    layers[l + 1].x = between;
    between = static_cast<char*>(between) + batch * layers[l].n_out * (is_double ? 8 : 4);
  }
  layers.back().y = y;
  is_double ? run_products<double>(is_for_backward) : run_products<float>(is_for_backward);
  return output;
}

// For autograd: the output, and all tensors to save: x, `tensors`, and those of its outputs that a backward reads.
py::tuple PlainLayers::forward(const py::object& x, const py::tuple& tensors) {
  py::object inner;
  const py::object y = run_forward(inner, true);
  std::vector<py::object> kept{x};
  for (py::handle t : tensors) kept.push_back(py::reinterpret_borrow<py::object>(t));
  if (inner) {
    kept.push_back(inner);
    saved.push_back(layers.front().y);
  }
  if (layers.back().has_relu) {
    kept.push_back(y);
    saved.push_back(layers.back().y);
  }
  return py::make_tuple(y, to_tuple(kept));
}

template <typename T>
void PlainLayers::run_backward(const void* grad, void* grad_x, const std::vector<void*>& grad_trained, size_t lowest) {
  const int threads = n_threads(torch);
  std::vector<std::unique_ptr<KeptWeights<T>>> kept;  // goes with what autograd saved; taken under the GIL, by one thread
  for (Layer& l : layers) kept.push_back(std::move(std::get<std::unique_ptr<KeptWeights<T>>>(l.kept)));
  const py::gil_scoped_release release;
  AlignedBuffer<T> between[2];  // layers, in turns: one is read while the other is written
  for (size_t i = layers.size(); i-- > lowest;) {
    const Layer& l = layers[i];
    T* below = i == 0 ? static_cast<T*>(grad_x) : nullptr;
    if (i > lowest) {
      between[i % 2].resize(batch * l.n_in);
      below = between[i % 2].data();
    }
    masked_linear_backward<T>({1, batch, l.n_in, l.n_out, static_cast<const T*>(grad),
                               static_cast<const T*>(l.has_relu ? l.y : nullptr), static_cast<const T*>(l.x),
                               static_cast<const T*>(l.weight), static_cast<const uint8_t*>(l.mask),
                               static_cast<const uint8_t*>(l.bias_mask), below,
                               static_cast<T*>(grad_trained[2 * i]), static_cast<T*>(grad_trained[2 * i + 1]), threads,
                               kept[i].get()});
    grad = below;
  }
}

// `is_wanted` and the result: of what apply() was given, see plain_layers. None: for the caller to do.
py::object PlainLayers::backward(py::handle grad, const py::tuple& tensors, const py::tuple& is_wanted) {
  PlainTensor plain;
  if (is_true(torch.is_grad_enabled) || is_any_true(torch.modes) || !read_plain(torch, grad, plain) ||
      !plain.is_float(is_double) || !plain.is_matrix(batch, layers.back().n_out)) {
    return py::none();
  }
  for (size_t i = 0; i < saved.size(); ++i) {  // a hook on saved tensors may have brought others than were checked
    if (address_of(torch, tensors[i]) != saved[i]) return py::none();
  }
  py::tuple grads(is_wanted.size());
  size_t at = 0;
  const auto pass = [&] { grads[at++] = py::none(); };
  const auto grad_of = [&](int64_t n_rows, int64_t n_columns) {
    void* data = nullptr;
    const bool wants = py::handle(PyTuple_GET_ITEM(is_wanted.ptr(), at)).is(py::handle(Py_True));
    grads[at++] = wants ? make_empty(torch, is_double, n_rows, n_columns, data) : py::object(py::none());
    return data;
  };
  pass();  // these layers
  pass();  // tensors to save
  void* grad_x = grad_of(batch, layers.front().n_in);
  std::vector<void*> grad_trained;
  size_t lowest = grad_x == nullptr ? layers.size() : 0;  // below it nothing is wanted
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& l = layers[i];
    grad_trained.push_back(grad_of(l.n_out, l.n_in));
    grad_trained.push_back(l.bias == nullptr ? nullptr : grad_of(l.n_out, kVector));
    if (grad_trained[2 * i] != nullptr || grad_trained[2 * i + 1] != nullptr) lowest = std::min(lowest, i);
  }
  is_double ? run_backward<double>(plain.data, grad_x, grad_trained, lowest)
            : run_backward<float>(plain.data, grad_x, grad_trained, lowest);
  return std::move(grads);
}

// (weight, mask, bias or None, its mask or None, whether a ReLU follows); false: not plain, or does not fit.
bool read_layer(const TorchObjects& torch, const py::tuple& given, int64_t n_in, bool is_double, Layer& l) {
  const auto read_vector = [&](py::handle t, PlainTensor& plain, int64_t n) {
    return t.is_none() || (read_plain(torch, t, plain) && plain.is_vector(n));
  };
  PlainTensor weight, mask, bias{}, bias_mask{};
  if (!read_plain(torch, given[0], weight) || weight.n_dims != 2) return false;
  const int64_t n_out = weight.sizes[0];
  if (!weight.is_float(is_double) || !weight.is_matrix(n_out, n_in) || !read_plain(torch, given[1], mask) ||
      !mask.is_bool() || !mask.is_matrix(n_out, n_in) || !read_vector(given[2], bias, n_out) ||
      !read_vector(given[3], bias_mask, n_out) || (bias.data != nullptr && !bias.is_float(is_double)) ||
      (bias_mask.data != nullptr && !bias_mask.is_bool())) {
    return false;
  }
  l = {n_in, n_out, weight.data, mask.data, bias.data, bias_mask.data, given[4].cast<bool>()};
  return true;
}

// The output of `layers`, see read_layer, or None. Where a gradient is wanted it is that of `apply`, an autograd
// function's, which gets these PlainLayers, the tensors to save, and then x and of every layer the weight, and the bias
// if it has one. `is_chain`: biases are to be saved as well, and None where a weight is computed from others.
py::object plain_layers(const py::object& apply, const py::object& x, const py::list& given, bool is_chain) {
  static PyObject *const requires_grad = PyUnicode_InternFromString("requires_grad"),
                         *const is_leaf = PyUnicode_InternFromString("is_leaf");
  const TorchObjects* torch = torch_objects();
  PlainTensor input;
  if (torch == nullptr || is_any_true(torch->watchers) || !read_plain(*torch, x, input) || input.n_dims != 2 ||
      !(input.is_float(false) || input.is_float(true))) {
    return py::none();
  }
  PlainLayers run{*torch, input.is_float(true), input.sizes[0]};
  run.saved.push_back(input.data);
  bool needs_grad = is_set(x, requires_grad);
  int64_t n_in = input.sizes[1];
  std::vector<py::object> saved, differentiated{x};
  for (const py::handle item : given) {
    const auto tensors = py::reinterpret_borrow<py::tuple>(item);
    Layer l;
    if (!read_layer(*torch, tensors, n_in, run.is_double, l)) return py::none();
    if (is_chain && !is_set(tensors[0], is_leaf)) return py::none();
    const void* const addresses[] = {l.weight, l.mask, l.bias, l.bias_mask};
    for (int i = 0; i < 4; ++i) {
      const py::object tensor = tensors[i];
      if (tensor.is_none()) continue;
      const bool is_trained = i == 0 || i == 2;
      if (is_trained) {
        differentiated.push_back(tensor);
        needs_grad = needs_grad || is_set(tensor, requires_grad);
      }
      if (i == 2 && !is_chain) continue;
      saved.push_back(tensor);
      run.saved.push_back(addresses[i]);
    }
    n_in = l.n_out;
    run.layers.push_back(std::move(l));
  }
  run.layers.front().x = input.data;
  py::object inner;
  if (!needs_grad || !is_true(torch->is_grad_enabled)) return run.run_forward(inner, false);
  const py::object self = py::cast(std::make_unique<PlainLayers>(std::move(run))), tensors = to_tuple(saved);
  std::vector<PyObject*> arguments{self.ptr(), tensors.ptr()};
  for (const py::object& t : differentiated) arguments.push_back(t.ptr());
  PyObject* y = PyObject_Vectorcall(apply.ptr(), arguments.data(), arguments.size(), nullptr);
  if (y == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(y);
}

// What plain_layers was told: of each layer (has a bias, its mask, a ReLU).
py::list kinds(const PlainLayers& run) {
  py::list found;
  for (const Layer& l : run.layers) found.append(py::make_tuple(l.bias != nullptr, l.bias_mask != nullptr, l.has_relu));
  return found;
}

}  // namespace

void bind_plain_layers(py::module_& m) {
  py::class_<PlainLayers>(m, "PlainLayers")
      .def("forward", &PlainLayers::forward)
      .def("backward", &PlainLayers::backward)
      .def_property_readonly("kinds", &kinds);
  m.def("plain_layers", &plain_layers);
}

}  // namespace pns
