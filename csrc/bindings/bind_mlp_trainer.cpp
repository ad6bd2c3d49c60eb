#include <pybind11/stl.h>

#include <vector>

#include "bindings/bindings.h"
#include "kernels/mlp_trainer/mlp_trainer.h"

namespace pns {
namespace {

// Every argument by name: see MlpTrainerParams. A pending signal (Ctrl-C), or what progress raises, stops the call and
// is raised here.
void run(const std::vector<int64_t>& widths, int64_t n_networks, uintptr_t parameters, uintptr_t mask, uintptr_t scores,
         uintptr_t dataset, uintptr_t keys, int64_t n_train, int64_t n_test, uintptr_t x_train, uintptr_t x_test,
         uintptr_t label_train, uintptr_t label_test, uintptr_t y_train, uintptr_t y_test, int loss, int64_t epochs,
         int64_t batch_size, int optimizer, int schedule, double lr, double beta1, double beta2, double eps,
         double weight_decay, double density, bool anneal, double dense_from, uintptr_t parameters_out,
         uintptr_t scores_out, uintptr_t mask_out, uintptr_t train_loss, uintptr_t test_loss, uintptr_t metric,
         int64_t step_epochs, double gamma, int n_threads, const pybind11::object& progress) {
  MlpTrainerParams p;
  p.n_networks = n_networks;
  p.n_layers = static_cast<int64_t>(widths.size()) - 1;
  p.widths = widths.data();
  p.parameters = as_pointer<float>(parameters);
  p.mask = as_pointer<uint8_t>(mask);
  p.scores = as_pointer<float>(scores);
  p.dataset = as_pointer<int64_t>(dataset);
  p.keys = as_pointer<int64_t>(keys);
  p.n_train = n_train, p.n_test = n_test;
  p.x_train = as_pointer<float>(x_train), p.x_test = as_pointer<float>(x_test);
  p.label_train = as_pointer<int32_t>(label_train), p.label_test = as_pointer<int32_t>(label_test);
  p.y_train = as_pointer<float>(y_train), p.y_test = as_pointer<float>(y_test);
  p.loss = static_cast<Loss>(loss);
  p.epochs = epochs, p.batch_size = batch_size;
  p.optimizer = static_cast<Optimizer>(optimizer);
  p.schedule = static_cast<Schedule>(schedule);
  p.lr = lr, p.beta1 = beta1, p.beta2 = beta2, p.eps = eps, p.weight_decay = weight_decay;
  p.step_epochs = step_epochs, p.gamma = gamma;
  p.density = density, p.anneal = anneal;
  p.dense_from = dense_from;
  p.parameters_out = as_pointer<float>(parameters_out);
  p.scores_out = as_pointer<float>(scores_out);
  p.mask_out = as_pointer<uint8_t>(mask_out);
  p.train_loss = as_pointer<double>(train_loss);
  p.test_loss = as_pointer<double>(test_loss);
  p.metric = as_pointer<double>(metric);
  p.n_threads = n_threads;
  const int64_t total = n_networks * epochs;
  p.should_stop = [&](int64_t done) {
    pybind11::gil_scoped_acquire gil;
    // The last report is made once, when everything has been written.
    return is_interrupted(done < total ? progress : pybind11::none(), done, total);
  };
  bool is_complete;
  {
    pybind11::gil_scoped_release release;
    is_complete = mlp_trainer(p);
  }
  if (!is_complete || is_interrupted(progress, total, total)) throw pybind11::error_already_set();
}

}  // namespace

void bind_mlp_trainer(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("mlp_dense_from", &mlp_dense_from, "Kept fraction from which a layer is dense, at the SIMD level in force.");
  m.attr("LOSSES") = py::dict(py::arg("cross_entropy") = static_cast<int>(Loss::kCrossEntropy),
                              py::arg("mse") = static_cast<int>(Loss::kMeanSquaredError));
  m.attr("OPTIMIZERS") = py::dict(py::arg("gradient") = static_cast<int>(Optimizer::kGradient),
                                  py::arg("sgd") = static_cast<int>(Optimizer::kSgd),
                                  py::arg("adam") = static_cast<int>(Optimizer::kAdam));
  m.attr("SCHEDULES") = py::dict(py::arg("constant") = static_cast<int>(Schedule::kConstant),
                                 py::arg("cosine") = static_cast<int>(Schedule::kCosine),
                                 py::arg("step") = static_cast<int>(Schedule::kStep));
  m.def("mlp_trainer", &run, py::kw_only(), py::arg("widths"), py::arg("n_networks"), py::arg("parameters"),
        py::arg("mask"), py::arg("scores"), py::arg("dataset"), py::arg("keys"), py::arg("n_train"), py::arg("n_test"),
        py::arg("x_train"), py::arg("x_test"), py::arg("label_train"), py::arg("label_test"), py::arg("y_train"),
        py::arg("y_test"), py::arg("loss"), py::arg("epochs"), py::arg("batch_size"), py::arg("optimizer"),
        py::arg("schedule"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"),
        py::arg("density"), py::arg("anneal"), py::arg("dense_from"), py::arg("parameters_out"), py::arg("scores_out"),
        py::arg("mask_out"), py::arg("train_loss"), py::arg("test_loss"), py::arg("metric"), py::arg("step_epochs"),
        py::arg("gamma"), py::arg("n_threads"), py::arg("progress"));
  m.def("batch_order", [](int64_t n, int64_t seed, int64_t network, int64_t epoch, uintptr_t order) {
    batch_order(n, seed, network, epoch, as_pointer<int64_t>(order));
  });
}

}  // namespace pns
