// The dense path of the trainer: register-blocked products (core/dense_product.h), the gradients of a few rows of weights
// and their update while the first cache has them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/dense_product.h"
#include "core/vec.h"
#include "kernels/mlp_trainer/network.h"
#include "kernels/mlp_trainer/update_body.h"

namespace pns {
namespace {

// Of a layer's inputs transposed: whole rows of weights' inputs, then those of the tail, again and again up to a vector.
template <int W>
inline int64_t transposed_stride(const Layer& layer) {
  return layer.row_stride + (layer.has_tail() ? W : 0);
}

// out[b][i] = x[i][b], zeros behind the n_in inputs, b padded to whole vectors.
template <int W>
inline void transpose_batch(const Layer& layer, const float* x, int64_t stride, int64_t n_batch, float* out) {
  using Vector = Vec<float, W>;
  const int64_t n = transposed_stride<W>(layer);
  const auto move = [=](int64_t i, auto row_at) __attribute__((always_inline)) {
    for (int64_t b = 0; b < n_batch; b += W) {
      Vector block[W];
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) block[j] = row_at(j, b);
      transpose(block);
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) block[j].store(out + (b + j) * n + i);
    }
  };
  int64_t i = 0;
  for (; i + W <= std::min(layer.n_in, layer.row_stride); i += W) {
    move(i, [=](int j, int64_t b) { return Vector::load(x + (i + j) * stride + b); });
  }
  for (; i < n; i += W) {
    move(i, [=, &layer](int j, int64_t b) {
      const int64_t row = i + (i < layer.row_stride ? j : j % Layer::kTail);
      return row < layer.n_in ? Vector::load(x + row * stride + b) : Vector::zero();
    });
  }
}

// What a block of gradients reads, deltas [row][stride] and xt [batch][n], and the g [row][row_stride] it writes.
struct GradientBlock {
  const float* delta;
  int64_t stride;
  const float* xt;
  int64_t n, n_batch;
  float* g;
  int64_t row_stride;
};

// g[r][i + j] = sum over the batch of delta[r][b] * xt[b][i + j] for R rows and U vectors of weights, and with kHasTail
// for those rows' tails, side by side in one vector behind all of g. Unrolled as dense_block is, see there.
template <int W, int R, int U, bool kHasTail>
inline void dense_gradient_block(const GradientBlock& block, int64_t i) {
  using Vector = Vec<float, W>;
  constexpr int kTail = Layer::kTail;
  static_assert(!kHasTail || R * kTail <= W);
  typename Vector::IntLanes lane;
  for (int j = 0; j < W; ++j) lane[j] = j;
  Vector acc[R][U], of_tails = Vector::zero();
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[r][u] = Vector::zero();
  }
  RowCursor<R, float> delta(block.delta, block.stride);
  const float *xt = block.xt + i, *tail = block.xt + block.row_stride;
  for (int64_t b = 0; b < block.n_batch; ++b, xt += block.n, tail += block.n, delta.advance(1)) {
    Vector x[U], d_of_tails = Vector::zero();
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) x[u] = Vector::load(xt + u * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector d = Vector::broadcast(delta[r]);
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) acc[r][u] = fma(d, x[u], acc[r][u]);
      if (kHasTail) d_of_tails = R * kTail == W && r == 0 ? d : select(lane / kTail == r, d, d_of_tails);
    }
    if (kHasTail) of_tails = fma(d_of_tails, Vector::load(tail), of_tails);
  }
  float* g = block.g + i;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[r][u].store(g + r * block.row_stride + u * W);
  }
  if (kHasTail) of_tails.store(block.g + R * block.row_stride);
}

// R rows from one end to the other, so that the parameters and their state stream through the caches; g has room for
// their gradients. Blocks of about the same width: a narrow one has too few sums for the FMAs' latency.
template <int W, int R, bool kHasTail, typename Updater>
inline void dense_gradient_rows(Layer& layer, const float* xt, int64_t stride, int64_t n_batch, int64_t row, float* g,
                                const Updater& updater) {
  constexpr int kWidest = W == 16 ? 4 : 2;
  const int64_t n = layer.row_stride, n_vectors = n / W, n_blocks = (n_vectors + kWidest - 1) / kWidest;
  const GradientBlock block{layer.delta.data() + row * stride, stride, xt, transposed_stride<W>(layer), n_batch, g, n};
  for (int64_t j = 0; j < n_blocks; ++j) {
    const int64_t begin = j * n_vectors / n_blocks, end = (j + 1) * n_vectors / n_blocks;
    const auto run = [&](auto vectors) {
      constexpr int U = decltype(vectors)::value;
      if constexpr (U <= kWidest) {
        if (kHasTail && end == n_vectors) return dense_gradient_block<W, R, U, kHasTail>(block, begin * W);
        dense_gradient_block<W, R, U, false>(block, begin * W);
      }
    };
    switch (end - begin) {
      case 1: run(std::integral_constant<int, 1>()); break;
      case 2: run(std::integral_constant<int, 2>()); break;
      case 3: run(std::integral_constant<int, 3>()); break;
      default: run(std::integral_constant<int, 4>());
    }
  }
  update_run<W>(layer.trained(), row * n, (row + R) * n, g, updater);
  if (kHasTail) {
    const int64_t at = layer.tail_at() + row * Layer::kTail;
    update_run<W>(layer.trained(), at, at + W, g + R * n, updater);
  }
}

// The gradient of a share of the rows, xt [batch][transposed_stride], and their update; g has room for kGradientRows and a
// vector.
template <int W, typename Updater>
inline void dense_gradient_update(Layer& layer, const float* xt, int64_t stride, int64_t n_batch, Share share,
                                  float* g, const Updater& updater) {
  // Where rows share a vector of their tails, a share has all of them.
  const int64_t together = layer.has_tail() ? W / Layer::kTail : 1, n_together = (layer.n_out + together - 1) / together;
  int64_t row = share.begin(n_together) * together;
  const int64_t end = std::min(share.end(n_together) * together, layer.n_out);
  const auto advance = [&](auto rows, auto has_tail) {
    constexpr int R = decltype(rows)::value;
    for (; row + R <= end; row += R) {
      dense_gradient_rows<W, R, decltype(has_tail)::value>(layer, xt, stride, n_batch, row, g, updater);
    }
  };
  const auto advance_by_four = [&](auto has_tail) {
    if constexpr (W == 16) {
      advance(std::integral_constant<int, 4>(), has_tail);
      advance(std::integral_constant<int, 3>(), has_tail);
    }
    advance(std::integral_constant<int, 2>(), has_tail);
    advance(std::integral_constant<int, 1>(), has_tail);
  };
  if constexpr (W == 16) {
    if (layer.has_tail()) return advance_by_four(std::true_type());
  }
  // 4 rows at a time leave less behind; but where xt does not stay in the first cache, more rows read it less often.
  constexpr int64_t kMostNear = 8192;
  if (W < 16 || n_batch * layer.row_stride > kMostNear) {
    advance(std::integral_constant<int, kGradientRows>(), std::false_type());
  }
  advance_by_four(std::false_type());
}

}  // namespace
}  // namespace pns
