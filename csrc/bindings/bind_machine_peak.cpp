#include "bindings/bindings.h"
#include "core/machine_peak/machine_peak.h"

namespace pns {

void bind_machine_peak(pybind11::module_& m) {
  m.def("fma_peak", &fma_peak, ReleaseGil());
  m.def(
      "read_bandwidth",
      [](uintptr_t source, int64_t n_bytes, int n_threads) {
        return read_bandwidth(as_pointer<void>(source), n_bytes, n_threads);
      },
      ReleaseGil());
  m.def(
      "copy_bandwidth",
      [](uintptr_t destination, uintptr_t source, int64_t n_bytes, int n_threads) {
        return copy_bandwidth(as_pointer<void>(destination), as_pointer<void>(source), n_bytes, n_threads);
      },
      ReleaseGil());
}

}  // namespace pns
