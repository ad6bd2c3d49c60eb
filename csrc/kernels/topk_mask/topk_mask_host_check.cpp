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

// Halves, decoded by arithmetic instead of by their bits.
float decode(Float16 h) {
  const int exponent = h.bits >> 10 & 31, fraction = h.bits & 1023;
  const float sign = h.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? kNaN : sign * kInfinity;
  return sign * (exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(float(fraction), -24));
}
float decode(BFloat16 h) { return from_bits(uint32_t{h.bits} << 16); }
float decode(float x) { return x; }

void encode(float x, float* out) { *out = x; }
void encode(float x, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  out->bits = static_cast<uint16_t>(std::isnan(x) ? bits >> 16 | 0x40 : bits >> 16);
}
void encode(float x, Float16* out) {  // towards zero
  int low = 0, high = 0x7C01;
  if (std::isnan(x)) low = 0x7E00;
  while (!std::isnan(x) && high - low > 1) {
    const int middle = (low + high) / 2;
    (decode(Float16{static_cast<uint16_t>(middle)}) <= std::fabs(x) ? low : high) = middle;
  }
  out->bits = static_cast<uint16_t>(low | (std::signbit(x) ? 0x8000 : 0));
}

template <typename T> constexpr ScoreType kType = ScoreType::kFloat32;
template <> constexpr ScoreType kType<Float16> = ScoreType::kFloat16;
template <> constexpr ScoreType kType<BFloat16> = ScoreType::kBFloat16;

struct Job {
  int64_t n_rows, n, keep;
  Ties ties = Ties::kIndex;
  int64_t offset = 0;                   // of the scores from a 16-byte boundary
  const Strategy* forced = nullptr;     // instead of the one the kernel would take itself
  float hint = kNaN;
  bool has_mask = true;
  std::vector<int64_t> sizes = {};      // of a list
};

// Also the threshold's, by the order of the sort.
template <typename T>
void compare(const char* kind, const Job& job, const std::vector<float>& scores, const uint8_t* mask,
             const std::vector<T>& thresholds) {
  for (int64_t row = 0; row < job.n_rows; ++row) {
    const float* of_row = scores.data() + row * job.n;
    const auto expected = expected_mask(of_row, job.n, job.keep, job.ties);
    for (int64_t i = 0; job.has_mask && i < job.n; ++i) {
      REQUIRE(mask[row * job.n + i] == expected[i],
              "mask[%lld, %lld] is %d (%s, %lld x %lld, keep %lld, %s, offset %lld, chunk %lld, hint %g, %d bytes)",
              (long long)row, (long long)i, mask[row * job.n + i], kind, (long long)job.n_rows, (long long)job.n,
              (long long)job.keep, job.ties == Ties::kLegacy ? "legacy" : "index", (long long)job.offset,
              job.forced ? (long long)job.forced->plan.chunk : 0, job.hint, (int)sizeof(T));
    }
    std::vector<float> sorted(of_row, of_row + job.n);
    std::stable_sort(sorted.begin(), sorted.end(), is_above);
    const int64_t at = job.keep - (job.ties == Ties::kIndex);
    const float wanted = at < 0 || at >= job.n ? kNaN : sorted[at], found = decode(thresholds[row]);
    REQUIRE(found == wanted || (std::isnan(found) && std::isnan(wanted)),
            "threshold %g instead of %g (%s, %lld x %lld, keep %lld, %d bytes)", found, wanted, kind,
            (long long)job.n_rows, (long long)job.n, (long long)job.keep, (int)sizeof(T));
    REQUIRE(found != 0 || !std::signbit(found), "threshold -0 (%s)", kind);
  }
}

template <typename T>
void check(const Kind& kind, const Job& job) {
  const int64_t n_all = job.n_rows * job.n;
  std::mt19937 random(static_cast<uint32_t>(job.n_rows * 1000003 + job.n * 31 + job.keep));
  std::vector<T> storage(n_all + job.offset), thresholds(job.n_rows), hints(job.n_rows);
  T* const scores = storage.data() + job.offset;
  for (T& hint : hints) encode(job.hint, &hint);
  std::vector<float> values(n_all);
  for (int64_t i = 0; i < n_all; ++i) {
    encode(kind.score(random, i % job.n, job.n), scores + i);
    values[i] = decode(scores[i]);
  }
  const Strategy strategy = job.forced != nullptr ? *job.forced : make_strategy(job.n_rows, job.n);
  Guarded mask(n_all, job.offset % 3);
  std::vector<CudaTensor> tensors;
  int64_t begin = 0;
  for (int64_t size : job.sizes) {
    tensors.push_back({scores + begin, mask.data() + begin, size});
    begin += size;
  }
  const auto n_tensors = static_cast<int64_t>(tensors.size());
  const bool is_list = n_tensors > 0;
  std::vector<float4> aligned(lay_out(nullptr, strategy, n_tensors).n_bytes / 16 + 2, float4{1e30f, -7.0f, 3.0f, 1e-9f});
  const float4 last = aligned.back();
  simt::machine().order = static_cast<simt::Order>(n_cases % 3);
  const CudaTopkMaskParams p{kType<T>, is_list ? nullptr : scores, is_list || !job.has_mask ? nullptr : mask.data(),
                             tensors.data(), n_tensors, hints.data(), thresholds.data(), aligned.data(), job.n_rows,
                             job.n, job.keep, job.ties, 0, nullptr};
  if (job.forced != nullptr && 0 < job.keep && job.keep < job.n) {
    launch_type(p, strategy);
  } else {
    launch_topk_mask(p);
  }
  compare(kind.name, job, values, mask.data(), thresholds);
  REQUIRE(mask.is_intact() && std::memcmp(&last, &aligned.back(), 16) == 0, "wrote outside (%s, %lld x %lld)", kind.name,
          (long long)job.n_rows, (long long)job.n);
  ++n_cases;
}

template <typename T>
void check_keeps(const Kind& kind, Job job) {
  std::vector<int64_t> keeps = {0, 1, job.n / 10, job.n / 2, job.n - 1, job.n};
  std::sort(keeps.begin(), keeps.end());
  keeps.erase(std::unique(keeps.begin(), keeps.end()), keeps.end());
  for (int64_t keep : keeps) {
    job.keep = keep;
    for (Ties ties : {Ties::kIndex, Ties::kLegacy}) job.ties = ties, check<T>(kind, job);
  }
}

// Small chunks and blocks: more of them than a real plan has, in less time.
Strategy chunked(int64_t n, int64_t chunk, int64_t n_rows) {
  return {{false, kSmallThreads, ceil_div(n, chunk), chunk}, false, n_rows, 0, 0, 0.0, 0};
}

Strategy bracketed(int64_t n, int64_t chunk, Count capacity, double sigmas) {
  return {{false, kSmallThreads, ceil_div(n, chunk), chunk}, true, 2, 11, capacity, sigmas, 3};
}

template <typename T>
void check_masks() {
  const Strategy chunks = chunked(1501, 384, 2);
  int64_t offset = 0;
  for (const Kind& kind : kinds()) {
    for (int64_t n : {2, 33, 257}) check_keeps<T>(kind, {2, n, 0, Ties::kIndex, offset++ % 4});
    for (int64_t keep : {1, 800, 1500}) check<T>(kind, {1, 1501, keep, Ties::kIndex, offset++ % 8, &chunks});
    check<T>(kind, {2, 1501, 300, Ties::kLegacy, offset++ % 4, &chunks});
    // The larger block of a row, then the chunks of a real plan.
    for (int64_t keep : {700, 2499}) check<T>(kind, {1, 2500, keep, Ties::kIndex, offset++ % 4});
    if (sizeof(T) == 2) continue;
    for (int64_t keep : {23333, 69999}) check<T>(kind, {1, 70001, keep, Ties::kIndex, offset++ % 4});
  }
  for (int64_t n = 1; n < 70; n += 4) check_keeps<T>(kinds()[10], {5, n, 0, Ties::kIndex, n % 4});
}

// Brackets that hold the threshold, miss it on both sides, and lists that overflow.
template <typename T>
void check_brackets() {
  const int64_t n = 6007;
  const Strategy wide = bracketed(n, 896, 4000, 4.0), narrow = bracketed(n, 896, 4000, 0.05);
  const Strategy full = bracketed(n, 896, 40, 40.0);
  int64_t turn = 0;
  for (const Kind& kind : kinds()) {
    for (const Strategy* s : {&wide, &narrow, &full}) {
      for (int64_t keep : {int64_t{1}, n / 10, n / 2, n - 1}) {
        const Ties ties = ++turn % 3 == 0 ? Ties::kLegacy : Ties::kIndex;
        const float hints[] = {kNaN, 0.1f, 1.28f, -kInfinity, 7.0f};
        check<T>(kind, {1, n, keep, ties, turn % 5, s, hints[turn % 5], turn % 7 != 0});
      }
    }
    check<T>(kind, {5, n, n / 3, turn++ % 2 ? Ties::kLegacy : Ties::kIndex, 0, &wide});
  }
}

void check_lists() {
  for (const Kind& kind : {kinds()[0], kinds()[2], kinds()[3], kinds()[11]}) {
    std::vector<int64_t> sizes = {0, 1, 700, 0, 3, 129, 2000};
    for (int i = 0; i < 300; ++i) sizes.push_back(i % 23);
    sizes.push_back(5);
    const int64_t n = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    const Strategy chunks = chunked(n, 384, 1), bracket = bracketed(n, 896, 4000, 4.0);
    for (const Strategy* s : {static_cast<const Strategy*>(nullptr), &chunks, &bracket}) {
      for (Ties ties : {Ties::kIndex, Ties::kLegacy}) {
        for (int64_t keep : {int64_t{0}, n / 7, n - 2, n}) {
          check<float>(kind, {1, n, keep, ties, keep % 4, s, 0.5f, true, sizes});
          check<BFloat16>(kind, {1, n, keep, ties, keep % 4, s, 0.5f, true, sizes});
        }
      }
    }
  }
}

// More rows than blocks: a block goes on with another row.
void check_row_loop() {
  const int64_t n_rows = 5, n = 40, keep = 9;
  std::mt19937 random(7);
  std::vector<float> scores(n_rows * n);
  for (float& x : scores) x = static_cast<float>(random() % 8);
  std::vector<uint8_t> mask(n_rows * n, kPoison);
  Rows<float> rows{};
  rows.scores = scores.data(), rows.mask = mask.data();
  rows.n_rows = n_rows, rows.n = n, rows.rank = keep, rows.keeps_ties = true;
  const Plan plan = make_strategy(n_rows, n).plan;
  cuda_launch("topk_mask", {dim3(2), plan.n_threads, nullptr}, topk_rows_kernel<float>, rows, plan);
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
      const Strategy s = make_strategy(n_rows, n);
      REQUIRE((s.plan.n_blocks - 1) * s.plan.chunk < n && n <= s.plan.n_blocks * s.plan.chunk, "%lld x %lld",
              (long long)n_rows, (long long)n);
      REQUIRE(s.plan.chunk <= kMaxChunk, "chunk of %lld", (long long)n);
      if (n_rows * n > int64_t{1} << 36) continue;  // 256 GB: more than a device holds
      REQUIRE(topk_mask_workspace(n_rows, n, 0) < (64LL << 20) + n_rows * n / 16, "workspace of %lld x %lld",
              (long long)n_rows, (long long)n);
    }
  }
  for (int64_t n : {int64_t{1} << 21, int64_t{100000007}, int64_t{1} << 32}) {
    const Strategy s = make_strategy(1, n);
    for (int64_t rank : {int64_t{1}, n / 10, n / 2, n}) {
      const SamplePlan plan = sample_plan(s, rank, n);
      REQUIRE(0 <= plan.rank_hi && plan.rank_hi <= plan.rank_lo && plan.rank_lo <= (1 << plan.bits) + 1, "ranks");
      const double listed = std::ldexp(static_cast<double>(plan.rank_lo - plan.rank_hi), -plan.bits) * n;
      REQUIRE(listed < static_cast<double>(s.capacity), "list of %lld", (long long)n);
    }
    int64_t before = -1;
    for (int64_t i = 0; i < int64_t{1} << s.sample_bits; i += 4097) {
      const int64_t at = sample_position(i, n, s.sample_bits);
      REQUIRE(before < at && at < n, "sample %lld of %lld at %lld", (long long)i, (long long)n, (long long)at);
      before = at;
    }
    REQUIRE(sample_position((int64_t{1} << s.sample_bits) - 1, n, s.sample_bits) < n, "last sample");
  }
  ++n_cases;
}

void check_host_side() {
  simt::Machine& m = simt::machine();
  float scores[3] = {1, 2, 3};
  uint8_t mask[3] = {9, 9, 9};
  CudaTopkMaskParams p{ScoreType::kFloat32, scores, mask, nullptr, 0, nullptr, nullptr, nullptr, 1, 3, 2, Ties::kIndex, 1, nullptr};
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
  REQUIRE(topk_mask_workspace(0, 5, 0) == 0 && topk_mask_workspace(5, 0, 0) == 0, "workspace of nothing");
  ++n_cases;
}

}  // namespace
}  // namespace pns

int main() {
  pns::check_plans();
  pns::check_host_side();
  pns::check_row_loop();
  pns::check_masks<float>();
  pns::check_masks<pns::Float16>();
  pns::check_masks<pns::BFloat16>();
  pns::check_brackets<float>();
  pns::check_brackets<pns::Float16>();
  pns::check_brackets<pns::BFloat16>();
  pns::check_lists();
  std::printf("%d cases agree\n", pns::n_cases);
}
