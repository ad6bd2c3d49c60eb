#include "core/machine_peak/machine_peak_body.h"

namespace pns {

PeakLoops peak_loops_avx512() { return {16, fma_loop<16>, read_loop<16>}; }

}  // namespace pns
