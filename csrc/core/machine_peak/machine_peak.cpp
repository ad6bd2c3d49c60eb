#include "core/machine_peak/machine_peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "core/machine_peak/machine_peak_body.h"
#include "core/parallel.h"
#include "core/simd_level.h"

namespace pns {
namespace {

PeakLoops loops() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return peak_loops_avx512();
    case SimdLevel::kAvx2: return peak_loops_avx2();
    default: break;
  }
#endif
  return {4, fma_loop<4>, read_loop<4>};
}

template <typename F>
double seconds_of(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// f(begin, end) over equal shares of n floats, one a thread.
template <typename F>
void for_shares(int64_t n, int n_threads, F&& f) {
  parallel_items(n_threads, n_threads, [&](int64_t t, int) { f(n * t / n_threads, n * (t + 1) / n_threads); });
}

std::atomic<float> g_sink{0};

}  // namespace

double fma_peak(double seconds, int n_threads) {
  const PeakLoops loop = loops();
  int64_t n_rounds = 1 << 16;
  auto run = [&] { parallel_items(n_threads, n_threads, [&](int64_t, int) { g_sink = loop.fma(n_rounds); }); };
  const double first = seconds_of(run);
  n_rounds = std::max<int64_t>(n_rounds, static_cast<int64_t>(n_rounds * seconds / first));
  return 2e-9 * kFmaChains * loop.lanes * n_rounds * n_threads / seconds_of(run);
}

double read_bandwidth(const void* source, int64_t n_bytes, int n_threads) {
  const PeakLoops loop = loops();
  const float* data = static_cast<const float*>(source);
  const double seconds = seconds_of([&] {
    for_shares(n_bytes / 4, n_threads, [&](int64_t begin, int64_t end) { g_sink = loop.read(data + begin, end - begin); });
  });
  return 1e-9 * n_bytes / seconds;
}

double copy_bandwidth(void* destination, const void* source, int64_t n_bytes, int n_threads) {
  const double seconds = seconds_of([&] {
    for_shares(n_bytes / 4, n_threads, [&](int64_t begin, int64_t end) {
      std::memcpy(static_cast<float*>(destination) + begin, static_cast<const float*>(source) + begin, 4 * (end - begin));
    });
  });
  return 2e-9 * n_bytes / seconds;
}

}  // namespace pns
