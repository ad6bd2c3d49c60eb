// The parts of masked_conv2d that touch every number, written once over Vec<T, W>.
#pragma once

#include <type_traits>

#include "core/batch_tile.h"
#include "core/vec.h"
#include "kernels/masked_conv2d/masked_conv2d.h"

namespace pns {
namespace {

constexpr int kSums = 8;  // at a time: an FMA takes 4 cycles and two start each cycle

constexpr int kEntries = 4;  // of the dots, at a time: the addresses of more do not fit in registers

// f(std::integral_constant<n>) for n in [1, N].
template <int N, typename F>
[[gnu::always_inline]] inline void with_count(int64_t n, F&& f) {
  if constexpr (N > 1) {
    if (n < N) return with_count<N - 1>(n, f);
  }
  f(std::integral_constant<int, N>());
}

// As few equal pieces of at most `most` as cover n.
inline int64_t piece_of(int64_t n, int64_t most) {
  const int64_t n_pieces = (n + most - 1) / most;
  return (n + n_pieces - 1) / n_pieces;
}

template <typename T, int W>
void gather_tile(const T* x, int64_t x_stride, int64_t n_batch, int64_t n_features, const int32_t* place, T* tile) {
  constexpr int64_t kWidth = kTileSamples<T>;
  if (place == nullptr) {
    gather_features<T, W>(x, x_stride, n_batch, n_features, kWidth, [&](int64_t f) { return tile + f * kWidth; });
  } else {
    gather_features<T, W>(x, x_stride, n_batch, n_features, kWidth, [&](int64_t f) { return tile + place[f] * kWidth; });
  }
}

template <typename T, int W>
void scatter_tile(const T* tile, const int32_t* place, int64_t n_batch, int64_t n_features, T* y, int64_t y_stride) {
  constexpr int64_t kWidth = kTileSamples<T>;
  if (place == nullptr) {
    scatter_features<T, W>(n_batch, n_features, y, y_stride, [&](int64_t f) { return tile + f * kWidth; });
  } else {
    scatter_features<T, W>(n_batch, n_features, y, y_stride, [&](int64_t f) { return tile + place[f] * kWidth; });
  }
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
  const int64_t length = lines.n_pixels * kTileSamples<T>, most = piece_of(length / W, kSums) * W;
  for (int64_t at = 0; at < length; at += most) {
    with_count<kSums>(std::min(most, length - at) / W, [&](auto n) {
      constexpr int N = n, L = N == 1 ? 8 : N == 2 ? 4 : N <= 4 ? 2 : 1;
      product_column<T, W, L, N>(entries, 0, lines.n_lines, x + at, lines.x_step, start, y + at, length);
    });
  }
}

// sum[e] = sum over l and n of grad[l][n] * x[offset[e] + l * x_step + n]: one load of grad for kEntries FMAs, and two sums
// of each entry, to have kSums.
template <typename T, int W>
[[gnu::always_inline]] inline void dots_block(const int32_t* offset, const ConvLines& lines, const T* grad, const T* x,
                                              Vec<T, W>* sum) {
  using Vector = Vec<T, W>;
  const int64_t length = lines.n_pixels * kTileSamples<T>;
  const T* from[kEntries];
  Vector second[kEntries];
  for (int e = 0; e < kEntries; ++e) {
    from[e] = x + offset[e];
    sum[e] = second[e] = Vector::zero();
  }
  for (int64_t l = 0; l < lines.n_lines; ++l, grad += length) {
    int64_t n = 0;
    for (; n + 2 * W <= length; n += 2 * W) {
      const Vector g = Vector::load(grad + n), h = Vector::load(grad + n + W);
      for (int e = 0; e < kEntries; ++e) sum[e] = fma(g, Vector::load(from[e] + n), sum[e]);
      for (int e = 0; e < kEntries; ++e) second[e] = fma(h, Vector::load(from[e] + n + W), second[e]);
    }
    if (n < length) {
      const Vector g = Vector::load(grad + n);
      for (int e = 0; e < kEntries; ++e) sum[e] = fma(g, Vector::load(from[e] + n), sum[e]);
    }
    for (int e = 0; e < kEntries; ++e) from[e] += lines.x_step;
  }
  for (int e = 0; e < kEntries; ++e) sum[e] = sum[e] + second[e];
}

// W entries, whose sums over lanes are folded together. Where fewer are left, blocks are filled up with the last one.
template <typename T, int W>
void dots(const ConvEntries<T>& entries, const ConvLines& lines, const T* grad, const T* x, T* dots) {
  using Vector = Vec<T, W>;
  Vector sum[W];
  for (int64_t k = 0; k < entries.count; k += W) {
    const int64_t n = std::min<int64_t>(W, entries.count - k);
    for (int64_t e = 0; e < W; e += kEntries) {
      if (e + kEntries <= n) {
        dots_block<T, W>(entries.offset + k + e, lines, grad, x, sum + e);
      } else if (e < n) {
        int32_t offset[kEntries];
        for (int64_t j = 0; j < kEntries; ++j) offset[j] = entries.offset[k + std::min(e + j, n - 1)];
        dots_block<T, W>(offset, lines, grad, x, sum + e);
      } else {
        for (int64_t j = e; j < e + kEntries; ++j) sum[j] = Vector::zero();
      }
    }
    const Vector total = horizontal_sums(sum);
    if (n == W) {
      (total + Vector::load(dots + k)).store(dots + k);
    } else {
      T lanes[W];
      total.store(lanes);
      for (int64_t e = 0; e < n; ++e) dots[k + e] += lanes[e];
    }
  }
}

template <typename T, int W>
T sum(const T* x, int64_t n) {
  using Vector = Vec<T, W>;
  constexpr int kPartial = 4;
  Vector partial[kPartial] = {Vector::zero(), Vector::zero(), Vector::zero(), Vector::zero()};
  int64_t k = 0;
  for (; k + kPartial * W <= n; k += kPartial * W) {
    for (int p = 0; p < kPartial; ++p) partial[p] = partial[p] + Vector::load(x + k + p * W);
  }
  for (; k < n; k += W) partial[0] = partial[0] + Vector::load(x + k);
  T lanes[W];
  ((partial[0] + partial[1]) + (partial[2] + partial[3])).store(lanes);
  T total{0};
  for (T lane : lanes) total += lane;
  return total;
}

template <typename V> typename V::IntLanes exceeds(V a, V b) { return (a > b) | (a.v != a.v); }

template <typename T, int W, int N>
void pool_squares(const T* tile, const int32_t* place, int64_t n, bool has_relu, T* kept, uint16_t* passes) {
  using Vector = Vec<T, W>;
  constexpr int64_t kWidth = kTileSamples<T>;
  for (int64_t q = 0; q < n; ++q, place += N) {
    uint32_t found[N] = {};
    for (int64_t at = 0; at < kWidth; at += W) {
      Vector largest = Vector::load(tile + place[0] * kWidth + at);
      uint32_t is_at[N] = {(1u << W) - 1};
      for (int p = 1; p < N; ++p) {
        const Vector v = Vector::load(tile + place[p] * kWidth + at);
        const auto is_larger = exceeds(v, largest);
        largest = select(is_larger, v, largest);
        is_at[p] = lane_bits<W>(is_larger);
        for (int before = 0; before < p; ++before) is_at[before] &= ~is_at[p];
      }
      if (has_relu) {
        const auto is_positive = exceeds(largest, Vector::zero());
        largest = select(is_positive, largest, Vector::zero());
        for (uint32_t& bits : is_at) bits &= lane_bits<W>(is_positive);
      }
      largest.store(kept + q * kWidth + at);
      for (int p = 0; p < N; ++p) found[p] |= is_at[p] << at;
    }
    for (int p = 0; p < N && passes != nullptr; ++p) passes[q * N + p] = static_cast<uint16_t>(found[p]);
  }
}

template <typename T, int W>
void pool(const T* tile, const int32_t* place, int64_t n, int64_t n_each, bool has_relu, T* kept, uint16_t* passes) {
  (n_each == 1 ? pool_squares<T, W, 1> : pool_squares<T, W, 4>)(tile, place, n, has_relu, kept, passes);
}

template <typename T, int W, int N>
void spread_squares(const T* kept, const uint16_t* passes, const int32_t* place, int64_t n, T* tile) {
  using Vector = Vec<T, W>;
  constexpr int64_t kWidth = kTileSamples<T>;
  for (int64_t q = 0; q < n; ++q, place += N, passes += N) {
    for (int64_t at = 0; at < kWidth; at += W) {
      const Vector v = Vector::load(kept + q * kWidth + at);
      for (int p = 0; p < N; ++p) {
        const auto is_passed = lanes_of_bits<Vector>(uint32_t{passes[p]} >> at);
        select(is_passed, v, Vector::zero()).store(tile + place[p] * kWidth + at);
      }
    }
  }
}

template <typename T, int W>
void spread(const T* kept, const uint16_t* passes, const int32_t* place, int64_t n, int64_t n_each, T* tile) {
  (n_each == 1 ? spread_squares<T, W, 1> : spread_squares<T, W, 4>)(kept, passes, place, n, tile);
}

template <typename T, int W>
MaskedConv2dFunctions<T> masked_conv2d_functions() {
  return {gather_tile<T, W>, scatter_tile<T, W>, product<T, W>, dots<T, W>, sum<T, W>, pool<T, W>, spread<T, W>};
}

}  // namespace
}  // namespace pns
