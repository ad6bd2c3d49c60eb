// The machine's ceilings, which the benchmark reports every kernel against: multiply-adds a second and bytes a second.
#pragma once

#include <cstdint>

namespace pns {

// GFLOP/s of independent float32 FMAs in registers, 2 a multiply-add, for about `seconds`.
double fma_peak(double seconds, int n_threads);
// GB/s of one pass that reads n_bytes; of one that copies them (read + written bytes counted).
double read_bandwidth(const void* source, int64_t n_bytes, int n_threads);
double copy_bandwidth(void* destination, const void* source, int64_t n_bytes, int n_threads);

// One thread's share, compiled per SIMD level. The results keep the compiler from dropping the loops.
struct PeakLoops {
  int lanes;
  float (*fma)(int64_t n_rounds);  // kFmaChains FMAs of `lanes` a round
  float (*read)(const float* source, int64_t n);
};
constexpr int kFmaChains = 12;  // 2 units x 4 cycles of latency = 8 chains keep them busy; 12 leaves slack
PeakLoops peak_loops_avx2();
PeakLoops peak_loops_avx512();

}  // namespace pns
