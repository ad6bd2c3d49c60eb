// masked_linear: products of a batch with a masked weight, at the cost of the kept weights.
//
//   forward   y[n,b,o] = sum_i x[n,b,i] W[n,o,i] m[n,o,i] + bias[n,o], of the bias what its own mask keeps; with relu
//             what of it is negative becomes 0
//   backward  grad_x[n,b,i] = sum_o grad[n,b,o] W[n,o,i] m[n,o,i]
//             grad_weight[n,o,i] = m[n,o,i] sum_b grad[n,b,o] x[n,b,i]      (0 where pruned)
//             grad_bias[n,o] = sum_b grad[n,b,o]                        (0 where pruned)
//             after a relu with grad 0 where its output y is
//
// Shapes: N networks, B batch, I inputs, O outputs; all contiguous, row-major; mask one byte an entry. Each of the
// backward's outputs is formed if its pointer is given.
// Two paths, chosen by each network's density: compressed rows (mask_pattern.h), or register-blocked products over all
// weights with the mask applied on the way in or out. A pruned weight is read by neither: a NaN or inf there does not
// spread. (One in x does, on the dense path to every output: it meets zeros.)
// The order of every sum depends on the sizes and the network's mask only: results are the same alone, among other
// networks and on any number of threads, and a sample's the same in every batch.
//
// Batches are laid out feature-major in tiles, [feature][samples]: one kept weight then feeds whole vectors. The
// forward shares out tiles of the batch (sparse) or rows of the weight (dense) among threads, the backward columns.
#pragma once

#include <cstdint>
#include <memory>

#include "core/aligned_buffer.h"
#include "kernels/masked_linear/mask_pattern.h"

namespace pns {

// What a forward found out about its mask and weight, for the backward of the same: of a large one, the mask's comparison
// and the kept weights' way to the processor take an eighth of 4,096 x 4,096 at density 0.01.
template <typename T>
struct KeptWeights {
  std::shared_ptr<const MaskPattern> pattern;
  AlignedBuffer<T> weight;  // in the entries' order, or empty where the products read them elsewhere
};

template <typename T>
struct MaskedForward {
  int64_t n_networks, batch, n_in, n_out;
  const T* x;                // [N, B, I]
  const T* weight;           // [N, O, I]
  const uint8_t* mask;       // [N, O, I]
  const T* bias;             // [N, O] or null
  const uint8_t* bias_mask;  // [N, O], or null: all are kept
  bool has_relu;
  T* y;                      // [N, B, O]
  int n_threads;
  KeptWeights<T>* keep = nullptr;  // N = 1; or null
};

template <typename T>
struct MaskedBackward {
  int64_t n_networks, batch, n_in, n_out;
  const T* grad;             // [N, B, O]
  const T* y;                // [N, B, O], the output of a relu, or null
  const T* x;                // [N, B, I]; unused without grad_weight
  const T* weight;           // [N, O, I]; unused without grad_x
  const uint8_t* mask;       // [N, O, I]
  const uint8_t* bias_mask;  // [N, O] or null
  T* grad_x;                 // [N, B, I] or null
  T* grad_weight;            // [N, O, I] or null
  T* grad_bias;              // [N, O] or null
  int n_threads;
  const KeptWeights<T>* kept = nullptr;  // of the forward with this mask and weight; or null
};

template <typename T> void masked_linear_forward(const MaskedForward<T>& p);
template <typename T> void masked_linear_backward(const MaskedBackward<T>& p);

// Some rows of a panel of a sparse network, see MaskPattern: row r's entries are [begin[r], begin[r + 1]).
template <typename T>
struct SparsePanel {
  int64_t n_rows;
  const uint32_t* begin;
  const uint16_t* column;
  const T* value;   // the kept weights, in the entries' order; or null,
  const T* weight;  // and these are the panel's part of all weights,
  int64_t row_step; // row by row

  T value_of(int64_t r, int64_t k) const { return value != nullptr ? value[k] : weight[r * row_step + column[k]]; }
};

// A block of a panel by columns, see MaskColumns.
template <typename T>
struct SparseColumns {
  int64_t n_places;
  const uint16_t* row;          // [n_places], from the block's first on; with MaskColumns::kEnd
  const uint16_t* kept_column;  // the columns that have entries, and one more
  const T* value;               // [n_places]
};

// What each SIMD level provides. `width` is a tile's samples a feature: 1, 2 or 4 vectors.
template <typename T>
struct MaskedLinearFunctions {
  // Samples of a tile: 4 vectors, which the sparse loops take at once. In wider ones half of a feature's lines would be read
  // at a time, from half of the first cache's sets (Zen 3, AVX2, 1,024 x 1,024 at density 0.01: 1.08 ms, now 0.87).
  int64_t widest;
  // tile[f][b] = x[b][f] for n_batch <= width samples, 0 behind them; x_stride from sample to sample. And back.
  void (*gather)(const T* x, int64_t x_stride, int64_t n_batch, int64_t n_features, T* tile, int64_t width);
  void (*scatter)(const T* tile, int64_t width, int64_t n_batch, int64_t n_features, T* y, int64_t y_stride);
  // y[r][b] += sum over row r's entries of value * x[column][b]
  void (*sparse_forward)(const SparsePanel<T>& a, const T* x, int64_t width, T* y);
  // grad_x[column][b] += value * grad[row][b] for every entry, and dots[place] (+)= sum_b grad[row][b] * x[column][b];
  // one of them alone where the other's pointer is null.
  void (*sparse_gradients)(const SparseColumns<T>& a, const T* grad, const T* x, int64_t width, T* grad_x, T* dots,
                           bool is_first);
  // y[r][b] (+)= sum_k a[r * row_step + k * k_step] * x[k][b] for n_rows rows.
  void (*dense)(const T* a, int64_t row_step, int64_t k_step, int64_t n_rows, int64_t n_k, const T* x, int64_t width,
                T* y, bool is_first);
  // A row of the weight and of a panel, kept as bits [bit, bit + n): its kept weights one after another. Null without
  // an instruction for it: bit by bit, branches would be mispredicted in every row.
  void (*compress)(const uint64_t* bits, int64_t bit, int64_t n, const T* row, T* kept);
  // out[0, n) = in[0, n), past the caches where out allows it.
  void (*stream)(const T* in, int64_t n, T* out);
  // out[j] = mask[j] ? in[j] : 0
  void (*select)(const uint8_t* mask, const T* in, int64_t n, T* out);
};
template <typename T> MaskedLinearFunctions<T> masked_linear_avx2();
template <typename T> MaskedLinearFunctions<T> masked_linear_avx512();

}  // namespace pns
