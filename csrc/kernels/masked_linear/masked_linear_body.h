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
    default: return f(std::integral_constant<int, 4>());
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
    constexpr int V = vectors;
    for (int64_t r = 0; r < a.n_rows; ++r) {
      const int64_t first = a.begin[r], last = a.begin[r + 1];
      if (first == last) continue;
      T* out = y + r * V * W;
      Vector acc[V];
      for (int v = 0; v < V; ++v) acc[v] = Vector::load(out + v * W);
      if (a.value != nullptr) {
        sparse_sum<V, false>(a.column, a.value, a.column, first, last, x, V * W, acc);
      } else {
        sparse_sum<V, true>(a.column, a.weight + r * a.row_step, a.column, first, last, x, V * W, acc);
      }
      for (int v = 0; v < V; ++v) acc[v].store(out + v * W);
    }
  });
}

// Both gradients of a block in one pass by columns: an x and the sum of its gradient stay in registers, so that an entry
// loads its row, its value and V vectors of grad, which serve both. With 32 registers that sum is two, of every other
// entry: with one, a column of V = 2 waits for its FMAs (5% of 256 x 256 at density 0.3, B = 32). Arrays of Lanes, since
// GCC 12 keeps those of Vec in memory here, at twice the time.
template <typename T, int W, int V, bool kHasX, bool kHasDots>
void column_pass(const SparseColumns<T>& a, const T* grad, const T* x, T* grad_x, T* dots, bool is_first) {
  using Vector = Vec<T, W>;
  static_assert(MaskColumns::kGroup % W == 0);
  constexpr int kWidth = V * W, kChains = W * sizeof(T) == 64 ? 2 : 1;
  typename Vector::Lanes input[V], sum[kChains * V];
  const uint16_t *kept_column = a.kept_column, *row = a.row;
  const T* value = a.value;
  auto start_column = [&]() __attribute__((always_inline)) {
    const int64_t at = int64_t{*kept_column} * kWidth;
    for (int v = 0; v < V && kHasDots; ++v) input[v] = Vector::load(x + at + v * W).v;
    for (int v = 0; v < V && kHasX; ++v) sum[v] = Vector::load(grad_x + at + v * W).v;
    for (int v = V; v < kChains * V && kHasX; ++v) sum[v] = Vector::zero().v;
  };
  auto end_column = [&]() __attribute__((always_inline)) {
    const int64_t at = int64_t{*kept_column++} * kWidth;
    for (int v = 0; v < V && kHasX; ++v) Vector{kChains == 2 ? sum[v] + sum[V + v] : sum[v]}.store(grad_x + at + v * W);
  };
  auto entry = [&](int64_t k, int chain) __attribute__((always_inline)) {
    const T* g = grad + int64_t{row[k] & (MaskColumns::kEnd - 1)} * kWidth;
    Vector dot = Vector::zero();
    for (int v = 0; v < V && kHasDots; ++v) {
      const Vector of_input{input[v]};
      dot = v == 0 ? Vector::load(g) * of_input : fma(Vector::load(g + v * W), of_input, dot);
    }
    const Vector w = kHasX ? Vector::broadcast(value[k]) : Vector::zero();
    for (int v = 0; v < V && kHasX; ++v) {
      auto& of_chain = sum[chain * V + v];
      of_chain = fma(w, Vector::load(g + v * W), Vector{of_chain}).v;
    }
    if ((row[k] & MaskColumns::kEnd) != 0) end_column(), start_column();
    return dot;
  };
  start_column();
  for (int64_t k = 0; k < a.n_places; k += W) {
    const auto next = [&](int j) __attribute__((always_inline)) { return entry(k + j, j % kChains); };
    const Vector total = horizontal_sums<Vector>(next);
    if constexpr (kHasDots) (is_first ? total : total + Vector::load(dots + k)).store(dots + k);
  }
}

template <typename T, int W>
void sparse_gradients(const SparseColumns<T>& a, const T* grad, const T* x, int64_t width, T* grad_x, T* dots,
                      bool is_first) {
  with_vectors<T, W>(width, [&](auto vectors) {
    if (dots == nullptr) {
      column_pass<T, W, vectors, true, false>(a, grad, nullptr, grad_x, nullptr, false);
    } else if (grad_x == nullptr) {
      column_pass<T, W, vectors, false, true>(a, grad, x, nullptr, dots, is_first);
    } else {
      column_pass<T, W, vectors, true, true>(a, grad, x, grad_x, dots, is_first);
    }
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

#if defined(__AVX512F__)
// n <= 16 bits from `bit` on; a word may be read behind them (MaskPattern::bits has one to spare).
inline uint32_t few_bits(const uint64_t* bits, int64_t bit, int64_t n) {
  uint32_t word;
  std::memcpy(&word, reinterpret_cast<const char*>(bits) + bit / 8, sizeof(word));
  return (word >> (bit % 8)) & ((1u << n) - 1);
}

// Accesses are masked only at a row's end: on Zen 5 a masked load of what no cache holds takes three times as long as a
// plain one.
inline void compress_lanes(const float* row, uint32_t lanes, bool is_whole, float* kept) {
  const auto mask = static_cast<__mmask16>(lanes);
  _mm512_mask_compressstoreu_ps(kept, mask, is_whole ? _mm512_loadu_ps(row) : _mm512_maskz_loadu_ps(mask, row));
}
inline void compress_lanes(const double* row, uint32_t lanes, bool is_whole, double* kept) {
  const auto mask = static_cast<__mmask8>(lanes);
  _mm512_mask_compressstoreu_pd(kept, mask, is_whole ? _mm512_loadu_pd(row) : _mm512_maskz_loadu_pd(mask, row));
}

template <typename T, int W>
void compress_row(const uint64_t* bits, int64_t bit, int64_t n, const T* row, T* kept) {
  for (int64_t j = 0; j < n; j += W) {
    const int64_t n_lanes = std::min<int64_t>(W, n - j);
    const uint32_t lanes = few_bits(bits, bit + j, n_lanes);
    compress_lanes(row + j, lanes, n_lanes == W, kept);
    kept += __builtin_popcount(lanes);
  }
}
#endif

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
#if defined(__AVX512F__)
  const auto compress = compress_row<T, W>;
#else
  constexpr std::nullptr_t compress = nullptr;
#endif
  return {4 * W, gather_tile<T, W>, scatter_tile<T, W>, sparse_forward<T, W>, sparse_gradients<T, W>,
          dense_rows<T, W>, compress, stream_row<T, W>, select_kept<T, W>};
}

}  // namespace
}  // namespace pns
