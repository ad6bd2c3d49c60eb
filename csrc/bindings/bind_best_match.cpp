#include "bindings/bindings.h"
#include "kernels/best_match/best_match.h"

namespace pns {
namespace {

template <typename T>
bool run(int64_t n_problems, int64_t n_targets, int64_t n_candidates, int64_t n_parameters, uintptr_t target,
         bool target_is_f64, uintptr_t support, uintptr_t candidates, uintptr_t available, uintptr_t index,
         uintptr_t scale, uintptr_t distance, int n_threads) {
  return best_match<T>({n_problems, n_targets, n_candidates, n_parameters, as_pointer<void>(target), target_is_f64,
                        as_pointer<uint8_t>(support), as_pointer<T>(candidates), as_pointer<uint8_t>(available),
                        as_pointer<int64_t>(index), as_pointer<double>(scale), as_pointer<double>(distance), n_threads});
}

}  // namespace

void bind_best_match(pybind11::module_& m) {
  m.def("best_match_f32", &run<float>, ReleaseGil());
  m.def("best_match_f64", &run<double>, ReleaseGil());
}

}  // namespace pns
