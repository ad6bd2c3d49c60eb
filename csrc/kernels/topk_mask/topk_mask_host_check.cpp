// The CUDA source of topk_mask, run on the CPU by the emulator and compared with a stable sort. A program of its own:
//   c++ -std=c++17 -O1 -I csrc csrc/kernels/topk_mask/topk_mask_host_check.cpp && ./a.out
// python_tests/ops/test_topk_mask_cuda.py builds and runs it. It prints what it covered; on the first difference it
// says which case and ends with status 1.
#define PNS_EMULATE_CUDA 1
#include "kernels/topk_mask/topk_mask.cu"

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "core/host_check.h"

namespace pns {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
struct Kind {
  const char* name;
  std::function<float(std::mt19937&, int64_t i, int64_t n)> score;
};

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = {
      {"normal", [](auto& r, auto, auto) { return std::normal_distribution<float>()(r); }},
      {"constant", [](auto&, auto, auto) { return 0.5f; }},
      {"four values", [](auto& r, auto, auto) { return static_cast<float>(r() % 4) - 1.0f; }},
      {"mostly zero", [](auto& r, auto, auto) { return r() % 10 == 0 ? std::normal_distribution<float>()(r) : 0.0f; }},
      {"zeros of both signs", [](auto& r, auto, auto) { return r() % 2 ? 0.0f : -0.0f; }},
      {"ascending", [](auto&, auto i, auto) { return static_cast<float>(i); }},
      {"descending", [](auto&, auto i, auto n) { return static_cast<float>(n - i); }},
      {"one last digit", [](auto& r, auto, auto) { return from_bits(0x3F800000u + r() % 1024); }},
      {"one middle digit", [](auto& r, auto, auto) { return from_bits(0xBF800000u + 1024 * (r() % 2048)); }},
      {"all but the largest equal", [](auto&, auto i, auto n) { return i == n - 1 ? 2.0f : 1.0f; }},
      {"any bits", [](auto& r, auto, auto) { return from_bits(static_cast<uint32_t>(r())); }},  // NaN and denormals
      {"half NaN", [](auto& r, auto, auto) { return r() % 2 ? kNaN : static_cast<float>(r() % 8); }},
      {"only NaN", [](auto& r, auto, auto) { return r() % 2 ? kNaN : -kNaN; }},
      {"ends", [](auto& r, auto, auto) {
         const float values[] = {-kInfinity, kInfinity, kNaN, -3.4e38f, 3.4e38f, 0.0f, 1e-45f};
         return values[r() % 7];
       }},
  };
  return all;
}

// Independent of ranked_key: compares floats.
bool is_above(float a, float b) {
  if (std::isnan(a)) return false;
  return std::isnan(b) || a > b;
}

std::vector<uint8_t> expected_mask(const float* scores, int64_t n, int64_t keep, Ties ties) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return is_above(scores[a], scores[b]); });
  std::vector<uint8_t> mask(n, 0);
  for (int64_t r = 0; r < keep; ++r) {
    const bool is_kept = ties == Ties::kIndex || keep == n || is_above(scores[order[r]], scores[order[keep]]);
    mask[order[r]] = is_kept;
  }
  return mask;
}

// Forced plan: nullptr for the one the kernel would take itself.
void check(const Kind& kind, int64_t n_rows, int64_t n, int64_t keep, Ties ties, int64_t offset, const Plan* forced) {
  std::mt19937 random(static_cast<uint32_t>(n_rows * 1000003 + n * 31 + keep));
  std::vector<float> storage(n_rows * n + offset);
  float* scores = storage.data() + offset;
  for (int64_t i = 0; i < n_rows * n; ++i) scores[i] = kind.score(random, i % n, n);
  const Plan plan = forced != nullptr ? *forced : make_plan(n_rows, n);
  Guarded mask(n_rows * n, offset % 3), workspace(workspace_bytes(n_rows, plan), 0);
  simt::machine().order = static_cast<simt::Order>(n_cases % 3);
  const CudaTopkMaskParams p{scores, mask.data(), workspace.data(), n_rows, n, keep, ties, 0, nullptr};
  if (forced != nullptr && 0 < keep && keep < n) {
    launch_plan(p, plan);
  } else {
    launch_topk_mask(p);
  }
  for (int64_t row = 0; row < n_rows; ++row) {
    const auto expected = expected_mask(scores + row * n, n, keep, ties);
    for (int64_t i = 0; i < n; ++i) {
      REQUIRE(mask.data()[row * n + i] == expected[i],
              "mask[%lld, %lld] is %d (%s, %lld x %lld, keep %lld, %s, offset %lld, chunk %lld)", (long long)row,
              (long long)i, mask.data()[row * n + i], kind.name, (long long)n_rows, (long long)n, (long long)keep,
              ties == Ties::kLegacy ? "legacy" : "index", (long long)offset, (long long)plan.chunk);
    }
  }
  REQUIRE(mask.is_intact() && workspace.is_intact(), "wrote outside (%s, %lld x %lld)", kind.name, (long long)n_rows,
          (long long)n);
  ++n_cases;
}

void check_keeps(const Kind& kind, int64_t n_rows, int64_t n, int64_t offset, const Plan* forced) {
  std::vector<int64_t> keeps = {0, 1, n / 10, n / 2, n - 1, n};
  std::sort(keeps.begin(), keeps.end());
  keeps.erase(std::unique(keeps.begin(), keeps.end()), keeps.end());
  for (int64_t keep : keeps) {
    for (Ties ties : {Ties::kIndex, Ties::kLegacy}) check(kind, n_rows, n, keep, ties, offset, forced);
  }
}

// Small chunks and blocks: more of them than a real plan has, in less time.
Plan chunks_of(int64_t n, int64_t chunk) { return {false, kSmallThreads, ceil_div(n, chunk), chunk}; }

void check_masks() {
  const Plan chunks = chunks_of(1501, 384), many_chunks = chunks_of(128 * 140 + 5, 128);
  int64_t offset = 0;
  for (const Kind& kind : kinds()) {
    for (int64_t n : {2, 33, 257}) check_keeps(kind, 2, n, offset++ % 4, nullptr);
    for (int64_t keep : {1, 800, 1500}) check(kind, 1, 1501, keep, Ties::kIndex, offset++ % 4, &chunks);
    check(kind, 2, 1501, 300, Ties::kLegacy, offset++ % 4, &chunks);
    // The larger block of a row, then the chunks of a real plan.
    for (int64_t keep : {700, 2499}) check(kind, 1, 2500, keep, Ties::kIndex, offset++ % 4, nullptr);
    for (int64_t keep : {23333, 69999}) check(kind, 1, 70001, keep, Ties::kIndex, offset++ % 4, nullptr);
  }
  check_keeps(kinds()[2], 3, 1501, 2, &chunks);
  for (int64_t n = 1; n < 70; n += 4) check_keeps(kinds()[10], 5, n, n % 4, nullptr);
  // More blocks than a block has threads, the last kept tie in one of the late ones.
  check(kinds()[1], 1, 128 * 140 + 5, 128 * 135 + 7, Ties::kIndex, 1, &many_chunks);
}

// More rows than blocks: a block goes on with another row.
void check_row_loop() {
  const int64_t n_rows = 5, n = 40, keep = 9;
  std::mt19937 random(7);
  std::vector<float> scores(n_rows * n);
  for (float& x : scores) x = static_cast<float>(random() % 8);
  std::vector<uint8_t> mask(n_rows * n, kPoison);
  const Rows rows{scores.data(), mask.data(), n_rows, n, keep, true};
  const Plan plan = make_plan(n_rows, n);
  cuda_launch("topk_mask", {dim3(2), plan.n_threads, nullptr}, topk_rows_kernel, rows, plan);
  for (int64_t row = 0; row < n_rows; ++row) {
    const auto expected = expected_mask(scores.data() + row * n, n, keep, Ties::kIndex);
    REQUIRE(std::equal(expected.begin(), expected.end(), mask.begin() + row * n), "row %lld", (long long)row);
  }
  ++n_cases;
}

// Every chunk plan covers [0, n) once, in order, in sizes that 32-bit positions hold.
void check_plans() {
  const int64_t sizes[] = {16384,           16385,           1000001,         16777217,
                           (1LL << 30) + 1, (1LL << 31) - 1, (1LL << 32) + 3, 1LL << 33};
  for (int64_t n : sizes) {
    for (int64_t n_rows : {1, 2, 7, 255, 256, 1000}) {
      const Plan plan = make_plan(n_rows, n);
      const Rows rows{nullptr, nullptr, n_rows, n, 1, true};
      int64_t next = (n_rows - 1) * n;
      for (int64_t b = 0; b < plan.n_blocks; ++b) {
        const Chunk c = chunk_of(rows, plan, n_rows - 1, b);
        const auto at = static_cast<int64_t>(reinterpret_cast<uintptr_t>(c.mask));
        REQUIRE(at == next && reinterpret_cast<uintptr_t>(c.scores) == 4 * reinterpret_cast<uintptr_t>(c.mask),
                "chunk %lld of %lld x %lld", (long long)b, (long long)n_rows, (long long)n);
        REQUIRE(c.size > 0 && c.size <= kMaxChunk, "size of chunk %lld of %lld", (long long)b, (long long)n);
        next += c.size;
      }
      REQUIRE(next == n_rows * n, "%lld x %lld", (long long)n_rows, (long long)n);
      if (n_rows * n > int64_t{1} << 36) continue;  // 256 GB: more than a device holds
      REQUIRE(topk_mask_workspace(n_rows, n) < (64LL << 20), "workspace of %lld x %lld", (long long)n_rows,
              (long long)n);
    }
  }
  ++n_cases;
}

void check_host_side() {
  simt::Machine& m = simt::machine();
  float scores[3] = {1, 2, 3};
  uint8_t mask[3] = {9, 9, 9};
  CudaTopkMaskParams p{scores, mask, nullptr, 1, 3, 2, Ties::kIndex, 1, nullptr};
  m.next_launch = cudaErrorInvalidConfiguration;
  std::string message;
  try {
    launch_topk_mask(p);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  REQUIRE(message == "topk_mask: invalid configuration argument", "'%s'", message.c_str());
  REQUIRE(m.device == 0 && m.last_error == cudaSuccess, "device %d", m.device);
  launch_topk_mask(p);  // the failed launch leaves nothing behind
  REQUIRE(mask[0] == 0 && mask[1] == 1 && mask[2] == 1 && m.device == 0, "device %d", m.device);

  const int before = m.n_launches;
  p.n_rows = 0;
  launch_topk_mask(p);
  p.n_rows = 1, p.n = 0, p.keep = 0;
  launch_topk_mask(p);
  REQUIRE(m.n_launches == before, "launched for an empty tensor");
  REQUIRE(topk_mask_workspace(0, 5) == 0 && topk_mask_workspace(5, 0) == 0, "workspace of nothing");
  ++n_cases;
}

}  // namespace
}  // namespace pns

int main() {
  pns::check_plans();
  pns::check_host_side();
  pns::check_row_loop();
  pns::check_masks();
  std::printf("%d cases agree\n", pns::n_cases);
}
