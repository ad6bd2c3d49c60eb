// A part of a batch between the two layouts: samples as rows, as torch has them, and features as rows of W samples and
// more, as the sparse products read them. W samples by W features go through registers at a time, along W samples from
// end to end: W streams that the processor fetches ahead.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/vec.h"

namespace pns {
namespace {

// The last block of W begins early rather than end behind n: what it has in common with the one before is done twice.
// Fewer than W features are the caller's: it gets them one by one.
template <int W, typename F, typename G>
[[gnu::always_inline]] inline void for_blocks(int64_t n, F&& block, G&& single) {
  for (int64_t f = 0; f < n && n >= W; f += W) block(std::min(f, n - W));
  for (int64_t f = 0; f < n && n < W; ++f) single(f);
}

// row(f)[b] = x[b * x_stride + f] for b < n_batch, 0 for b in [n_batch, width); width a multiple of W.
template <typename T, int W, typename Row>
[[gnu::always_inline]] inline void gather_features(const T* x, int64_t x_stride, int64_t n_batch, int64_t n_features,
                                                   int64_t width, Row&& row) {
  using Vector = Vec<T, W>;
  for (int64_t b = 0; b < width; b += W) {
    for_blocks<W>(
        n_features,
        [&](int64_t f) {
          Vector block[W];
          for (int j = 0; j < W; ++j) {
            block[j] = b + j < n_batch ? Vector::load(x + (b + j) * x_stride + f) : Vector::zero();
          }
          transpose(block);
          for (int j = 0; j < W; ++j) block[j].store(row(f + j) + b);
        },
        [&](int64_t f) {
          T* to = row(f);
          for (int64_t j = b; j < b + W; ++j) to[j] = j < n_batch ? x[j * x_stride + f] : T{0};
        });
  }
}

// y[b * y_stride + f] = row(f)[b] for b < n_batch.
template <typename T, int W, typename Row>
[[gnu::always_inline]] inline void scatter_features(int64_t n_batch, int64_t n_features, T* y, int64_t y_stride,
                                                    Row&& row) {
  using Vector = Vec<T, W>;
  for (int64_t b = 0; b < n_batch; b += W) {
    for_blocks<W>(
        n_features,
        [&](int64_t f) {
          Vector block[W];
          for (int j = 0; j < W; ++j) block[j] = Vector::load(row(f + j) + b);
          transpose(block);
          for (int j = 0; j < W && b + j < n_batch; ++j) block[j].store(y + (b + j) * y_stride + f);
        },
        [&](int64_t f) {
          const T* from = row(f);
          for (int64_t j = b; j < b + W && j < n_batch; ++j) y[j * y_stride + f] = from[j];
        });
  }
}

}  // namespace
}  // namespace pns
