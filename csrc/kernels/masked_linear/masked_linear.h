// masked_linear: products of a batch with a masked weight, at the cost of the kept weights.
//
//   kForward    y[n,b,o] = sum_i x[n,b,i] W[n,o,i] m[n,o,i] + bias[n,o]
//   kTransposed y[n,b,i] = sum_o x[n,b,o] W[n,o,i] m[n,o,i]          (the gradient to the input)
//   kOuter      y[n,o,i] = m[n,o,i] sum_b g[n,b,o] x[n,b,i]          (the gradient to the weight; 0 where pruned)
//
// Shapes: N networks, B batch, I inputs, O outputs; all contiguous, row-major; mask one byte an entry.
// A sum runs over the kept entries in index order, so a result depends on its own network only: not on N, not on
// the number of threads. Where the mask is 0 nothing is read: a NaN or inf there does not spread.
// Reads N*O*I mask bytes and the kept weights; the batch is transposed to [feature][batch] in tiles that fit L2.
#pragma once

#include <cstdint>

namespace pns {

enum class MaskedProduct { kForward, kTransposed, kOuter };

template <typename T>
struct MaskedLinearParams {
  int64_t n_networks, batch, n_in, n_out;
  const T* x;           // [N, B, I]; kTransposed: [N, B, O]
  const T* grad;        // kOuter: [N, B, O]
  const T* weight;      // [N, O, I]; unused by kOuter
  const uint8_t* mask;  // [N, O, I]
  const T* bias;        // [N, O] or null; kForward only
  T* y;
  int n_threads;
};

template <typename T>
void masked_linear(MaskedProduct product, const MaskedLinearParams<T>& p);

// One network's kept entries and one batch tile, prepared by masked_linear.cpp for the SIMD copies of the body.
template <typename T>
struct MaskedTile {
  int64_t n_rows;          // rows of the product: O, or I when transposed
  int64_t n_entries;
  const int64_t* begin;    // [n_rows + 1]
  const int32_t* row;      // [entries]
  const int32_t* column;   // [entries]
  const T* value;          // [entries]
  const T* bias;           // [n_rows] or null
  const T* x;              // [columns][kBatchTile]
  const T* grad;           // kOuter: [n_rows][kBatchTile]
  T* y;                    // [n_rows][kBatchTile]; kOuter: [entries], added to
};

constexpr int64_t kBatchTile = 64;  // floats: 4 AVX-512 registers; a tile of 4,096 features is 1 MB, within L2

// What each SIMD level provides.
template <typename T>
struct MaskedTileFunctions {
  void (*product)(MaskedProduct, const MaskedTile<T>&, int64_t row_begin, int64_t row_end);
  // tile[f][b] = x[b][f] for n_batch <= kBatchTile samples, 0 behind them; and back.
  void (*gather)(const T* x, int64_t n_batch, int64_t n_features, T* tile);
  void (*scatter)(const T* tile, int64_t n_batch, int64_t n_features, T* y);
};
template <typename T> MaskedTileFunctions<T> masked_tile_avx2();
template <typename T> MaskedTileFunctions<T> masked_tile_avx512();

}  // namespace pns
