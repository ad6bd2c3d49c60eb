// The plain loops (the truth, and the baseline level), the choice of level, and a call over all its networks.
#include "kernels/masked_linear/masked_linear.h"

#include <algorithm>

#include "core/huge_pages.h"
#include "core/parallel.h"
#include "core/simd_level.h"
#include "kernels/masked_linear/mask_pattern.h"
#include "kernels/masked_linear/masked_network.h"

namespace pns {
namespace {

template <typename T>
void gather_baseline(const T* x, int64_t x_stride, int64_t n_batch, int64_t n_features, T* tile, int64_t width) {
  for (int64_t f = 0; f < n_features; ++f) {
    for (int64_t b = 0; b < width; ++b) tile[f * width + b] = b < n_batch ? x[b * x_stride + f] : T{0};
  }
}

template <typename T>
void scatter_baseline(const T* tile, int64_t width, int64_t n_batch, int64_t n_features, T* y, int64_t y_stride) {
  for (int64_t b = 0; b < n_batch; ++b) {
    for (int64_t f = 0; f < n_features; ++f) y[b * y_stride + f] = tile[f * width + b];
  }
}

template <typename T>
void sparse_forward_baseline(const SparsePanel<T>& a, const T* x, int64_t width, T* y) {
  for (int64_t r = 0; r < a.n_rows; ++r) {
    for (int64_t k = a.begin[r]; k < a.begin[r + 1]; ++k) {
      for (int64_t b = 0; b < width; ++b) y[r * width + b] += a.value_of(r, k) * x[a.column[k] * width + b];
    }
  }
}

template <typename T>
void sparse_gradients_baseline(const SparseColumns<T>& a, const T* grad, const T* x, int64_t width, T* grad_x, T* dots,
                               bool is_first) {
  const uint16_t* column = a.kept_column;
  for (int64_t k = 0; k < a.n_places; ++k) {
    const int64_t row = a.row[k] & ~MaskColumns::kEnd, at = *column * width;
    T sum = 0;
    for (int64_t b = 0; b < width && dots != nullptr; ++b) sum += grad[row * width + b] * x[at + b];
    if (dots != nullptr) dots[k] = is_first ? sum : dots[k] + sum;
    for (int64_t b = 0; b < width && grad_x != nullptr; ++b) grad_x[at + b] += a.value[k] * grad[row * width + b];
    if ((a.row[k] & MaskColumns::kEnd) != 0) ++column;
  }
}

template <typename T>
void dense_baseline(const T* a, int64_t row_step, int64_t k_step, int64_t n_rows, int64_t n_k, const T* x,
                    int64_t width, T* y, bool is_first) {
  for (int64_t r = 0; r < n_rows; ++r) {
    if (is_first) std::fill_n(y + r * width, width, T{0});
    for (int64_t k = 0; k < n_k; ++k) {
      for (int64_t b = 0; b < width; ++b) y[r * width + b] += a[r * row_step + k * k_step] * x[k * width + b];
    }
  }
}

template <typename T>
void stream_baseline(const T* in, int64_t n, T* out) {
  std::copy_n(in, n, out);
}

template <typename T>
void select_baseline(const uint8_t* mask, const T* in, int64_t n, T* out) {
  for (int64_t j = 0; j < n; ++j) out[j] = mask[j] != 0 ? in[j] : T{0};
}

template <typename T>
MaskedLinearFunctions<T> level_functions() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return masked_linear_avx512<T>();
    case SimdLevel::kAvx2: return masked_linear_avx2<T>();
    default: break;
  }
#endif
  constexpr int64_t kWidest = 32;
  return {kWidest, gather_baseline<T>, scatter_baseline<T>, sparse_forward_baseline<T>, sparse_gradients_baseline<T>,
          dense_baseline<T>, nullptr, stream_baseline<T>, select_baseline<T>};
}

// f(n, n_threads) for every network, by threads over networks or within them.
template <typename T, typename F>
void for_networks(const MaskPattern& pattern, int64_t batch, int n_threads, F&& f) {
  double work = 0;
  for (const auto& network : pattern.networks) work += double(network.n_entries) * batch;
  constexpr double kWorkPerThread = 3e5;  // multiply-adds: some 5 us
  n_threads = std::max(1, static_cast<int>(std::min<double>(n_threads, work / kWorkPerThread)));
  const int64_t n = pattern.networks.size();
  const bool by_network = n >= n_threads;
  parallel_items(n, by_network ? n_threads : 1, [&](int64_t i, int) { f(i, by_network ? 1 : n_threads); });
  release_large_scratch<T>();
}

}  // namespace

template <typename T>
void masked_linear_forward(const MaskedForward<T>& p) {
  if (p.n_networks * p.batch * p.n_out == 0) return;
  advise_huge_pages(p.y, p.n_networks * p.batch * p.n_out * sizeof(T));
  const auto pattern = mask_pattern(p.mask, p.n_networks, p.n_out, p.n_in, p.n_threads);
  if (p.keep != nullptr) p.keep->pattern = pattern;
  const int64_t plane = p.n_out * p.n_in, n_x = p.batch * p.n_in, n_y = p.batch * p.n_out;
  for_networks<T>(*pattern, p.batch, p.n_threads, [&](int64_t n, int n_threads) {
    MaskedNetwork<T>(level_functions<T>(), *pattern, n, p.batch, n_threads)
        .forward({1, p.batch, p.n_in, p.n_out, p.x + n * n_x, p.weight + n * plane, p.mask + n * plane,
                  at(p.bias, n * p.n_out), at(p.bias_mask, n * p.n_out), p.has_relu, p.y + n * n_y, n_threads, p.keep});
  });
}

template <typename T>
void masked_linear_backward(const MaskedBackward<T>& p) {
  const int64_t plane = p.n_out * p.n_in, n_x = p.batch * p.n_in, n_y = p.batch * p.n_out;
  if (p.grad_weight != nullptr) claim_huge_pages(p.grad_weight, p.n_networks * plane * sizeof(T), p.n_threads);
  const bool is_known = p.kept != nullptr && p.kept->pattern != nullptr;  // a forward of no samples looks at no mask
  const auto pattern =
      is_known ? p.kept->pattern : mask_pattern(p.mask, p.n_networks, p.n_out, p.n_in, p.n_threads);
  for_networks<T>(*pattern, p.batch, p.n_threads, [&](int64_t n, int n_threads) {
    MaskedNetwork<T>(level_functions<T>(), *pattern, n, p.batch, n_threads)
        .backward({1, p.batch, p.n_in, p.n_out, p.grad + n * n_y, at(p.y, n * n_y), at(p.x, n * n_x),
                   at(p.weight, n * plane), p.mask + n * plane, at(p.bias_mask, n * p.n_out), at(p.grad_x, n * n_x),
                   at(p.grad_weight, n * plane), at(p.grad_bias, n * p.n_out), n_threads, p.kept});
  });
}

template void masked_linear_forward<float>(const MaskedForward<float>&);
template void masked_linear_forward<double>(const MaskedForward<double>&);
template void masked_linear_backward<float>(const MaskedBackward<float>&);
template void masked_linear_backward<double>(const MaskedBackward<double>&);

}  // namespace pns
