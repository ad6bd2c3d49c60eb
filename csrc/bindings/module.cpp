#include "bindings/bindings.h"
#include "core/simd_level.h"

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of pns_fast over raw pointers; call them through pns_fast.ops.";
  m.def("simd_level", [] { return pns::simd_level_name(pns::simd_level()); });
  m.def("best_simd_level", [] { return pns::simd_level_name(pns::best_simd_level()); });
  m.def("set_simd_level", &pns::set_simd_level, pybind11::arg("name"));
  pns::bind_topk_mask(m);
  pns::bind_best_match(m);
  pns::bind_existence_search(m);
  pns::bind_masked_linear(m);
  pns::bind_masked_conv2d(m);
  pns::bind_mlp_trainer(m);
  pns::bind_machine_peak(m);
  pns::bind_torch_objects(m);
  pns::bind_plain_layers(m);
}
