#include "core/machine_peak/machine_peak_body.h"

namespace pns {

PeakLoops peak_loops_avx2() { return {8, fma_loop<8>, read_loop<8>}; }

}  // namespace pns
