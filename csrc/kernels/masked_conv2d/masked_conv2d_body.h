// The parts of masked_conv2d that touch every number, written once over Vec<T, W>.
#pragma once

#include <type_traits>

#include "core/batch_tile.h"
#include "core/sparse_rows.h"
#include "core/vec.h"
#include "kernels/masked_conv2d/masked_conv2d.h"

namespace pns {
namespace {

constexpr int kSums = 8;  // at a time: an FMA takes 4 cycles and two start each cycle

// f(std::integral_constant<n>) for n in [1, kSums].
template <int N = kSums, typename F>
[[gnu::always_inline]] inline void with_count(int64_t n, F&& f) {
  if constexpr (N > 1) {
    if (n < N) return with_count<N - 1>(n, f);
  }
  f(std::integral_constant<int, N>());
}

// As few equal pieces of at most kSums as cover n.
inline int64_t piece_of(int64_t n) {
  const int64_t n_pieces = (n + kSums - 1) / kSums;
  return (n + n_pieces - 1) / n_pieces;
}

template <typename T, int W>
void gather_tile(const T* x, int64_t x_stride, int64_t n_batch, int64_t n_features, const int32_t* place, T* tile) {
  constexpr int64_t kWidth = kTileSamples<T>;
  gather_features<T, W>(x, x_stride, n_batch, n_features, kWidth, [&](int64_t f) { return tile + place[f] * kWidth; });
}

template <typename T, int W>
void scatter_tile(const T* tile, const int32_t* place, int64_t n_batch, int64_t n_features, T* y, int64_t y_stride) {
  constexpr int64_t kWidth = kTileSamples<T>;
  scatter_features<T, W>(n_batch, n_features, y, y_stride, [&](int64_t f) { return tile + place[f] * kWidth; });
}

// L lines of N vectors, summed in registers over all entries: a broadcast weight is shared by L * N FMAs.
template <typename T, int W, int L, int N>
[[gnu::always_inline]] inline void product_block(const ConvEntries<T>& entries, const T* x, int64_t x_step, T start,
                                                 T* y, int64_t y_step) {
  using Vector = Vec<T, W>;
  Vector sum[L][N];
  for (int l = 0; l < L; ++l) {
    for (int n = 0; n < N; ++n) sum[l][n] = Vector::broadcast(start);
  }
  for (int64_t k = 0; k < entries.count; ++k) {
    const Vector w = Vector::broadcast(entries.value[k]);
    const T* from = x + entries.offset[k];
    for (int l = 0; l < L; ++l) {
      for (int n = 0; n < N; ++n) sum[l][n] = fma(w, Vector::load(from + l * x_step + n * W), sum[l][n]);
    }
  }
  for (int l = 0; l < L; ++l) {
    for (int n = 0; n < N; ++n) sum[l][n].store(y + l * y_step + n * W);
  }
}

// Lines [l, n_lines), L at a time where so many are left, then half as many.
template <typename T, int W, int L, int N>
[[gnu::always_inline]] inline void product_column(const ConvEntries<T>& entries, int64_t l, int64_t n_lines, const T* x,
                                                  int64_t x_step, T start, T* y, int64_t y_step) {
  for (; l + L <= n_lines; l += L) {
    product_block<T, W, L, N>(entries, x + l * x_step, x_step, start, y + l * y_step, y_step);
  }
  if constexpr (L > 1) {
    if (l < n_lines) product_column<T, W, L / 2, N>(entries, l, n_lines, x, x_step, start, y, y_step);
  }
}

template <typename T, int W>
void product(const ConvEntries<T>& entries, const ConvLines& lines, const T* x, T start, T* y) {
  const int64_t length = lines.n_pixels * kTileSamples<T>, most = piece_of(length / W) * W;
  for (int64_t at = 0; at < length; at += most) {
    with_count(std::min(most, length - at) / W, [&](auto n) {
      constexpr int N = n, L = N == 1 ? 8 : N == 2 ? 4 : N <= 4 ? 2 : 1;
      product_column<T, W, L, N>(entries, 0, lines.n_lines, x + at, lines.x_step, start, y + at, length);
    });
  }
}

// E entries at a time: one load of grad for E FMAs. With few of them, two or four sums each.
template <typename T, int W, int E>
[[gnu::always_inline]] inline void dots_block(const int32_t* offset, const ConvLines& lines, const T* grad, const T* x,
                                              PendingDots<T, W>* pending) {
  using Vector = Vec<T, W>;
  constexpr int U = E == 1 ? 4 : E <= 3 ? 2 : 1;
  const int64_t length = lines.n_pixels * kTileSamples<T>;
  Vector sum[E][U];
  for (int e = 0; e < E; ++e) {
    for (int u = 0; u < U; ++u) sum[e][u] = Vector::zero();
  }
  for (int64_t l = 0; l < lines.n_lines; ++l) {
    const T* from = x + l * lines.x_step;
    int64_t n = 0;
    for (; n + U * W <= length; n += U * W) {
      for (int u = 0; u < U; ++u) {
        const Vector g = Vector::load(grad + l * length + n + u * W);
        for (int e = 0; e < E; ++e) sum[e][u] = fma(g, Vector::load(from + offset[e] + n + u * W), sum[e][u]);
      }
    }
    for (; n < length; n += W) {
      const Vector g = Vector::load(grad + l * length + n);
      for (int e = 0; e < E; ++e) sum[e][0] = fma(g, Vector::load(from + offset[e] + n), sum[e][0]);
    }
  }
  for (int e = 0; e < E; ++e) {
    for (int u = 1; u < U; ++u) sum[e][0] = sum[e][0] + sum[e][u];
    pending->push(sum[e][0]);
  }
}

template <typename T, int W>
void dots(const ConvEntries<T>& entries, const ConvLines& lines, const T* grad, const T* x, T* dots) {
  PendingDots<T, W> pending(dots, false);
  const int64_t most = entries.count > 0 ? piece_of(entries.count) : 1;
  for (int64_t k = 0; k < entries.count; k += most) {
    with_count(std::min(most, entries.count - k),
               [&](auto e) { dots_block<T, W, e>(entries.offset + k, lines, grad, x, &pending); });
  }
  pending.flush();
}

template <typename T, int W>
MaskedConv2dFunctions<T> masked_conv2d_functions() {
  return {gather_tile<T, W>, scatter_tile<T, W>, product<T, W>, dots<T, W>};
}

}  // namespace
}  // namespace pns
