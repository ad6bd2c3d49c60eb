// The parts of masked_linear that touch every number, written once over Vec<T, W>.
#pragma once

#include <algorithm>

#include "core/batch_tile.h"
#include "core/dense_product.h"
#include "core/sparse_rows.h"
#include "core/vec.h"
#include "kernels/masked_linear/masked_linear.h"

namespace pns {
namespace {

// f(std::integral_constant<V>) for the V vectors a tile is wide.
template <typename T, int W, typename F>
inline void with_vectors(int64_t width, F&& f) {
  switch (width / W) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 4: return f(std::integral_constant<int, 4>());
    default: return f(std::integral_constant<int, 8>());
  }
}

template <typename T, int W>
void gather_tile(const T* x, int64_t x_stride, int64_t n_batch, int64_t n_features, T* tile, int64_t width) {
  gather_features<T, W>(x, x_stride, n_batch, n_features, width, [&](int64_t f) { return tile + f * width; });
}

template <typename T, int W>
void scatter_tile(const T* tile, int64_t width, int64_t n_batch, int64_t n_features, T* y, int64_t y_stride) {
  scatter_features<T, W>(n_batch, n_features, y, y_stride, [&](int64_t f) { return tile + f * width; });
}

template <typename T, int W>
void sparse_forward(const SparsePanel<T>& a, const T* x, int64_t width, T* y) {
  using Vector = Vec<T, W>;
  with_vectors<T, W>(width, [&](auto vectors) {
    constexpr int kWidth = vectors * W;
    constexpr int V = vectors < 4 ? vectors : 4;  // twice 4 sums, see sparse_sum
    for (int64_t r = 0; r < a.n_rows; ++r) {
      const int64_t first = a.begin[r], last = a.begin[r + 1];
      if (first == last) continue;
      for (int b = 0; b < kWidth; b += V * W) {
        T* out = y + r * kWidth + b;
        Vector acc[V];
        for (int v = 0; v < V; ++v) acc[v] = Vector::load(out + v * W);
        if (a.value != nullptr) {
          sparse_sum<V, false>(a.column, a.value, a.column, first, last, x + b, kWidth, acc);
        } else {
          sparse_sum<V, true>(a.column, a.weight + r * a.row_step, a.column, first, last, x + b, kWidth, acc);
        }
        for (int v = 0; v < V; ++v) acc[v].store(out + v * W);
      }
    }
  });
}

// Sums over lanes that wait until W of them can be folded together: alone, one costs as much as its entry's products.
template <typename T, int W>
struct PendingDots {
  using Vector = Vec<T, W>;
  T* dots;  // of the first sum that waits
  bool is_first;
  int n = 0;
  Vector sum[W];

  PendingDots(T* into, bool first) : dots(into), is_first(first) {}
  void push(Vector s) {
    sum[n] = s;
    if (++n == W) {
      const Vector total = horizontal_sums(sum);
      (is_first ? total : total + Vector::load(dots)).store(dots);
      dots += W;
      n = 0;
    }
  }
  void flush() {
    for (int j = n; j < W; ++j) sum[j] = Vector::zero();
    T total[W];
    horizontal_sums(sum).store(total);
    for (int j = 0; j < n; ++j) dots[j] = is_first ? total[j] : dots[j] + total[j];
  }
};

// grad_x[column] += value * g for a row's entries. Two at a time, both loaded before either is stored: a load that
// shares its low 12 address bits with a store still under way would wait for it, and one row's columns are distinct.
template <typename T, int W, int V, typename Value>
[[gnu::always_inline]] inline void spread_row(const SparsePanel<T>& a, int64_t k, int64_t end, Value&& value,
                                              const Vec<T, W>* g, T* grad_x, int64_t stride) {
  using Vector = Vec<T, W>;
  for (; k + 1 < end; k += 2) {
    T* first = grad_x + a.column[k] * stride;
    T* second = grad_x + a.column[k + 1] * stride;
    const Vector w = Vector::broadcast(value(k)), u = Vector::broadcast(value(k + 1));
    Vector sum[2 * V];
    for (int v = 0; v < V; ++v) {
      sum[v] = fma(w, g[v], Vector::load(first + v * W));
      sum[V + v] = fma(u, g[v], Vector::load(second + v * W));
    }
    for (int v = 0; v < V; ++v) sum[v].store(first + v * W);
    for (int v = 0; v < V; ++v) sum[V + v].store(second + v * W);
  }
  if (k < end) {
    T* last = grad_x + a.column[k] * stride;
    const Vector w = Vector::broadcast(value(k));
    for (int v = 0; v < V; ++v) fma(w, g[v], Vector::load(last + v * W)).store(last + v * W);
  }
}

template <typename T, int W>
void sparse_transposed(const SparsePanel<T>& a, const T* grad, int64_t width, T* y) {
  using Vector = Vec<T, W>;
  with_vectors<T, W>(width, [&](auto vectors) {
    constexpr int kWidth = vectors * W;
    constexpr int V = vectors < 4 ? vectors : 4;  // spread_row holds 3 V vectors
    for (int64_t r = 0; r < a.n_rows; ++r) {
      for (int b = 0; b < kWidth && a.begin[r] < a.begin[r + 1]; b += V * W) {
        Vector g[V];
        for (int v = 0; v < V; ++v) g[v] = Vector::load(grad + r * kWidth + b + v * W);
        const T* const row = a.weight + r * a.row_step;
        const int64_t k = a.begin[r], end = a.begin[r + 1];
        if (a.value != nullptr) {
          spread_row<T, W, V>(a, k, end, [&](int64_t j) { return a.value[j]; }, g, y + b, kWidth);
        } else {
          spread_row<T, W, V>(a, k, end, [&](int64_t j) { return row[a.column[j]]; }, g, y + b, kWidth);
        }
      }
    }
  });
}

// The first n <= W entries of `column` in one row, folded together; behind n the last one again.
template <typename T, int W, int V, bool kIsWhole>
[[gnu::always_inline]] inline Vec<T, W> row_dots(const uint16_t* column, int64_t n, const Vec<T, W>* g, const T* x) {
  using Vector = Vec<T, W>;
  Vector sum[W];
#pragma GCC unroll 16
  for (int j = 0; j < W; ++j) {
    const T* features = x + int64_t{column[kIsWhole ? j : std::min<int64_t>(j, n - 1)]} * (V * W);
    sum[j] = g[0] * Vector::load(features);
    for (int v = 1; v < V; ++v) sum[j] = fma(g[v], Vector::load(features + v * W), sum[j]);
  }
  return horizontal_sums(sum);
}

// Where rows have entries enough: the W sums stay in registers. That takes two thirds of what sums that wait in memory
// take, at densities of 0.1 and 0.2.
template <typename T, int W, int V>
void outer_by_rows(const SparsePanel<T>& a, const T* grad, const T* x, T* dots, bool is_first) {
  using Vector = Vec<T, W>;
  for (int64_t r = 0; r < a.n_rows; ++r) {
    int64_t k = a.begin[r];
    const int64_t end = a.begin[r + 1];
    if (k == end) continue;
    Vector g[V];
    for (int v = 0; v < V; ++v) g[v] = Vector::load(grad + (r * V + v) * W);
    for (; k + W <= end; k += W) {
      const Vector total = row_dots<T, W, V, true>(a.column + k, W, g, x);
      (is_first ? total : total + Vector::load(dots + k)).store(dots + k);
    }
    if (k == end) continue;
    T total[W];
    row_dots<T, W, V, false>(a.column + k, end - k, g, x).store(total);
    for (int j = 0; k < end; ++k, ++j) dots[k] = is_first ? total[j] : dots[k] + total[j];
  }
}

template <typename T, int W>
void sparse_outer(const SparsePanel<T>& a, const T* grad, const T* x, int64_t width, T* dots, bool is_first) {
  using Vector = Vec<T, W>;
  with_vectors<T, W>(width, [&](auto vectors) {
    constexpr int V = vectors, kWidth = V * W;
    if (a.begin[a.n_rows] - a.begin[0] >= W / 2 * a.n_rows) return outer_by_rows<T, W, V>(a, grad, x, dots, is_first);
    PendingDots<T, W> pending(dots + a.begin[0], is_first);
    for (int64_t r = 0; r < a.n_rows; ++r) {
      if (a.begin[r] == a.begin[r + 1]) continue;
      Vector g[V];
      for (int v = 0; v < V; ++v) g[v] = Vector::load(grad + r * kWidth + v * W);
      for (int64_t k = a.begin[r]; k < a.begin[r + 1]; ++k) {
        const T* features = x + a.column[k] * kWidth;
        Vector sum = g[0] * Vector::load(features);
        for (int v = 1; v < V; ++v) sum = fma(g[v], Vector::load(features + v * W), sum);
        pending.push(sum);
      }
    }
    pending.flush();
  });
}

template <typename T, int W>
void dense_rows(const T* a, int64_t row_step, int64_t k_step, int64_t n_rows, int64_t n_k, const T* x, int64_t width,
                T* y, bool is_first) {
  using Vector = Vec<T, W>;
  with_vectors<T, W>(width, [&](auto vectors) {
    constexpr int kWidth = vectors * W;
    constexpr int kMost = W * sizeof(T) == 64 ? 4 : 2;
    constexpr int V = vectors < kMost ? vectors : kMost;
    const auto run = [&](auto first) {
      for (int b = 0; b < kWidth; b += V * W) {
        const auto finish = [&](int64_t row, const Vector* acc) {
          T* out = y + row * kWidth + b;
          for (int v = 0; v < V; ++v) (first ? acc[v] : acc[v] + Vector::load(out + v * W)).store(out + v * W);
        };
        dense_product<W, V>(0, n_rows, x + b, kWidth, finish, DenseMatrix<T>{a, row_step, k_step, n_k});
      }
    };
    is_first ? run(std::true_type()) : run(std::false_type());
  });
}

// n <= 16 bits from `bit` on; a word may be read behind them (MaskPattern::bits has one to spare).
inline uint32_t few_bits(const uint64_t* bits, int64_t bit, int64_t n) {
  uint32_t word;
  std::memcpy(&word, reinterpret_cast<const char*>(bits) + bit / 8, sizeof(word));
  return (word >> (bit % 8)) & ((1u << n) - 1);
}

#if defined(__AVX512F__)
// Accesses are masked only at a row's end: on Zen 5 a masked load of what no cache holds takes three times as long as a
// plain one, a masked store a third longer.
inline void compress_lanes(const float* row, uint32_t lanes, bool is_whole, float* kept) {
  const auto mask = static_cast<__mmask16>(lanes);
  _mm512_mask_compressstoreu_ps(kept, mask, is_whole ? _mm512_loadu_ps(row) : _mm512_maskz_loadu_ps(mask, row));
}
inline void compress_lanes(const double* row, uint32_t lanes, bool is_whole, double* kept) {
  const auto mask = static_cast<__mmask8>(lanes);
  _mm512_mask_compressstoreu_pd(kept, mask, is_whole ? _mm512_loadu_pd(row) : _mm512_maskz_loadu_pd(mask, row));
}
inline void expand_lanes(const float* kept, uint32_t lanes, int64_t n, float* row) {
  const __m512 values = _mm512_maskz_expandloadu_ps(static_cast<__mmask16>(lanes), kept);
  if (n == 16) return _mm512_storeu_ps(row, values);
  _mm512_mask_storeu_ps(row, static_cast<__mmask16>((1u << n) - 1), values);
}
inline void expand_lanes(const double* kept, uint32_t lanes, int64_t n, double* row) {
  const __m512d values = _mm512_maskz_expandloadu_pd(static_cast<__mmask8>(lanes), kept);
  if (n == 8) return _mm512_storeu_pd(row, values);
  _mm512_mask_storeu_pd(row, static_cast<__mmask8>((1u << n) - 1), values);
}
#endif

// With AVX-512, W lanes at a time through its compress and expand instructions: no branch, which bit by bit would be
// mispredicted in every row.
template <typename T, int W>
void compress_row(const uint64_t* bits, int64_t bit, int64_t n, const T* row, T* kept) {
#if defined(__AVX512F__)
  for (int64_t j = 0; j < n; j += W) {
    const int64_t n_lanes = std::min<int64_t>(W, n - j);
    const uint32_t lanes = few_bits(bits, bit + j, n_lanes);
    compress_lanes(row + j, lanes, n_lanes == W, kept);
    kept += __builtin_popcount(lanes);
  }
#else
  for (int64_t j = 0; j < n; ++j) {
    if (few_bits(bits, bit + j, 1) != 0) *kept++ = row[j];
  }
#endif
}

template <typename T, int W>
void expand_row(const uint64_t* bits, int64_t bit, int64_t n, const T* kept, T* row) {
#if defined(__AVX512F__)
  for (int64_t j = 0; j < n; j += W) {
    const int64_t n_lanes = std::min<int64_t>(W, n - j);
    const uint32_t lanes = few_bits(bits, bit + j, n_lanes);
    expand_lanes(kept, lanes, n_lanes, row + j);
    kept += __builtin_popcount(lanes);
  }
#else
  for (int64_t j = 0; j < n; ++j) row[j] = few_bits(bits, bit + j, 1) != 0 ? *kept++ : T{0};
#endif
}

template <typename T, int W>
void stream_row(const T* in, int64_t n, T* out) {
  if (reinterpret_cast<uintptr_t>(out) % (W * sizeof(T)) != 0) {
    std::memcpy(out, in, n * sizeof(T));
    return;
  }
  int64_t j = 0;
  for (; j + W <= n; j += W) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out + j), _mm512_loadu_si512(in + j));
#else
    _mm256_stream_si256(reinterpret_cast<__m256i*>(out + j), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + j)));
#endif
  }
  _mm_sfence();  // before another thread is told that this is done
  std::memcpy(out + j, in + j, (n - j) * sizeof(T));
}

template <typename T, int W>
void select_kept(const uint8_t* mask, const T* in, int64_t n, T* out) {
  for (int64_t j = 0; j < n; ++j) out[j] = mask[j] != 0 ? in[j] : T{0};
}

template <typename T, int W>
MaskedLinearFunctions<T> masked_linear_functions() {
  return {gather_tile<T, W>, scatter_tile<T, W>, sparse_forward<T, W>, sparse_transposed<T, W>, sparse_outer<T, W>,
          dense_rows<T, W>,  compress_row<T, W>, expand_row<T, W>, stream_row<T, W>,    select_kept<T, W>};
}

}  // namespace
}  // namespace pns
