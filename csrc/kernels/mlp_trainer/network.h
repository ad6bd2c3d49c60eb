// One network in the trainer's own layout, and the step functions each SIMD level provides for it.
//
// Activations and deltas are feature-major, [feature][batch_stride]; lanes behind the batch hold finite numbers and
// zero deltas. Buffers are owned by Network and reused by a thread from one network to the next.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/philox.h"
#include "core/spin_team.h"
#include "kernels/mlp_trainer/mlp_trainer.h"

namespace pns {

constexpr int64_t kMinLanes = 8, kMaxLanes = 16;  // AVX2, AVX-512; rows, batches and entry lists are padded to the latter

// Weights times batch from which several threads share the steps of one network. Below, what a step computes is less
// than what the cores must fetch from each other. Measured on 2 cores: 3 layers of 300, batch 64 (12M) no gain, batch 128
// 1.55x; 3 of 1000, density 0.1, batch 128 1.4x, batch 512 1.4x.
constexpr int64_t kSharedFrom = 12'000'000;

// Floats up to which every tile of a batch has its own gradients (32 MiB); with more, one thread makes them tile by tile.
constexpr int64_t kTilesApartUpTo = int64_t{1} << 23;

// Rows of a dense layer whose gradients are made before they are updated.
constexpr int64_t kGradientRows = 6;

inline int64_t padded(int64_t n) { return (n + kMaxLanes - 1) / kMaxLanes * kMaxLanes; }

// What the optimiser moves, weights or biases: the values themselves, or edge-popup's scores. factor multiplies the
// gradient: the mask, the frozen parameter (edge-popup), or null: all are kept. state: two numbers a value, whose order is
// the step functions' own.
struct Trained {
  float *value, *state;
  const float* factor;
  bool is_edge_popup;
};

struct Layer {
  int64_t n_in = 0, n_out = 0;
  int64_t weight_at = 0, bias_at = 0;  // in the flat layout
  bool is_dense = false;

  // The neurons that can matter; the others are never computed and their output stays 0. All are live in a matrix, and
  // ascending; else those with few entries come first. row_begin, bias and the bias's companions are in this order.
  int64_t n_live = 0;
  AlignedBuffer<int32_t> live;   // [n_live]
  AlignedBuffer<int32_t> place;  // [padded(n_live)], where in output and delta its row begins; padded with the last one

  // Compressed: kept weights by columns, as the gradients go through them, and in row order which ones a row has. row
  // and column are places.
  int64_t n_entries = 0;
  AlignedBuffer<int32_t> row, column;            // [padded entries], [padded entries + 1]
  AlignedBuffer<uint8_t> column_ends;            // bit k % 8 of byte k / 8: entry k is the last of its column
  AlignedBuffer<int32_t> flat;                   // [entries], positions among the layer's weights in the flat layout
  AlignedBuffer<int64_t> row_begin;              // [n_live + 1]
  std::array<int64_t, 4> rows_up_to;             // [c]: that many rows have at most c entries; they come first
  AlignedBuffer<int32_t> row_entry, row_column;  // [entries], in row order
  // Dense: rows of row_stride. What n_in is more than row_stride, up to kTail columns, lies behind all rows, [n_out][kTail]:
  // padded to a vector like the rest, the 4 last columns of 100 would cost as much as 16 do.
  int64_t row_stride = 0;
  static constexpr int64_t kTail = 4;
  bool has_tail() const { return row_stride < n_in; }
  int64_t tail_at() const { return n_out * row_stride; }

  // weight and bias are what the products read.
  AlignedBuffer<float> weight, score, factor, state;
  AlignedBuffer<float> bias, bias_score, bias_factor, bias_state;  // [padded(n_live)]
  bool has_factor = false, is_edge_popup = false;
  Trained trained() {
    return {is_edge_popup ? score.data() : weight.data(), state.data(), has_factor ? factor.data() : nullptr, is_edge_popup};
  }
  Trained bias_trained() {
    return {is_edge_popup ? bias_score.data() : bias.data(), bias_state.data(), bias_factor.data(), is_edge_popup};
  }

  AlignedBuffer<float> output, delta;  // [n_out][batch_stride]

  // Whether products go through it as a matrix: then the neurons on both sides lie in their own order.
  bool is_matrix() const { return is_dense || n_entries == n_out * n_in; }
  int64_t n_stored() const {
    return is_dense ? tail_at() + (has_tail() ? padded(n_out * kTail) : 0) : padded(n_entries);
  }
  // f(k, at): stored weight k lies at `at` in the flat layout.
  template <typename F>
  void for_each_stored(F&& f) const {
    for (int64_t o = 0; is_dense && o < n_out; ++o) {
      const int64_t at = weight_at + o * n_in, n = std::min(n_in, row_stride);
      for (int64_t i = 0; i < n; ++i) f(o * row_stride + i, at + i);
      for (int64_t i = n; i < n_in; ++i) f(tail_at() + o * kTail + i - n, at + i);
    }
    for (int64_t k = 0; !is_dense && k < n_entries; ++k) f(k, weight_at + flat[k]);
  }
};

// Scores that compete with each other in edge-popup: the weights or the biases of a layer, [n_rows][stride].
struct ScorePart {
  int64_t n_rows, n_columns, stride;
  const float *score, *frozen;
  float* in_force;
  int64_t n_outputs;  // of a layer whose weights are stored by columns; 0: by rows

  // Where the score at a position is among the part's scores in the flat layout; of ties the first there wins.
  int64_t flat(int64_t position) const {
    if (n_outputs > 0) return position % n_outputs * (n_columns / n_outputs) + position / n_outputs;
    return position / stride * n_columns + position % stride;
  }

  // |score| as an integer of the same order; a NaN ranks lowest, so that a score that diverged is the first to go.
  static int32_t key(float score);

  // In force are the keys above the threshold, and of those that equal it the ones up to last_tie in the flat layout.
  int32_t threshold = 0;
  int64_t last_tie = -1;
  // How far on either side of the threshold the next one is looked for.
  int64_t half_width = kEverything;
  static constexpr int64_t kEverything = int64_t{1} << 31;

  struct Candidate {
    int32_t key, position;
  };
  std::vector<Candidate> candidates{};
  // Puts the n_missing best candidates in force, of equal ones the first; above_all is the largest key below those that
  // are in force anyway. False, and nothing done: there are not as many.
  bool finish(int64_t n_missing, int32_t above_all);
  void write_mask(uint8_t* mask) const;  // [n_rows * n_columns]
};
constexpr int32_t kInfinityKey = 0x7f800000;

struct Network {
  std::vector<Layer> layers;
  std::vector<ScorePart> score_parts;  // edge-popup: weights and biases of each layer
  int64_t n_inputs = 0, batch_stride = 0;
  AlignedBuffer<float> input;        // [n_0][batch_stride]
  // The features that the first layer reads, the others are left out of the input: the first of those to be taken a vector
  // at a time, and those to be taken alone.
  std::vector<int64_t> feature_blocks, features;
  // Of dense gradients, a member's: inputs transposed [batch_stride][widest], and rows of the gradient.
  AlignedBuffer<float> scratch;      // [members][batch_stride + kGradientRows][widest], the widest padded(n_in)
  // Of a compressed layer [n_stored]: each tile of a batch is added to the ones before; or, where threads make several at a
  // time, each lies in its own place, to be added in that order. Two, since one layer's is made while another's is used.
  AlignedBuffer<float> sparse_gradient[2];
  bool tiles_apart = false;
  float* tile_gradient(size_t l, int tile) {
    return sparse_gradient[l % 2].data() + (tiles_apart ? tile * layers[l].n_stored() : 0);
  }
  AlignedBuffer<int32_t> label;      // [batch_stride]
  AlignedBuffer<float> target;       // [n_L][batch_stride]

  // The threads that may work on this network; together: a step is long enough for them to.
  SpinTeam team;
  bool together = false;
  template <typename F>
  void in_shares(const F& f) {
    team.run(together, f);
  }
  float* transposed(int member) { return scratch.data() + member * (scratch.size() / team.size()); }
  float* gradient(int member) {
    const int64_t n_rows = batch_stride + kGradientRows;
    return transposed(member) + scratch.size() / team.size() / n_rows * batch_stride;
  }

  explicit Network(int n_threads) : team(n_threads) {}
  // Takes over network i of the call; lanes: of the step functions' dense path.
  void load(const MlpTrainerParams& p, int64_t i, int lanes);
  // Writes the trained values (or gradients) of kept parameters into the flat array.
  void store(float* flat) const;
  const float* layer_input(size_t l) const { return l == 0 ? input.data() : layers[l - 1].output.data(); }
};

// Added to Adam's second moment under its root, so that with eps = 0 a parameter that never had a gradient stays where it
// is: 0 / 0, as torch computes it, is NaN.
constexpr float kLeastMoment = 1e-36f;

struct UpdateRule {
  Optimizer kind;
  float lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay;
  float step_size, inverse_sqrt_correction;  // Adam: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
};

struct StepFunctions {
  int lanes;  // of a vector; 0: there is no dense path
  // The features of samples index[0, n_batch) of the row-major x into `input`.
  void (*gather)(Network& net, const float* x, const uint32_t* index, int64_t n_batch);
  // Outputs of every layer for n_batch samples of `input`.
  void (*forward)(Network& net, int64_t n_batch);
  // Sum of the samples' losses; with write_delta the last layer's delta, the gradient of the batch mean.
  double (*loss)(Network& net, int64_t n_batch, Loss loss, bool write_delta);
  // Deltas of all layers from the last one's, gradients, and the update of what is trained.
  void (*backward)(Network& net, int64_t n_batch, const UpdateRule& rule);
  // Puts the `keep` largest |score| of a part in force, 0 in place of the others.
  void (*select)(ScorePart& part, int64_t keep);
  // order[j] = shuffled(shuffle, j) for j < shuffle.n.
  void (*epoch_order)(const Shuffle& shuffle, uint32_t* order);
};
StepFunctions mlp_step_avx2();
StepFunctions mlp_step_avx512();

}  // namespace pns
