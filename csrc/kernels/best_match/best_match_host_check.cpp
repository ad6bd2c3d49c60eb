// The CUDA source of best_match, run on the CPU by the emulator and compared, bit for bit, with the CPU's own code. A
// program of its own:
//   c++ -std=c++17 -O1 -pthread -I csrc csrc/kernels/best_match/best_match_host_check.cpp && ./a.out
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
#include <limits>
#include <mutex>
#include <new>
#include <random>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

// Apart, since both sides have a Workspace, an evaluate and so on.
namespace on_cpu {
#include "core/thread_team.cpp"
#include "kernels/best_match/best_match.cpp"
}  // namespace on_cpu

#define PNS_EMULATE_CUDA 1
#include "kernels/best_match/best_match.cu"

#include "core/host_check.h"

namespace pns {
namespace {

struct Sizes {
  int64_t n, t, c, p;
  double density = 0.4;
};

template <typename U, typename T>
struct Input {
  Sizes sizes;
  std::vector<U> target;
  std::vector<uint8_t> support, available;  // available may be empty: all
  std::vector<T> candidates;
};

template <typename U, typename T>
Input<U, T> normal_input(const Sizes& s, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Input<U, T> in{s, {}, {}, {}, {}};
  for (int64_t i = 0; i < s.n * s.t * s.p; ++i) {
    in.target.push_back(static_cast<U>(normal(random)));
    in.support.push_back(random() % 1000 < 1000 * s.density);
  }
  for (int64_t i = 0; i < s.n * s.c * s.p; ++i) in.candidates.push_back(static_cast<T>(normal(random)));
  return in;
}

struct Output {
  std::vector<int64_t> index;
  std::vector<double> scale, distance;
  explicit Output(int64_t n) : index(n, 77), scale(n, 77), distance(n, 77) {}
};

bool same_bits(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(a)) == 0;
}

template <typename U, typename T>
Output on_the_cpu(const Input<U, T>& in) {
  const Sizes& s = in.sizes;
  Output out(s.n * s.t);
  const on_cpu::pns::BestMatchParams<T> p{
      s.n, s.t, s.c, s.p, in.target.data(), sizeof(U) == 8, in.support.data(), in.candidates.data(),
      in.available.empty() ? nullptr : in.available.data(), out.index.data(), out.scale.data(), out.distance.data(), 1};
  REQUIRE(on_cpu::pns::best_match(p), "a target is not finite");
  return out;
}

template <typename U, typename T>
Output emulated(const Input<U, T>& in, const Plan& plan, const char* what) {
  const Sizes& s = in.sizes;
  Output out(s.n * s.t);
  Guarded workspace(workspace_bytes(s.n, s.t, s.c, s.p, plan) + 256, 0);
  auto* aligned = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data()) + 255) / 256 * 256);
  simt::machine().order = static_cast<simt::Order>(n_cases % 3);
  launch_plan({s.n, s.t, s.c, s.p, in.target.data(), sizeof(U) == 8, in.support.data(), in.candidates.data(),
               sizeof(T) == 8, in.available.empty() ? nullptr : in.available.data(), out.index.data(), out.scale.data(),
               out.distance.data(), true, aligned, 0, nullptr},
              plan);
  REQUIRE(workspace.is_intact(), "wrote outside the workspace (%s)", what);
  return out;
}

template <typename U, typename T>
void check(const Input<U, T>& in, const char* what, const Plan* forced = nullptr) {
  const Sizes& s = in.sizes;
  const Plan plan = forced != nullptr ? *forced : make_plan(s.n, s.t, s.c, s.p);
  const Output expected = on_the_cpu(in), got = emulated(in, plan, what);
  for (int64_t i = 0; i < s.n * s.t; ++i) {
    REQUIRE(got.index[i] == expected.index[i] && same_bits(got.scale[i], expected.scale[i]) &&
                same_bits(got.distance[i], expected.distance[i]),
            "target %lld: (%lld, %.17g, %.17g) instead of (%lld, %.17g, %.17g) (%s, N %lld, T %lld, C %lld, P %lld, "
            "tile %d, %d panels, kept %d)",
            (long long)i, (long long)got.index[i], got.scale[i], got.distance[i], (long long)expected.index[i],
            expected.scale[i], expected.distance[i], what, (long long)s.n, (long long)s.t, (long long)s.c,
            (long long)s.p, plan.tile(), plan.n_panels, plan.kept);
  }
  ++n_cases;
}

// The score kernel and its tile of 2^log2_tile candidates, also where so few would be evaluated without; panels of
// `panel` parameters where that is less than all.
Plan scored(const Sizes& s, int log2_tile, int kept, int panel = 0) {
  Plan plan = make_plan(s.n, s.t, s.c, s.p);
  plan.has_scores = true;
  plan.log2_tile = log2_tile;
  plan.kept = kept;
  plan.panel = panel > 0 ? panel : static_cast<int>(s.p);
  plan.n_panels = panel > 0 ? static_cast<int>(ceil_div<int64_t>(s.p, panel)) : 1;
  plan.has_quads = log2_tile >= 5;
  plan.n_tiles = ceil_div<int64_t>(s.c, int64_t{1} << log2_tile);
  plan.n_slots = s.p / 2 + plan.n_panels;
  plan.dense_steps = 0;
  plan.n_groups = 0;
  return plan;
}

// The tensor cores' first stage, also where there are too few candidates for it.
Plan dense(const Sizes& s, int kept, bool by_warpgroup = false) {
  Plan plan = scored(s, 7, kept);
  add_dense(s.t, s.p, &plan);
  plan.by_warpgroup = by_warpgroup;
  return plan;
}

void check_sizes() {
  for (const Sizes& s : {Sizes{1, 1, 1, 1}, {1, 1, 63, 2}, {2, 3, 64, 3}, {3, 4, 65, 8, 1.0}, {2, 20, 100, 101, 0.05},
                         {1, 60, 64, 7}, {1, 5, 3, 2}, {2, 7, 257, 9}, {1, 9, 700, 12}, {1, 33, 300, 40, 0.1}}) {
    check(normal_input<float, float>(s, 1), "plan of its own");
    check(normal_input<double, float>(s, 2), "double target");
    check(normal_input<float, double>(s, 3), "double candidates");
  }
}

void check_tiles() {
  for (int log2_tile = 2; log2_tile <= 7; ++log2_tile) {
    for (const Sizes& s : {Sizes{1, 5, 150, 8, 1.0}, {2, 9, 131, 13}, {1, 6, 40, 37, 0.2}}) {
      for (int kept : {1, 4}) {
        const Plan plan = scored(s, log2_tile, kept);
        check(normal_input<float, float>(s, 4), "tile", &plan);
        check(normal_input<double, double>(s, 5), "tile of double", &plan);
      }
    }
  }
  const Sizes s{2, 35, 90, 43, 0.3};
  for (int panel : {4, 8, 40}) {
    const Plan plan = scored(s, 3, 2, panel);
    check(normal_input<float, float>(s, 6), "panels", &plan);
    check(normal_input<float, double>(s, 7), "panels of double", &plan);
  }
}

// Runs of equal supports, of every length and start.
void check_neighbours() {
  for (int run : {2, 3, 4, 5, 9}) {
    const Sizes s{2, 13, 140, 11};
    auto in = normal_input<float, float>(s, 8 + run);
    for (int64_t t = 0; t < s.n * s.t; ++t) {
      std::copy_n(in.support.begin() + t / run * run * s.p, s.p, in.support.begin() + t * s.p);
    }
    const Plan large = scored(s, 7, 3), middle = scored(s, 5, 3);
    check(in, "neighbours", &large);
    check(in, "neighbours", &middle);
  }
}

// Every score is as near to the largest cosine^2 of its tile as kDenseRounding says, or inf where a norm over the support
// is small beside the row's largest value.
template <typename U, typename T>
void check_dense_scores(const Input<U, T>& in, const char* what, bool by_warpgroup) {
  const Sizes& s = in.sizes;
  const Plan plan = dense(s, 1, by_warpgroup);
  Output out(s.n * s.t);
  std::vector<uint64_t> memory(workspace_bytes(s.n, s.t, s.c, s.p, plan) / 8 + 64);
  launch_plan({s.n, s.t, s.c, s.p, in.target.data(), sizeof(U) == 8, in.support.data(), in.candidates.data(),
               sizeof(T) == 8, in.available.empty() ? nullptr : in.available.data(), out.index.data(), out.scale.data(),
               out.distance.data(), true, memory.data(), 0, nullptr},
              plan);
  Workspace w;
  lay_out(Problem<T>{s.n, s.t, s.c, s.p}, plan, memory.data(), &w);
  int64_t n_unknown = 0;
  for (int64_t target = 0; target < s.n * s.t; ++target) {
    if (w.info[target].dense_scale == 0) continue;
    for (int64_t tile = 0; tile < plan.n_tiles; ++tile) {
      double largest = -INFINITY, least_ratio = INFINITY;
      for (int64_t c = tile * 128; c < std::min(s.c, tile * 128 + 128); ++c) {
        const int64_t row = target / s.t * s.c + c;
        double dot = 0, norm = 0, length2 = 0, peak = 0;
        for (int64_t i = 0; i < s.p; ++i) {
          const double m = in.candidates[row * s.p + i];
          peak = std::max(peak, std::fabs(m));
          if (in.support[target * s.p + i] == 0) continue;
          const double theta = in.target[target * s.p + i];
          dot += theta * m, norm += m * m, length2 += theta * theta;
        }
        if (norm == 0 || (!in.available.empty() && in.available[row] == 0)) continue;
        // The last two where a neighbour is left over.
        const bool is_odd = peak < 0x1p-114 || norm < 2 * kLeastNorm || norm > kMostNorm / 2;
        least_ratio = std::min(least_ratio, is_odd ? 0 : norm / (peak * peak));
        largest = std::max(largest, dot * std::fabs(dot) / (norm * length2));
      }
      const float score = w.tile_score[target * plan.n_tiles + tile];
      const bool may_be_unknown = least_ratio < 2 * kLeastDenseNorm / (64 * 64);
      n_unknown += score == INFINITY;
      REQUIRE((score == INFINITY && may_be_unknown) || score == largest || std::fabs(score - largest) < kDenseRounding,
              "target %lld, tile %lld: %.9g, not %.9g (%s, P %lld)", (long long)target, (long long)tile, score, largest,
              what, (long long)s.p);
    }
  }
  if (std::getenv("PNS_VERBOSE") != nullptr) std::printf("%s: %lld unknown\n", what, (long long)n_unknown);
  ++n_cases;
}

void check_dense_of_double(const Sizes& s, const Plan& few) {
  check(normal_input<double, double>(s, 26), "dense", &few);
  for (double magnitude : {1e200, 1e-200, 1e-310, 1e30, 1e-30}) {
    auto d = normal_input<double, double>(s, 31);
    for (auto& x : d.candidates) x *= magnitude;
    for (auto& x : d.target) x *= magnitude > 1 ? 1e-100 : 1e100;
    check(d, "dense, magnitudes", &few);
  }
  auto near = normal_input<double, double>(s, 33);
  for (int64_t i = 0; i < s.n * s.c * s.p; ++i) {
    near.candidates[i] = near.target[i / (s.c * s.p) * s.t * s.p + i % s.p] * (1 + 1e-9 * near.candidates[i]);
  }
  check(near, "dense, near-parallel", &few);
}

// Of candidates in float and, where no warpgroup takes part, in double.
void check_dense(bool by_warpgroup) {
  std::mt19937 random(24);
  for (const Sizes& s : {Sizes{1, 16, 300, 64, 0.2}, {2, 21, 150, 36, 0.5}, {1, 135, 130, 16, 1.0}, {1, 7, 140, 8, 1.0},
                         {1, 9, 260, 60, 1.0}, {3, 17, 130, 8, 0.8}, {1, 20, 260, 40, 0.1}}) {
    const Plan one = dense(s, 1, by_warpgroup), few = dense(s, 3, by_warpgroup);
    check(normal_input<float, float>(s, 25), "dense", &one);
    auto in = normal_input<double, float>(s, 27);
    in.available.resize(s.n * s.c);
    for (auto& a : in.available) a = random() % 3 == 0;
    check(in, "dense, available", &few);
    check_dense_scores(in, "normal", by_warpgroup);
    for (auto& x : in.candidates) x = random() % 2 == 0 ? 0.0f : x;
    check_dense_scores(in, "half of them zero", by_warpgroup);
    check(in, "dense, half of them zero", &few);
    // Magnitudes all over a row, so that supports vanish beside it; down to what float32 only just tells from zero.
    for (double spread : {10.0, 40.0, 140.0}) {
      auto wide = normal_input<float, double>(s, 28);
      for (auto& x : wide.candidates) x *= std::exp2(spread * (random() % 1000 / 1000.0 - 1));
      for (auto& x : wide.target) x *= std::exp2f(20 * (random() % 1000 / 1000.0f - 1));
      if (!by_warpgroup) {
        check_dense_scores(wide, "wide rows", false);
        check(wide, "dense, wide rows", &few);
      }
      auto narrow = normal_input<float, float>(s, 29);
      for (int64_t i = 0; i < s.n * s.c * s.p; ++i) narrow.candidates[i] = static_cast<float>(wide.candidates[i]);
      check(narrow, "dense, wide rows of float", &one);
    }
    const float wild[] = {NAN, INFINITY, -INFINITY, 3e38f, -1e30f, 1e-30f, 1e-45f, 0.0f};
    auto odd = normal_input<float, float>(s, 30);
    for (auto& x : odd.candidates) x = random() % 50 == 0 ? wild[random() % 8] : x;
    check(odd, "dense, wild", &one);
    for (auto& x : odd.candidates) x = wild[random() % 8];
    check(odd, "dense, all wild", &few);
    // Squares that all round the same way.
    auto level = normal_input<float, float>(s, 32);
    for (auto& x : level.candidates) x = std::copysign(1 + 0.9f / 1024, x);
    for (auto& x : level.target) x = std::copysign(1 + 0.6f / 2048, x);
    check_dense_scores(level, "level", by_warpgroup);
    check(level, "dense, level", &few);
    std::fill(level.target.begin(), level.target.begin() + s.p, 0.0f);
    check(level, "dense, a target of zeros", &few);
    if (!by_warpgroup) check_dense_of_double(s, few);
  }
}

void check_ties_and_clashes() {
  std::mt19937 random(9);
  for (const Sizes& s : {Sizes{1, 30, 90, 4, 1.0}, {2, 40, 32, 5, 0.5}, {1, 12, 300, 1, 1.0}, {1, 50, 320, 3, 1.0}}) {
    auto in = normal_input<float, float>(s, 10);
    for (float& x : in.candidates) x = static_cast<float>(static_cast<int>(random() % 3) - 1);
    const Plan one = scored(s, 4, 1), two = scored(s, 7, 2);
    check(in, "small integers", &one);
    check(in, "small integers", &two);
    check(in, "small integers");
    for (int64_t t = 1; t < s.n * s.t; ++t) std::copy_n(in.target.begin(), s.p, in.target.begin() + t * s.p);
    check(in, "equal targets", &one);
    auto other = normal_input<float, float>(s, 11);
    other.target = in.target;
    check(other, "equal targets", &two);
    check(other, "equal targets");
    other.available.resize(s.n * s.c);
    for (auto& a : other.available) a = random() % 3 == 0;
    check(other, "available", &one);
    check(other, "available");
  }
}

// Many more tiles than threads, so that a target that is searched again takes several windows.
void check_windows() {
  const Sizes s{1, 80, 1200, 3, 1.0};
  auto in = normal_input<float, float>(s, 12);
  for (int64_t t = 1; t < s.t; ++t) std::copy_n(in.target.begin(), s.p, in.target.begin() + t * s.p);
  const Plan plan = scored(s, 2, 1);
  check(in, "windows", &plan);
}

void check_extremes() {
  std::mt19937 random(13);
  const float wild[] = {NAN, INFINITY, -INFINITY, 3e38f, -1e30f, 1e-30f, 1e-45f, 0.0f};
  for (const Sizes& s : {Sizes{1, 10, 150, 4, 0.7}, {1, 6, 300, 9, 1.0}}) {
    auto in = normal_input<float, float>(s, 14);
    for (auto& x : in.candidates) {
      if (random() % 6 == 0) x = wild[random() % 8];
    }
    const Plan plan = scored(s, 5, 2), small = scored(s, 2, 1);
    check(in, "wild", &plan);
    check(in, "wild", &small);
    for (double magnitude : {1e200, 1e-200, 1e-310, 1e20, 1e-25}) {
      auto d = normal_input<double, double>(s, 15);
      for (auto& x : d.candidates) x *= random() % 2 ? magnitude : 1.0;
      check(d, "magnitudes of candidates", &plan);
      for (auto& x : d.target) x *= magnitude;
      check(d, "magnitudes", &plan);
      for (auto& x : d.candidates) x = 0;
      check(d, "zeros", &small);
    }
    // Near-parallel: one and the same cosine in float32.
    auto near = normal_input<double, double>(s, 16);
    for (int64_t c = 0; c < s.c; ++c) {
      for (int64_t i = 0; i < s.p; ++i) {
        near.candidates[c * s.p + i] = near.target[i] * (1 + 1e-9 * near.candidates[c * s.p + i]);
      }
    }
    check(near, "near-parallel", &plan);
    check(near, "near-parallel", &small);
  }
}

// The CPU refuses them.
void check_targets_that_are_not_finite() {
  const Sizes s{1, 6, 150, 5, 1.0};
  const auto good = normal_input<float, float>(s, 17);
  auto bad = good;
  bad.target[1 * s.p + 2] = NAN;
  bad.target[4 * s.p] = -INFINITY;
  const Plan plan = scored(s, 7, 6);
  auto without = good;  // a target of empty support in their place
  for (int64_t t : {1, 4}) std::fill_n(without.support.begin() + t * s.p, s.p, 0);
  const Output expected = on_the_cpu(without), got = emulated(bad, plan, "not finite");
  for (int64_t t = 0; t < s.t; ++t) {
    REQUIRE(got.index[t] == expected.index[t] && same_bits(got.distance[t], expected.distance[t]), "target %lld",
            (long long)t);
  }
  REQUIRE(got.index[1] == -1 && got.scale[4] == 1 && std::isnan(got.distance[4]), "not finite");
  ++n_cases;
}

void check_plans() {
  for (int64_t c : {1, 100, 4096, 1 << 20, 1 << 27}) {
    for (int64_t p : {0, 1, 64, 101, 1000, 2305, 4608, 25089}) {
      for (int64_t n : {1, 25, 1000}) {
        const Plan plan = make_plan(n, 128, c, p);
        REQUIRE(tile_bytes(plan.log2_tile, plan.panel) <= kLargeTileBytes, "%lld x %lld", (long long)c, (long long)p);
        REQUIRE(plan.n_tiles * plan.tile() >= c && int64_t{plan.n_panels} * plan.panel >= p, "%lld", (long long)c);
        REQUIRE(plan.n_panels == 1 || (!plan.has_quads && plan.panel % 4 == 0), "%lld", (long long)p);
        REQUIRE(!plan.has_quads || plan.n_threads == kThreads, "%lld", (long long)p);
        REQUIRE(plan.dense_steps == 0 || (plan.has_quads && plan.tile() == kDenseTile), "%lld", (long long)p);
        REQUIRE(16 * plan.dense_steps >= p || plan.dense_steps == 0, "%lld", (long long)p);
        REQUIRE(plan.tile() <= plan.n_threads && plan.kept <= kMostKept, "%lld", (long long)p);
      }
    }
  }
  ++n_cases;
}

void check_host_side() {
  simt::Machine& m = simt::machine();
  const auto in = normal_input<float, float>({1, 2, 5, 3, 1.0}, 18);
  m.next_launch = cudaErrorInvalidConfiguration;
  std::string message;
  try {
    emulated(in, make_plan(1, 2, 5, 3), "error");
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  REQUIRE(message == "best_match: invalid configuration argument", "'%s'", message.c_str());
  check(in, "after an error");
  const int before = m.n_launches;
  check(normal_input<float, float>({0, 4, 5, 3}, 19), "no problem");
  check(normal_input<float, float>({2, 0, 5, 3}, 20), "no target");
  REQUIRE(m.n_launches == before && best_match_workspace(0, 4, 5, 3) == 0, "launched for nothing");
  check(normal_input<float, float>({2, 4, 0, 3}, 21), "no candidate");
  check(normal_input<float, float>({2, 4, 5, 0}, 22), "no parameter");
  check(normal_input<float, float>({2, 4, 300, 0}, 23), "no parameter");
  REQUIRE(m.device == 0, "device %d", m.device);
}

}  // namespace
}  // namespace pns

int main() {
  pns::check_plans();
  pns::check_host_side();
  pns::check_sizes();
  pns::check_tiles();
  pns::check_neighbours();
  pns::check_dense(false);
  pns::check_dense(true);
  pns::check_ties_and_clashes();
  pns::check_windows();
  pns::check_extremes();
  pns::check_targets_that_are_not_finite();
  std::printf("%d cases agree\n", pns::n_cases);
}
