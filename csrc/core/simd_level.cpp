#include "core/simd_level.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace pns {

SimdLevel best_simd_level() {
#ifdef PNS_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return SimdLevel::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return SimdLevel::kAvx2;
  }
#endif
  return SimdLevel::kBaseline;
}

std::string simd_level_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::kAvx512: return "avx512";
    case SimdLevel::kAvx2: return "avx2";
    default: return "baseline";
  }
}

namespace {

SimdLevel parse_level(const std::string& name) {
  for (SimdLevel level : {SimdLevel::kBaseline, SimdLevel::kAvx2, SimdLevel::kAvx512}) {
    if (name != simd_level_name(level)) continue;
    if (level > best_simd_level()) {
      throw std::invalid_argument("PNS_SIMD: this processor has no " + name + " (best: " +
                                  simd_level_name(best_simd_level()) + ")");
    }
    return level;
  }
  throw std::invalid_argument("PNS_SIMD: expected baseline, avx2 or avx512, got '" + name + "'");
}

std::atomic<int> g_level{-1};

}  // namespace

SimdLevel simd_level() {
  int level = g_level.load(std::memory_order_relaxed);
  if (level < 0) {
    const char* forced = std::getenv("PNS_SIMD");
    level = static_cast<int>(forced != nullptr && *forced != '\0' ? parse_level(forced) : best_simd_level());
    g_level.store(level, std::memory_order_relaxed);
  }
  return static_cast<SimdLevel>(level);
}

void set_simd_level(const std::string& name) {
  g_level.store(static_cast<int>(parse_level(name)), std::memory_order_relaxed);
}

}  // namespace pns
