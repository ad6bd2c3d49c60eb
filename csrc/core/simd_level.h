// Which compiled copy of a kernel body runs: chosen once by cpuid, forced by PNS_SIMD or set_simd_level (tests).
#pragma once

#include <string>

namespace pns {

enum class SimdLevel { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

SimdLevel simd_level();
SimdLevel best_simd_level();
std::string simd_level_name(SimdLevel level);
// Throws std::invalid_argument for an unknown name or a level this processor does not have.
void set_simd_level(const std::string& name);

}  // namespace pns
