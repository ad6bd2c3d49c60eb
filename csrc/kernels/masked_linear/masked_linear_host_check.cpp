// The CUDA source of masked_linear, run on the CPU by the emulator and compared with sums in double. See
// test_cuda_sources.py.
#define PNS_EMULATE_CUDA 1
#include "kernels/masked_linear/mask_index.cu"
#include "kernels/masked_linear/masked_linear.cu"

#include <cmath>
#include <limits>

#include "core/host_check.h"
#include "kernels/masked_linear/mask_index_check.h"

namespace pns {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Layer {
  int64_t n, batch, n_out, n_in;
  double density;
};

std::vector<float> normal(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(n);
  for (float& v : values) v = distribution(random);
  return values;
}

float* floats(Guarded& memory) { return reinterpret_cast<float*>(memory.data()); }

void require_close(float got, double expected, double size, const char* what, const Layer& l, int64_t at) {
  REQUIRE(std::abs(got - expected) <= 1e-5 * (size + 1), "%s[%lld] is %g instead of %g (%lld x %lld x %lld x %lld, %g)",
          what, (long long)at, got, expected, (long long)l.n, (long long)l.batch, (long long)l.n_out, (long long)l.n_in,
          l.density);
}

struct Inputs {
  explicit Inputs(const Layer& l)
      : mask(random_mask(l.n * l.n_out * l.n_in, l.density, n_cases)),
        weight(normal(l.n * l.n_out * l.n_in, 1)),
        x(normal(l.n * l.batch * l.n_in, 2)),
        grad(normal(l.n * l.batch * l.n_out, 3)),
        bias(normal(l.n * l.n_out, 4)) {
    for (size_t i = 0; i < mask.size(); ++i) weight[i] = mask[i] != 0 ? weight[i] : kNaN;
    std::tie(index, transposed) = index_of(mask, l.n, l.n_out, l.n_in);
  }
  std::vector<uint8_t> mask;
  std::vector<float> weight, x, grad, bias;
  Index index, transposed;
};

// y of x, or the gradient of x of grad. Panels of at most `largest` features.
std::vector<float> product(const Layer& l, const Inputs& in, bool is_transposed, bool is_packed, int64_t largest) {
  const int64_t n_rows = is_transposed ? l.n_in : l.n_out, n_columns = is_transposed ? l.n_out : l.n_in;
  const Index& index = is_transposed ? in.transposed : in.index;
  Guarded y(l.n * l.batch * n_rows * 4, 0), packed(index.columns.size() * 4, 0);
  const CudaMaskedProduct p{l.n, l.batch, n_columns, n_rows, (is_transposed ? in.grad : in.x).data(),
                            index.starts.data(), index.columns.data(), in.weight.data(), is_transposed,
                            is_packed ? floats(packed) : nullptr, is_transposed ? nullptr : in.bias.data(), floats(y)};
  launch_product_plan(p, make_product_plan(p, largest), nullptr);
  REQUIRE(y.is_intact() && packed.is_intact(), "wrote outside");
  return {floats(y), floats(y) + l.n * l.batch * n_rows};
}

void check_product(const Layer& l, const Inputs& in, bool is_transposed, const std::vector<float>& y) {
  const int64_t n_rows = is_transposed ? l.n_in : l.n_out, n_columns = is_transposed ? l.n_out : l.n_in;
  const std::vector<float>& x = is_transposed ? in.grad : in.x;
  for (int64_t n = 0; n < l.n; ++n) {
    for (int64_t b = 0; b < l.batch; ++b) {
      for (int64_t r = 0; r < n_rows; ++r) {
        double sum = is_transposed ? 0.0 : in.bias[n * n_rows + r], size = 0;
        for (int64_t c = 0; c < n_columns; ++c) {
          const int64_t w = n * n_rows * n_columns + (is_transposed ? c * n_rows + r : r * n_columns + c);
          if (in.mask[w] == 0) continue;
          const double term = static_cast<double>(in.weight[w]) * x[(n * l.batch + b) * n_columns + c];
          sum += term;
          size += std::abs(term);
        }
        const int64_t at = (n * l.batch + b) * n_rows + r;
        require_close(y[at], sum, size, is_transposed ? "grad_x" : "y", l, at);
      }
    }
  }
}

std::vector<float> outer(const Layer& l, const Inputs& in) {
  Guarded result(l.n * l.n_out * l.n_in * 4, 0);
  std::vector<float4> columns((cuda_padded_batch(l.batch) * l.n * l.n_out + 3) / 4);
  launch_masked_outer({l.n, l.batch, l.n_in, l.n_out, in.grad.data(), in.x.data(), in.index.starts.data(),
                       in.index.columns.data(), &columns[0].x, floats(result)},
                      {0, nullptr});
  REQUIRE(result.is_intact(), "wrote outside");
  return {floats(result), floats(result) + l.n * l.n_out * l.n_in};
}

void check_outer(const Layer& l, const Inputs& in, const std::vector<float>& result) {
  for (int64_t at = 0; at < l.n * l.n_out * l.n_in; ++at) {
    const int64_t n = at / l.n_in / l.n_out, o = at / l.n_in % l.n_out, i = at % l.n_in;
    double sum = 0, size = 0;
    for (int64_t b = 0; b < l.batch && in.mask[at] != 0; ++b) {
      const double term = static_cast<double>(in.grad[(n * l.batch + b) * l.n_out + o]) *
                          in.x[(n * l.batch + b) * l.n_in + i];
      sum += term;
      size += std::abs(term);
    }
    if (in.mask[at] == 0) REQUIRE(result[at] == 0, "grad_weight[%lld] of a pruned weight", (long long)at);
    require_close(result[at], sum, size, "grad_weight", l, at);
  }
}

void check_layers() {
  const Layer layers[] = {
      {1, 1, 1, 1, 1.0},       {1, 33, 70, 65, 0.1},    {2, 5, 40, 200, 0.3},   {1, 130, 20, 390, 0.05},
      {1, 300, 33, 195, 0.1},  {3, 31, 9, 12, 0.5},     {1, 64, 130, 50, 0.0},  {1, 257, 17, 40, 1.0},
      {1, 40, 300, 40, 0.2},   {1, 20, 3000, 10, 0.05}, {1, 600, 20, 30, 0.3},  {2, 200, 50, 100, 0.02},
      {1, 8, 5, 700, 0.9},     {1, 700, 400, 8, 0.3},
  };
  for (const Layer& l : layers) {
    simt::machine().order = static_cast<simt::Order>(n_cases % 3);
    const Inputs in(l);
    std::vector<float> first[2];
    for (int64_t largest : {kMaxPanel, 100, 7}) {
      for (bool is_packed : {false, true}) {
        for (bool is_transposed : {false, true}) {
          const std::vector<float> y = product(l, in, is_transposed, is_packed, largest);
          if (first[is_transposed].empty()) {
            check_product(l, in, is_transposed, first[is_transposed] = y);
          } else {  // neither panels nor packing change a bit
            REQUIRE(y == first[is_transposed], "panels of %lld give other numbers", (long long)largest);
          }
        }
      }
    }
    check_outer(l, in, outer(l, in));
    ++n_cases;
  }
}

// A network alone gives the bits it gives among others; a sample's output the bits it has in any batch.
void check_alone() {
  const Layer all{3, 70, 33, 210, 0.15}, one{1, 70, 33, 210, 0.15};
  const Inputs in(all);
  const auto y = product(all, in, false, false, kMaxPanel), w = outer(all, in);
  for (int64_t n = 0; n < 3; ++n) {
    Inputs alone(one);
    auto part = [&](auto& to, const auto& from) { std::copy_n(from.begin() + n * to.size(), to.size(), to.begin()); };
    part(alone.mask, in.mask), part(alone.weight, in.weight), part(alone.x, in.x), part(alone.grad, in.grad);
    part(alone.bias, in.bias);
    std::tie(alone.index, alone.transposed) = index_of(alone.mask, 1, 33, 210);
    const auto y_alone = product(one, alone, false, true, kMaxPanel), w_alone = outer(one, alone);
    REQUIRE(std::equal(y_alone.begin(), y_alone.end(), y.begin() + n * y_alone.size()), "network %lld", (long long)n);
    REQUIRE(std::equal(w_alone.begin(), w_alone.end(), w.begin() + n * w_alone.size()), "network %lld", (long long)n);
  }
  ++n_cases;
}

// An infinite input spreads to no output whose weight on it is pruned.
void check_infinite_input() {
  const Layer l{1, 40, 24, 50, 0.2};
  Inputs in(l);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int64_t b = 0; b < l.batch; ++b) in.x[b * l.n_in] = in.x[b * l.n_in + 49] = kInfinity;
  for (int64_t o = 0; o < l.n_out; ++o) in.mask[o * l.n_in] = in.mask[o * l.n_in + 49] = 0;
  std::tie(in.index, in.transposed) = index_of(in.mask, 1, l.n_out, l.n_in);
  for (float y : product(l, in, false, false, 20)) REQUIRE(std::isfinite(y), "an output is %g", y);
  for (float g : outer(l, in)) REQUIRE(std::isfinite(g), "a gradient is %g", g);
  ++n_cases;
}

void check_plans() {
  for (int64_t in : {1, 192, 1024, 1536, 1537, 4096, 65536}) {
    for (int64_t batch : {1, 32, 256, 100000}) {
      for (int64_t rows : {1, 100, 1024, 4096, 65536}) {
        const CudaMaskedProduct p{3, batch, in, rows};
        const ProductPlan plan = make_product_plan(p, kMaxPanel);
        const int64_t rows_of_block = plan.n_threads / kGroup * plan.rows_of_group;
        REQUIRE(plan.shared_bytes <= 232448 && plan.panel <= kMaxPanel, "%zu bytes", plan.shared_bytes);
        REQUIRE(plan.n_row_blocks * rows_of_block >= rows, "rows %lld", (long long)rows);
        const CudaMaskedOuter o{3, batch, in, rows};
        const OuterPlan outer = make_outer_plan(o);
        REQUIRE(outer.shared_bytes <= 232448 && outer.padded >= batch && outer.padded % outer.chunk == 0, "%zu bytes",
                outer.shared_bytes);
        REQUIRE(outer.n_row_blocks * outer.rows_of_block >= rows, "rows %lld", (long long)rows);
        ++n_cases;
      }
    }
  }
}

void check_host_side() {
  simt::Machine& m = simt::machine();
  const int before = m.n_launches;
  launch_masked_product({1, 0, 5, 5}, {1, nullptr});
  launch_masked_outer({1, 5, 5, 0}, {1, nullptr});
  REQUIRE(m.n_launches == before, "launched for an empty tensor");
  m.next_launch = cudaErrorInvalidConfiguration;
  std::string message;
  try {
    launch_masked_product({1, 5, 5, 5}, {1, nullptr});
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  REQUIRE(message == "masked_linear: invalid configuration argument" && m.device == 0, "'%s'", message.c_str());
  ++n_cases;
}

}  // namespace
}  // namespace pns

int main() {
  pns::check_plans();
  pns::check_host_side();
  pns::check_layers();
  pns::check_alone();
  pns::check_infinite_input();
  std::printf("%d cases agree\n", pns::n_cases);
}
