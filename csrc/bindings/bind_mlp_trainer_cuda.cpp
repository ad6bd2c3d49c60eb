#include <pybind11/stl.h>

#include <type_traits>
#include <vector>

#include "bindings/bindings_cuda.h"
#include "kernels/mlp_trainer/mlp_trainer_cuda.h"

namespace pns {
namespace {

namespace py = pybind11;
using Fields = py::class_<CudaTrainer>;

// An address, written from Python as an integer.
template <auto kMember>
void address(Fields& fields, const char* name) {
  using Pointer = std::remove_reference_t<decltype(std::declval<CudaTrainer&>().*kMember)>;
  fields.def_property(
      name, [](const CudaTrainer& t) { return reinterpret_cast<uintptr_t>(t.*kMember); },
      [](CudaTrainer& t, uintptr_t at) { t.*kMember = as_pointer<std::remove_pointer_t<Pointer>>(at); });
}

void define_addresses(Fields& f) {
  address<&CudaTrainer::widths>(f, "widths");
  address<&CudaTrainer::parameters>(f, "parameters");
  address<&CudaTrainer::mask>(f, "mask");
  address<&CudaTrainer::scores>(f, "scores");
  address<&CudaTrainer::dataset>(f, "dataset");
  address<&CudaTrainer::keys>(f, "keys");
  address<&CudaTrainer::x_train>(f, "x_train");
  address<&CudaTrainer::x_test>(f, "x_test");
  address<&CudaTrainer::label_train>(f, "label_train");
  address<&CudaTrainer::label_test>(f, "label_test");
  address<&CudaTrainer::y_train>(f, "y_train");
  address<&CudaTrainer::y_test>(f, "y_test");
  address<&CudaTrainer::rates>(f, "rates");
  address<&CudaTrainer::keep>(f, "keep");
  address<&CudaTrainer::parameters_out>(f, "parameters_out");
  address<&CudaTrainer::scores_out>(f, "scores_out");
  address<&CudaTrainer::mask_out>(f, "mask_out");
  address<&CudaTrainer::train_loss>(f, "train_loss");
  address<&CudaTrainer::test_loss>(f, "test_loss");
  address<&CudaTrainer::metric>(f, "metric");
  address<&CudaTrainer::flags>(f, "flags");
  address<&CudaTrainer::ranks>(f, "ranks");
  address<&CudaTrainer::counts>(f, "counts");
  address<&CudaTrainer::stopped>(f, "stopped");
  address<&CudaTrainer::images>(f, "images");
  address<&CudaTrainer::image_at>(f, "image_at");
  address<&CudaTrainer::stream>(f, "stream");
}

void define_numbers(Fields& f) {
  f.def_readwrite("n_networks", &CudaTrainer::n_networks);
  f.def_readwrite("n_layers", &CudaTrainer::n_layers);
  f.def_readwrite("n_parameters", &CudaTrainer::n_parameters);
  f.def_readwrite("n_train", &CudaTrainer::n_train);
  f.def_readwrite("n_test", &CudaTrainer::n_test);
  f.def_readwrite("loss", &CudaTrainer::loss);
  f.def_readwrite("optimizer", &CudaTrainer::optimizer);
  f.def_readwrite("epochs", &CudaTrainer::epochs);
  f.def_readwrite("batch_size", &CudaTrainer::batch_size);
  f.def_readwrite("beta1", &CudaTrainer::beta1);
  f.def_readwrite("one_minus_beta1", &CudaTrainer::one_minus_beta1);
  f.def_readwrite("beta2", &CudaTrainer::beta2);
  f.def_readwrite("one_minus_beta2", &CudaTrainer::one_minus_beta2);
  f.def_readwrite("eps", &CudaTrainer::eps);
  f.def_readwrite("weight_decay", &CudaTrainer::weight_decay);
  f.def_readwrite("dense_from", &CudaTrainer::dense_from);
  f.def_readwrite("device", &CudaTrainer::device);
}

// (image_bytes, shared_bytes, residence, n_threads, cost) of each network; counts: int32 [N, n_layers, 2] on the host.
std::vector<std::tuple<int64_t, int64_t, int32_t, int64_t, double>> plan(const CudaTrainer& t,
                                                                       const std::vector<int32_t>& widths,
                                                                       uintptr_t counts, int64_t max_shared_bytes) {
  std::vector<std::tuple<int64_t, int64_t, int32_t, int64_t, double>> plans;
  for (int64_t i = 0; i < t.n_networks; ++i) {
    const CudaNetworkPlan p = plan_cuda_network(t, widths.data(), as_pointer<const int32_t>(counts) + 2 * t.n_layers * i,
                                                max_shared_bytes);
    plans.emplace_back(p.image_bytes, p.shared_bytes, static_cast<int32_t>(p.residence), p.n_threads, p.cost);
  }
  return plans;
}

void train(const CudaTrainer& t, uintptr_t networks, int64_t n_group, int32_t residence, int64_t shared_bytes,
           int64_t n_threads, int64_t n_blocks, int64_t first, int64_t last) {
  launch_mlp_train(t, {as_pointer<const int32_t>(networks), n_group, static_cast<Residence>(residence), shared_bytes,
                       n_threads, n_blocks, first, last});
}

}  // namespace

void bind_mlp_trainer_cuda(py::module_& m) {
  Fields fields(m, "MlpTrainer");
  fields.def(py::init([] { return CudaTrainer{}; }));
  define_addresses(fields);
  define_numbers(fields);
  fields.def("measure", &launch_mlp_measure, ReleaseGil());
  fields.def("plan", &plan);
  fields.def("build", &launch_mlp_build, ReleaseGil());
  fields.def("train", &train, py::kw_only(), py::arg("networks"), py::arg("n_group"), py::arg("residence"),
             py::arg("shared_bytes"), py::arg("n_threads"), py::arg("n_blocks"), py::arg("first"), py::arg("last"),
             ReleaseGil());
  fields.def("store", &launch_mlp_store, ReleaseGil());
  m.attr("MLP_DENSE_FROM") = kCudaDenseFrom;
  m.attr("MLP_MAX_WIDTH") = kMaxCudaWidth;
  m.attr("MLP_MOST_THREADS") = std::vector<int>{
      most_threads(Residence::kShared), most_threads(Residence::kStreamed), most_threads(Residence::kGlobal)};
  m.attr("MLP_GLOBAL") = static_cast<int32_t>(Residence::kGlobal);
}

}  // namespace pns
