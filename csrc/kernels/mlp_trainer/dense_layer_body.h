// The dense path of the trainer: register-blocked products (core/dense_product.h), the gradient of a block of weights
// and its update while it is in registers.
#pragma once

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

// The gradient of R rows x U vectors of weights from (row, i) on, sum over the batch of delta[row][b] * xt[b][i], and
// their update while it is still in registers.
template <int W, int R, int U, typename Updater>
inline void dense_gradient_block(Layer& layer, const float* xt, int64_t stride, int64_t n_batch, int64_t row, int64_t i,
                                 const Updater& updater) {
  using Vector = Vec<float, W>;
  Vector acc[R][U];
  for (int r = 0; r < R; ++r) {
    for (int u = 0; u < U; ++u) acc[r][u] = Vector::zero();
  }
  RowCursor<R, float> delta(layer.delta.data() + row * stride, stride);
  xt += i;
  for (int64_t b = 0; b < n_batch; ++b, xt += layer.row_stride, delta.advance(1)) {
    Vector x[U];
    for (int u = 0; u < U; ++u) x[u] = Vector::load(xt + u * W);
    for (int r = 0; r < R; ++r) {
      const Vector d = Vector::broadcast(delta[r]);
      for (int u = 0; u < U; ++u) acc[r][u] = fma(d, x[u], acc[r][u]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int u = 0; u < U; ++u) {
      const int64_t k = (row + r) * layer.row_stride + i + u * W;
      Vector g = acc[r][u];
      if (layer.has_factor) g = trained_gradient(g, layer.factor.data() + k, layer.is_edge_popup, layer.trained() + k);
      updater.apply(layer.trained() + k, layer.state.data() + 2 * k, g);
    }
  }
}

// R rows from one end to the other, so that the parameters and their state stream through the caches.
template <int W, int R, typename Updater>
inline void dense_gradient_rows(Layer& layer, const float* xt, int64_t stride, int64_t n_batch, int64_t row,
                                const Updater& updater) {
  constexpr int U = W == 16 ? 4 : 2;
  const int64_t n = layer.row_stride;
  int64_t i = 0;
  for (; i + U * W <= n; i += U * W) dense_gradient_block<W, R, U>(layer, xt, stride, n_batch, row, i, updater);
  if (U > 3 && i + 3 * W <= n) dense_gradient_block<W, R, 3>(layer, xt, stride, n_batch, row, i, updater), i += 3 * W;
  if (i + 2 * W <= n) dense_gradient_block<W, R, 2>(layer, xt, stride, n_batch, row, i, updater), i += 2 * W;
  if (i < n) dense_gradient_block<W, R, 1>(layer, xt, stride, n_batch, row, i, updater);
}

// The gradient of a share of the rows, xt [batch][row_stride], and their update.
template <int W, typename Updater>
inline void dense_gradient_update(Layer& layer, const float* xt, int64_t stride, int64_t n_batch, Share share,
                                  const Updater& updater) {
  const int64_t end = share.end(layer.n_out);
  int64_t row = share.begin(layer.n_out);
  for (; row + 6 <= end; row += 6) dense_gradient_rows<W, 6>(layer, xt, stride, n_batch, row, updater);
  for (; row + 2 <= end; row += 2) dense_gradient_rows<W, 2>(layer, xt, stride, n_batch, row, updater);
  for (; row < end; ++row) dense_gradient_rows<W, 1>(layer, xt, stride, n_batch, row, updater);
}

}  // namespace
}  // namespace pns
