// The plain loops (the truth, and the baseline level), the choice of level, and a call from its mask to its results.
#include "kernels/masked_conv2d/masked_conv2d.h"

#include <algorithm>

#include "core/huge_pages.h"
#include "core/simd_level.h"
#include "kernels/masked_conv2d/conv_cost.h"
#include "kernels/masked_conv2d/conv_plan.h"
#include "kernels/masked_conv2d/conv_products.h"
#include "kernels/masked_linear/mask_pattern.h"

namespace pns {
namespace {

template <typename T>
void gather_baseline(const T* x, int64_t x_stride, int64_t n_batch, int64_t n_features, const int32_t* place, T* tile) {
  constexpr int64_t kWidth = kTileSamples<T>;
  for (int64_t f = 0; f < n_features; ++f) {
    T* pixel = tile + (place == nullptr ? f : place[f]) * kWidth;
    for (int64_t b = 0; b < kWidth; ++b) pixel[b] = b < n_batch ? x[b * x_stride + f] : T{0};
  }
}

template <typename T>
void scatter_baseline(const T* tile, const int32_t* place, int64_t n_batch, int64_t n_features, T* y, int64_t y_stride) {
  for (int64_t b = 0; b < n_batch; ++b) {
    for (int64_t f = 0; f < n_features; ++f) {
      y[b * y_stride + f] = tile[(place == nullptr ? f : place[f]) * kTileSamples<T> + b];
    }
  }
}

template <typename T>
void product_baseline(const ConvEntries<T>& entries, const ConvLines& lines, const T* x, T start, T* y) {
  const int64_t length = lines.n_pixels * kTileSamples<T>;
  for (int64_t l = 0; l < lines.n_lines; ++l) {
    T* line = y + l * length;
    std::fill_n(line, length, start);
    for (int64_t k = 0; k < entries.count; ++k) {
      const T* from = x + entries.offset[k] + l * lines.x_step;
      for (int64_t n = 0; n < length; ++n) line[n] += entries.value[k] * from[n];
    }
  }
}

template <typename T>
void dots_baseline(const ConvEntries<T>& entries, const ConvLines& lines, const T* grad, const T* x, T* dots) {
  const int64_t length = lines.n_pixels * kTileSamples<T>;
  for (int64_t k = 0; k < entries.count; ++k) {
    for (int64_t l = 0; l < lines.n_lines; ++l) {
      const T* from = x + entries.offset[k] + l * lines.x_step;
      for (int64_t n = 0; n < length; ++n) dots[k] += grad[l * length + n] * from[n];
    }
  }
}

template <typename T>
T sum_baseline(const T* x, int64_t n) {
  T total{0};
  for (int64_t k = 0; k < n; ++k) total += x[k];
  return total;
}

template <typename T>
void pool_baseline(const T* tile, const int32_t* place, int64_t n, int64_t n_each, bool has_relu, T* kept,
                   uint16_t* passes) {
  constexpr int64_t kWidth = kTileSamples<T>;
  auto exceeds = [](T a, T b) { return a > b || a != a; };
  for (int64_t q = 0; q < n; ++q, place += n_each) {
    if (passes != nullptr) std::fill_n(passes + q * n_each, n_each, uint16_t{0});
    for (int64_t b = 0; b < kWidth; ++b) {
      int64_t at = 0;
      T largest = tile[place[0] * kWidth + b];
      for (int64_t p = 1; p < n_each; ++p) {
        const T v = tile[place[p] * kWidth + b];
        if (exceeds(v, largest)) largest = v, at = p;
      }
      const bool is_passed = !has_relu || exceeds(largest, T{0});
      kept[q * kWidth + b] = is_passed ? largest : T{0};
      if (is_passed && passes != nullptr) passes[q * n_each + at] |= static_cast<uint16_t>(1u << b);
    }
  }
}

template <typename T>
void spread_baseline(const T* kept, const uint16_t* passes, const int32_t* place, int64_t n, int64_t n_each, T* tile) {
  constexpr int64_t kWidth = kTileSamples<T>;
  for (int64_t k = 0; k < n * n_each; ++k) {
    for (int64_t b = 0; b < kWidth; ++b) {
      tile[place[k] * kWidth + b] = (passes[k] >> b & 1) != 0 ? kept[k / n_each * kWidth + b] : T{0};
    }
  }
}

template <typename T>
MaskedConv2dFunctions<T> level_functions() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return masked_conv2d_avx512<T>();
    case SimdLevel::kAvx2: return masked_conv2d_avx2<T>();
    default: break;
  }
#endif
  return {gather_baseline<T>, scatter_baseline<T>, product_baseline<T>, dots_baseline<T>,
          sum_baseline<T>,    pool_baseline<T>,    spread_baseline<T>};
}

std::shared_ptr<const MaskPattern> conv_pattern(const ConvShape& s, const uint8_t* mask, int n_threads) {
  return mask_pattern(mask, 1, s.n_out, s.n_in * s.kernel_h * s.kernel_w, n_threads);
}

template <typename T>
bool is_dense_faster(const ConvShape& s, const MaskPattern& pattern, const ConvCost& cost) {
  return sparse_to_dense(s, pattern.networks[0].n_entries, kTileSamples<T>, cost) >= 1;
}

}  // namespace

template <typename T>
bool masked_conv2d_forward(const MaskedConv2dForward<T>& p, bool is_forced) {
  const ConvShape& s = p.shape;
  if (s.batch == 0) return true;
  const auto pattern = conv_pattern(s, p.mask, p.n_threads);
  if (!is_forced && is_dense_faster<T>(s, *pattern, kForwardCost)) return false;
  if (!is_forced && p.passes != nullptr && is_dense_faster<T>(s, *pattern, kBackwardCost)) return false;
  const auto plan = conv_plan(s, pattern, false, kTileSamples<T>);
  if (!plan->is_made()) return false;
  advise_huge_pages(p.y, s.batch * plan->n_result * plan->result_features * sizeof(T));
  const ConvTail tail{s.window > 1 || p.has_relu, p.has_relu, p.passes};
  ConvProducts<T>(level_functions<T>(), *plan, s.batch, p.n_threads)
      .product(p.x, nullptr, p.weight, {p.bias, p.bias_mask}, tail, p.y);
  release_large_conv_scratch<T>();
  return true;
}

template <typename T>
bool masked_conv2d_backward(const MaskedConv2dBackward<T>& p, bool is_forced) {
  const ConvShape& s = p.shape;
  if (s.batch == 0) {
    if (p.grad_weight != nullptr) std::fill_n(p.grad_weight, s.n_weights(), T{0});
    if (p.grad_bias != nullptr) std::fill_n(p.grad_bias, s.n_out, T{0});
    return true;
  }
  const auto pattern = conv_pattern(s, p.mask, p.n_threads);
  if (!is_forced && p.passes == nullptr && is_dense_faster<T>(s, *pattern, kBackwardCost)) return false;
  const auto run = level_functions<T>();
  if (p.grad_x != nullptr) {
    const auto plan = conv_plan(s, pattern, true, kTileSamples<T>);
    if (!plan->is_made()) return false;
    advise_huge_pages(p.grad_x, s.batch * plan->n_result * plan->result_features * sizeof(T));
    ConvProducts<T>(run, *plan, s.batch, p.n_threads).product(p.grad, p.passes, p.weight, {}, {}, p.grad_x);
  }
  if (p.grad_weight != nullptr) {
    const auto plan = conv_plan(s, pattern, false, kTileSamples<T>);
    if (!plan->is_made()) return false;
    ConvProducts<T>(run, *plan, s.batch, p.n_threads)
        .weight_gradient(p.grad, p.passes, p.x, s.n_weights(), p.grad_weight, p.grad_bias, p.bias_mask);
  }
  release_large_conv_scratch<T>();
  return true;
}

template bool masked_conv2d_forward<float>(const MaskedConv2dForward<float>&, bool);
template bool masked_conv2d_forward<double>(const MaskedConv2dForward<double>&, bool);
template bool masked_conv2d_backward<float>(const MaskedConv2dBackward<float>&, bool);
template bool masked_conv2d_backward<double>(const MaskedConv2dBackward<double>&, bool);

}  // namespace pns
