// masked_linear over one batch tile, written once over Vec<T, W>. Rows [row_begin, row_end) are this call's.
#pragma once

#include "core/sparse_rows.h"
#include "core/vec.h"
#include "kernels/masked_linear/masked_linear.h"

namespace pns {
namespace {

template <typename T, int W>
void masked_tile(MaskedProduct product, const MaskedTile<T>& t, int64_t row_begin, int64_t row_end) {
  using Vector = Vec<T, W>;
  if (product == MaskedProduct::kOuter) {
    for (int64_t k = t.begin[row_begin]; k < t.begin[row_end]; k += W) {
      const int n = static_cast<int>(t.begin[row_end] - k < W ? t.begin[row_end] - k : W);
      T dots[W];
      sparse_dots<Vector>(t.row + k, t.column + k, n, t.grad, t.x, kBatchTile, kBatchTile / W).store(dots);
      for (int j = 0; j < n; ++j) t.y[k + j] += dots[j];
    }
    return;
  }
  constexpr int kVectors = 4;  // 4 accumulators twice, see sparse_row_product
  const SparseRows<T> rows{t.n_rows, t.begin, t.column, t.value, nullptr};
  for (int64_t r = row_begin; r < row_end; ++r) {
    const Vector bias = Vector::broadcast(t.bias == nullptr ? T{0} : t.bias[r]);
    for (int64_t b = 0; b < kBatchTile; b += kVectors * W) {
      Vector acc[kVectors];
      sparse_row_product<kVectors, false>(rows, r, t.x + b, kBatchTile, acc);
      for (int v = 0; v < kVectors; ++v) (acc[v] + bias).store(t.y + r * kBatchTile + b + v * W);
    }
  }
}

// W samples by W features at a time through registers; what does not fill a block goes one by one.
template <typename T, int W>
void gather_tile(const T* x, int64_t n_batch, int64_t n_features, T* tile) {
  using Vector = Vec<T, W>;
  for (int64_t f = 0; f < n_features; f += W) {
    for (int64_t b = 0; b < kBatchTile; b += W) {
      if (f + W <= n_features && b + W <= n_batch) {
        Vector block[W];
        for (int j = 0; j < W; ++j) block[j] = Vector::load(x + (b + j) * n_features + f);
        transpose(block);
        for (int j = 0; j < W; ++j) block[j].store(tile + (f + j) * kBatchTile + b);
        continue;
      }
      for (int64_t i = f; i < f + W && i < n_features; ++i) {
        for (int64_t j = b; j < b + W; ++j) tile[i * kBatchTile + j] = j < n_batch ? x[j * n_features + i] : T{0};
      }
    }
  }
}

template <typename T, int W>
void scatter_tile(const T* tile, int64_t n_batch, int64_t n_features, T* y) {
  using Vector = Vec<T, W>;
  for (int64_t f = 0; f < n_features; f += W) {
    for (int64_t b = 0; b < n_batch; b += W) {
      if (f + W <= n_features && b + W <= n_batch) {
        Vector block[W];
        for (int j = 0; j < W; ++j) block[j] = Vector::load(tile + (f + j) * kBatchTile + b);
        transpose(block);
        for (int j = 0; j < W; ++j) block[j].store(y + (b + j) * n_features + f);
        continue;
      }
      for (int64_t i = f; i < f + W && i < n_features; ++i) {
        for (int64_t j = b; j < b + W && j < n_batch; ++j) y[j * n_features + i] = tile[i * kBatchTile + j];
      }
    }
  }
}

template <typename T, int W>
MaskedTileFunctions<T> masked_tile_functions() {
  return {masked_tile<T, W>, gather_tile<T, W>, scatter_tile<T, W>};
}

}  // namespace
}  // namespace pns
