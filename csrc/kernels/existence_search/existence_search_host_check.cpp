// The CUDA source of existence_search, run on the CPU by the emulator and compared, bit for bit, with the CPU's own code.
// A program of its own:
//   c++ -std=c++17 -O1 -I csrc csrc/kernels/existence_search/existence_search_host_check.cpp && ./a.out
// python_tests/test_cuda_sources.py builds and runs it. It prints what it covered; on the first difference it says which
// case and ends with status 1.
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <future>
#include <limits>
#include <mutex>
#include <new>
#include <random>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

// Apart, since both sides have a Search, a draw and so on.
namespace on_cpu {
#include "core/thread_team.cpp"
#include "kernels/best_match/best_match.cpp"
#define Worker SearchWorker  // both files have one
#include "kernels/existence_search/existence_search.cpp"
#undef Worker
}  // namespace on_cpu

#define PNS_EMULATE_CUDA 1
#include "kernels/existence_search/existence_search.cu"

#include "core/host_check.h"

namespace pns {
namespace {

struct Case {
  int64_t t, k, first, n;
  bool is_normal;
  double eps;
  uint64_t seed = 11;
  double scale = 1;
};

struct Output {
  std::vector<int64_t> index, n_matches;
  std::vector<double> scale, distance, candidate;
  Output(int64_t t, int64_t k) : index(t, 77), n_matches(t, 77), scale(t, 77), distance(t, 77), candidate(t * k, 77) {}
};

bool same_bits(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(a)) == 0;
}

std::vector<double> targets(const Case& c) {
  std::mt19937 random(static_cast<uint32_t>(c.t * 31 + c.k));
  std::vector<double> theta(c.t * c.k);
  for (double& x : theta) x = (static_cast<double>(random() % 2000) - 999.5) / 1000 * c.scale;
  return theta;
}

Output on_the_cpu(const Case& c, const std::vector<double>& theta) {
  Output out(c.t, c.k);
  REQUIRE(on_cpu::pns::existence_search({c.t, c.k, theta.data(), c.first, c.n, c.seed, c.is_normal, c.eps,
                                         out.index.data(), out.scale.data(), out.distance.data(), out.candidate.data(),
                                         out.n_matches.data(), 1, nullptr}),
          "stopped");
  return out;
}

Output emulated(const Case& c, const std::vector<double>& theta, std::function<bool(int64_t)> should_stop = nullptr) {
  Output out(c.t, c.k);
  Guarded workspace(existence_search_workspace(c.t, c.k) + 256, 0);
  auto* aligned = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data()) + 255) / 256 * 256);
  simt::machine().order = static_cast<simt::Order>(n_cases % 3);
  const bool is_done = run_existence_search(
      {c.t, c.k, theta.data(), c.first, c.n, c.seed, c.is_normal, c.eps, out.index.data(), out.scale.data(),
       out.distance.data(), out.candidate.data(), out.n_matches.data(), aligned, 0, nullptr, should_stop});
  REQUIRE(is_done || should_stop, "stopped");
  REQUIRE(workspace.is_intact(), "wrote outside the workspace");
  return out;
}

void check(const Case& c) {
  const std::vector<double> theta = targets(c);
  const Output expected = on_the_cpu(c, theta), got = emulated(c, theta);
  for (int64_t t = 0; t < c.t; ++t) {
    bool is_same = got.index[t] == expected.index[t] && got.n_matches[t] == expected.n_matches[t] &&
                   same_bits(got.scale[t], expected.scale[t]) && same_bits(got.distance[t], expected.distance[t]);
    for (int64_t i = t * c.k; i < (t + 1) * c.k; ++i) is_same &= same_bits(got.candidate[i], expected.candidate[i]);
    REQUIRE(is_same,
            "target %lld: (%lld, %lld, %.17g, %.17g) instead of (%lld, %lld, %.17g, %.17g) (T %lld, k %lld, first %lld, "
            "n %lld, %s, eps %g)",
            (long long)t, (long long)got.index[t], (long long)got.n_matches[t], got.scale[t], got.distance[t],
            (long long)expected.index[t], (long long)expected.n_matches[t], expected.scale[t], expected.distance[t],
            (long long)c.t, (long long)c.k, (long long)c.first, (long long)c.n, c.is_normal ? "normal" : "uniform",
            c.eps);
  }
  ++n_cases;
}

void check_searches() {
  for (bool is_normal : {false, true}) {
    for (auto [t, k] : {std::pair<int64_t, int64_t>{1, 1}, {1, 2}, {3, 2}, {4, 3}, {5, 5}, {9, 8}, {2, 64}, {1, 200}}) {
      for (auto [first, n] : {std::pair<int64_t, int64_t>{0, 1}, {63, 1}, {60, 7}, {5, 130}, {77, 9000}}) {
        for (double eps : {-1.0, 0.3}) check({t, k, first, n, is_normal, eps});
      }
    }
    check({2, 3, 0, 200'000, is_normal, 0.02});  // three launches
    check({1, 2, 40, 200'000, is_normal, 1e-4});
  }
  check({2050, 2, 0, 500, false, 0.1});  // more targets than a block counts
  for (int64_t at : {int64_t{1} << 32, int64_t{1} << 34, int64_t{1} << 36, int64_t{1} << 61}) {
    check({2, 3, at - 1500, 3000, false, 0.2, (uint64_t{1} << 63) - 1});
  }
  check({3, 4, 0, 5000, false, 0.25e180, 3, 1e180});
  check({3, 4, 0, 5000, true, 0.25e-180, 3, 1e-180});
}

// All numbers that a word can become.
void check_normal_numbers() {
  std::vector<float> values;
  for (int64_t i = 0; i < 1 << 25; i += i % 4096 == 0 ? 1 : 37) {
    values.push_back(static_cast<float>((static_cast<int32_t>(static_cast<uint32_t>(i) << 7) >> 7) | 1));
  }
  for (int i = 0; i < 4096; ++i) values.push_back(static_cast<float>((1 << 24) - 1 - 2 * i));
  while (values.size() % 4 != 0) values.push_back(1);
  std::vector<float> expected = values;
  on_cpu::pns::to_normal<4>(expected.data(), static_cast<int64_t>(expected.size()));
  for (size_t i = 0; i < values.size(); ++i) {
    const float got = to_normal(values[i]);
    REQUIRE(std::memcmp(&got, &expected[i], sizeof(got)) == 0, "%.9g becomes %.9g instead of %.9g", values[i], got,
            expected[i]);
  }
  ++n_cases;
}

void check_host_side() {
  simt::Machine& m = simt::machine();
  const Case c{1, 3, 0, 100, false, -1};
  m.next_launch = cudaErrorInvalidConfiguration;
  std::string message;
  try {
    emulated(c, targets(c));
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  REQUIRE(message == "existence_search: invalid configuration argument", "'%s'", message.c_str());
  check(c);
  // A launch of so many parameters and targets holds no more than the first: it asks after each.
  Case slow{4, 6000, 0, 3 * kFirstLaunch, false, -1};
  slow.t = 1 << 18;
  REQUIRE(static_cast<int64_t>(kWorkOfLaunch / (double(slow.k) * (slow.t + 16))) < kFirstLaunch, "%g", kWorkOfLaunch);
  for (auto [t, k] : {std::pair<int64_t, int64_t>{1, 1}, {128, 8}, {5000, 5}, {1, 190}, {3, 5000}}) {
    const Layout layout = make_layout(t, k);
    REQUIRE(layout.n_threads >= kWarpSize && layout.shared_bytes <= size_t{kMostSharedBytes}, "%lld", (long long)k);
  }
  REQUIRE(m.device == 0, "device %d", m.device);
  ++n_cases;
}

}  // namespace
}  // namespace pns

int main() {
  pns::check_host_side();
  pns::check_normal_numbers();
  pns::check_searches();
  std::printf("%d cases agree\n", pns::n_cases);
}
