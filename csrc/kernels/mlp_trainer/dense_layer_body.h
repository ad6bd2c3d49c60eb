// The dense path of the trainer: register-blocked products (core/dense_product.h), the gradients of a few rows of weights
// and their update while the first cache has them.
#pragma once

#include <type_traits>

#include "core/dense_product.h"
#include "core/vec.h"
#include "kernels/mlp_trainer/network.h"
#include "kernels/mlp_trainer/update_body.h"

namespace pns {
namespace {

// out[b][i] = x[i][b], i padded with zeros to row_stride, b padded to whole vectors.
template <int W>
inline void transpose_batch(const float* x, int64_t stride, int64_t n_in, int64_t row_stride, int64_t n_batch, float* out) {
  using Vector = Vec<float, W>;
  for (int64_t i = 0; i < row_stride; i += W) {
    for (int64_t b = 0; b < n_batch; b += W) {
      Vector block[W];
      for (int j = 0; j < W; ++j) block[j] = i + j < n_in ? Vector::load(x + (i + j) * stride + b) : Vector::zero();
      transpose(block);
      for (int j = 0; j < W; ++j) block[j].store(out + (b + j) * row_stride + i);
    }
  }
}

// Unrolled as dense_block is, see there.
//
// g[r][i + j] = sum over the batch of delta[r][b] * xt[b][i + j] for R rows and U vectors of weights; rows of xt and g
// are n long.
template <int W, int R, int U>
inline void dense_gradient_block(const float* first_delta, int64_t stride, const float* xt, int64_t n, int64_t n_batch,
                                 int64_t i, float* g) {
  using Vector = Vec<float, W>;
  Vector acc[R][U];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[r][u] = Vector::zero();
  }
  RowCursor<R, float> delta(first_delta, stride);
  xt += i;
  for (int64_t b = 0; b < n_batch; ++b, xt += n, delta.advance(1)) {
    Vector x[U];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) x[u] = Vector::load(xt + u * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector d = Vector::broadcast(delta[r]);
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) acc[r][u] = fma(d, x[u], acc[r][u]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[r][u].store(g + r * n + i + u * W);
  }
}

// R rows from one end to the other, so that the parameters and their state stream through the caches; g [R][row_stride]
// is room for their gradients.
template <int W, int R, typename Updater>
inline void dense_gradient_rows(Layer& layer, const float* xt, int64_t stride, int64_t n_batch, int64_t row, float* g,
                                const Updater& updater) {
  constexpr int U = W == 16 ? 4 : 2;
  const int64_t n = layer.row_stride;
  const float* delta = layer.delta.data() + row * stride;
  int64_t i = 0;
  for (; i + U * W <= n; i += U * W) dense_gradient_block<W, R, U>(delta, stride, xt, n, n_batch, i, g);
  if (U > 3 && i + 3 * W <= n) dense_gradient_block<W, R, 3>(delta, stride, xt, n, n_batch, i, g), i += 3 * W;
  if (i + 2 * W <= n) dense_gradient_block<W, R, 2>(delta, stride, xt, n, n_batch, i, g), i += 2 * W;
  if (i < n) dense_gradient_block<W, R, 1>(delta, stride, xt, n, n_batch, i, g);
  update_run<W>(layer.trained(), row * n, (row + R) * n, g, updater);
}

// The gradient of a share of the rows, xt [batch][row_stride], and their update; g has room for kGradientRows.
template <int W, typename Updater>
inline void dense_gradient_update(Layer& layer, const float* xt, int64_t stride, int64_t n_batch, Share share,
                                  float* g, const Updater& updater) {
  const int64_t end = share.end(layer.n_out);
  int64_t row = share.begin(layer.n_out);
  const auto advance = [&](auto rows) {
    constexpr int R = decltype(rows)::value;
    for (; row + R <= end; row += R) dense_gradient_rows<W, R>(layer, xt, stride, n_batch, row, g, updater);
  };
  // 4 rows at a time leave less behind; but where xt does not stay in the first cache, more rows read it less often.
  constexpr int64_t kMostNear = 8192;
  if (W < 16 || n_batch * layer.row_stride > kMostNear) advance(std::integral_constant<int, kGradientRows>());
  if (W == 16) advance(std::integral_constant<int, 4>());
  advance(std::integral_constant<int, 2>());
  advance(std::integral_constant<int, 1>());
}

}  // namespace
}  // namespace pns
