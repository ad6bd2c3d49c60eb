// A network's image: what its training reads and writes, in one piece of memory that moves to shared memory and back.
//
//   [layers: ImageLayer x L][core: indices, weights, biases, kept bytes][state: moments; scores, frozen][live neurons]
//
// Rows and columns are live neurons only (they reach the output and can be non-zero), renumbered. A layer is compressed
// (kept weights in row order, and their places in column order) or dense (rows of row_stride weights, 0 where pruned).
// Offsets count 16 bytes: from the image's begin, those of `state` from the state's.
#pragma once

#include <cstdint>

#include "core/philox.h"
#include "kernels/mlp_trainer/mlp_trainer.h"
#include "kernels/mlp_trainer/mlp_trainer_cuda.h"

namespace pns {
namespace trainer {

constexpr int kTile = 32;  // samples a warp works on at once

struct ImageLayer {
  int32_t n_rows, n_columns;
  int32_t n_stored;    // weights: kept ones, or n_rows * row_stride
  int32_t row_stride;  // dense; 0: compressed
  int32_t is_masked;   // dense: some are pruned
  int32_t output;      // the first of its rows of activations
  uint32_t row_begin, place, column_begin, in_columns;  // compressed: [n_rows + 1], [n_stored], [n_columns + 1], [n_stored]
  uint32_t weight, bias, kept, bias_kept;               // kept: uint8, [n_stored] where is_masked, [n_rows]
  uint32_t state;                                       // kStates arrays of n_stored floats, then as many of n_rows
  uint32_t live, n_live;                                // int32 [n_rows]: neurons
  int64_t weight_at, bias_at;                           // in the flat layout
};

enum State { kFirst, kSecond, kScore, kFrozen };

PNS_HOST_DEVICE inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

PNS_HOST_DEVICE inline int n_states(const CudaTrainer& t) { return t.scores != nullptr ? 4 : 2; }
// Floats from one state array to the next.
PNS_HOST_DEVICE inline int64_t state_stride(int64_t n) { return round_up(n, 4); }

// Floats from one neuron's activations to the next's: 4 more than the batch, so that the quarters of a warp that read
// different neurons find different banks.
PNS_HOST_DEVICE inline int activation_stride(const CudaTrainer& t) {
  return static_cast<int>(round_up(t.batch_size, kTile)) + 4;
}

struct ImageSizes {
  int64_t core, state, live;  // bytes; core includes the layers
  int64_t activations;        // bytes
  int32_t delta, delta_rows;  // first row of the three delta buffers, rows of each
  int32_t target;             // first row of the targets (two sets)
  int64_t integers, sums, brackets;  // bytes from the begin: labels and order (two sets each), accumulators, edge-popup's
};

// By the kept fraction of live rows x columns, rounded up to the tiles of 16 x 32 that a warp works on; edge-popup trains
// every score.
PNS_HOST_DEVICE inline bool is_dense_layer(const CudaTrainer& t, int64_t rows, int64_t columns, int64_t entries) {
  const int64_t padded = round_up(rows, 16) * round_up(columns, 32);
  return t.scores != nullptr || (entries > 0 && static_cast<double>(entries) >= t.dense_from * padded);
}

// Fills layers (may be null) and says how large everything is.
PNS_HOST_DEVICE inline ImageSizes lay_out(const CudaTrainer& t, const int32_t* widths, const int32_t* counts,
                                          ImageLayer* layers) {
  const int n_layers = static_cast<int>(t.n_layers);
  ImageSizes sizes{};
  int64_t core = round_up(n_layers * sizeof(ImageLayer), 16), state = 0, live = 0, flat = 0;
  int64_t rows_at = 2 * round_up(widths[0], 4), widest = 0;
  auto take = [](int64_t* at, int64_t bytes) {
    const uint32_t offset = static_cast<uint32_t>(*at / 16);
    *at += round_up(bytes, 16);
    return offset;
  };
  for (int l = 0; l < n_layers; ++l) {
    ImageLayer layer{};
    const int64_t rows = counts[2 * l], columns = l == 0 ? widths[0] : counts[2 * (l - 1)], entries = counts[2 * l + 1];
    layer.n_rows = static_cast<int32_t>(rows), layer.n_columns = static_cast<int32_t>(columns);
    layer.weight_at = flat, layer.bias_at = flat + int64_t{widths[l]} * widths[l + 1];
    flat = layer.bias_at + widths[l + 1];
    if (is_dense_layer(t, rows, columns, entries)) {
      layer.row_stride = static_cast<int32_t>(round_up(columns, 4));
      layer.n_stored = static_cast<int32_t>(rows * layer.row_stride);
      layer.is_masked = t.scores == nullptr && entries < rows * columns;
      layer.kept = take(&core, layer.is_masked ? layer.n_stored : 0);
    } else {
      layer.n_stored = static_cast<int32_t>(entries);
      layer.row_begin = take(&core, 4 * (rows + 1));
      layer.place = take(&core, 4 * entries);
      layer.column_begin = take(&core, 4 * (columns + 1));
      layer.in_columns = take(&core, 4 * entries);
    }
    layer.weight = take(&core, 4 * int64_t{layer.n_stored});
    layer.bias = take(&core, 4 * rows);
    layer.bias_kept = take(&core, rows);
    layer.state = take(&state, 4 * n_states(t) * (state_stride(layer.n_stored) + state_stride(rows)));
    layer.live = take(&live, 4 * rows);
    layer.output = static_cast<int32_t>(rows_at);
    rows_at += round_up(rows, 4);
    widest = rows > widest ? rows : widest;
    if (layers != nullptr) layers[l] = layer;
  }
  const int64_t n_out = widths[n_layers], row_bytes = 4 * activation_stride(t);
  sizes.core = core, sizes.state = state, sizes.live = live;
  sizes.delta = static_cast<int32_t>(rows_at), sizes.delta_rows = static_cast<int32_t>(round_up(widest, 4));
  rows_at += 3 * int64_t{sizes.delta_rows};
  sizes.target = static_cast<int32_t>(rows_at);
  rows_at += t.y_train != nullptr ? 2 * n_out : 0;
  sizes.integers = rows_at * row_bytes;
  sizes.sums = sizes.integers + 4 * round_up(t.batch_size, kTile) * 4;
  sizes.brackets = sizes.sums + round_up((3 * n_out + 1) * 8, 16);
  sizes.activations = sizes.brackets + round_up(t.scores != nullptr ? 2 * n_layers * 8 : 0, 16);
  return sizes;
}

}  // namespace trainer
}  // namespace pns
