// Building a network's compressed or dense layout from the flat parameters, and writing it back.
#include "kernels/mlp_trainer/network.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace pns {
namespace {

// The kept weights of every row, as indices of their inputs. No branch asks what is kept: it could not be foreseen.
void list_kept(Layer& layer, const uint8_t* mask) {
  layer.row_begin.resize(layer.n_out + 1), layer.row_column.resize(layer.n_out * layer.n_in + 1);
  int64_t k = 0;
  for (int64_t o = 0; o < layer.n_out; ++o) {
    layer.row_begin[o] = k;
    const uint8_t* line = mask + layer.weight_at + o * layer.n_in;
    for (int64_t i = 0; i < layer.n_in; ++i) {
      layer.row_column[k] = static_cast<int32_t>(i);
      k += line[i] != 0;
    }
  }
  layer.row_begin[layer.n_out] = layer.n_entries = k;
}

// Parameters that can neither change nor matter: their neuron has no path to an output, or their input is always zero.
// Their gradient is zero for ever; without weight decay the optimiser leaves them bitwise as they are, so the compressed
// layout leaves them out. A collapsed network costs next to nothing.
struct Liveness {
  std::vector<std::vector<uint8_t>> reaches_output;  // per layer, [n_out]
  std::vector<std::vector<uint8_t>> can_be_nonzero;  // per layer, [n_in]

  Liveness(const std::vector<Layer>& layers, const uint8_t* mask, bool keep_all) {
    for (const Layer& layer : layers) {
      reaches_output.emplace_back(layer.n_out, 1);
      can_be_nonzero.emplace_back(layer.n_in, 1);
    }
    if (keep_all) return;
    for (size_t l = layers.size() - 1; l > 0; --l) {
      auto& below = reaches_output[l - 1];
      std::fill(below.begin(), below.end(), uint8_t{0});
      for_each_kept(layers[l], [&](int64_t o, int64_t i) { below[i] |= reaches_output[l][o]; });
    }
    for (size_t l = 0; l + 1 < layers.size(); ++l) {
      auto& above = can_be_nonzero[l + 1];
      std::copy_n(mask + layers[l].bias_at, layers[l].n_out, above.begin());
      for_each_kept(layers[l], [&](int64_t o, int64_t i) { above[o] |= can_be_nonzero[l][i]; });
    }
  }

  template <typename F>
  static void for_each_kept(const Layer& layer, F&& f) {
    for (int64_t o = 0; o < layer.n_out; ++o) {
      for (int64_t k = layer.row_begin[o]; k < layer.row_begin[o + 1]; ++k) f(o, layer.row_column[k]);
    }
  }
};

// Drops the rows and entries that do not matter from the lists of kept ones.
void drop_dead(Layer& layer, const std::vector<uint8_t>& reaches_output, const std::vector<uint8_t>& can_be_nonzero) {
  layer.live.resize(layer.n_out);
  layer.n_live = 0;
  int64_t to = 0, k = 0;
  for (int64_t o = 0; o < layer.n_out; ++o) {
    const int64_t end = layer.row_begin[o + 1];
    if (reaches_output[o]) {
      layer.row_begin[layer.n_live] = to;
      layer.live[layer.n_live++] = static_cast<int32_t>(o);
      for (; k < end; ++k) {
        const int32_t i = layer.row_column[k];
        layer.row_column[to] = i;
        to += can_be_nonzero[i];
      }
    }
    k = end;
  }
  layer.row_begin[layer.n_live] = layer.n_entries = to;
}

// Rows with few entries first, those of equally many behind each other: the forward pass has loops of their own for them.
void sort_rows(Layer& layer) {
  const std::vector<int64_t> begin(layer.row_begin.data(), layer.row_begin.data() + layer.n_live + 1);
  const std::vector<int32_t> live(layer.live.data(), layer.live.data() + layer.n_live),
      column(layer.row_column.data(), layer.row_column.data() + layer.n_entries);
  std::vector<int64_t> at(layer.n_in + 2), order(layer.n_live);  // where the next row of each length goes
  for (int64_t r = 0; r < layer.n_live; ++r) ++at[begin[r + 1] - begin[r] + 1];
  for (int64_t c = 0; c <= layer.n_in; ++c) at[c + 1] += at[c];
  for (size_t c = 0; c < layer.rows_up_to.size(); ++c) layer.rows_up_to[c] = at[std::min<int64_t>(c, layer.n_in) + 1];
  for (int64_t r = 0; r < layer.n_live; ++r) order[at[begin[r + 1] - begin[r]]++] = r;
  int64_t to = 0;
  for (int64_t r = 0; r < layer.n_live; ++r) {
    layer.live[r] = live[order[r]], layer.row_begin[r] = to;
    for (int64_t k = begin[order[r]]; k < begin[order[r] + 1]; ++k) layer.row_column[to++] = column[k];
  }
}

// The features that a first layer's products read, before fill_columns. A block of them, transposed, takes about as long as
// a third as many taken alone.
void list_features(const Layer& layer, int lanes, std::vector<int64_t>& blocks, std::vector<int64_t>& alone) {
  std::vector<uint8_t> is_read(layer.n_in, layer.is_dense);
  for (int64_t k = 0; k < layer.n_entries; ++k) is_read[layer.row_column[k]] = 1;
  blocks.clear(), alone.clear();
  for (int64_t f = 0; f < layer.n_in;) {
    const int64_t end = std::min(f + std::max(lanes, 1), layer.n_in);
    const int64_t n_read = std::count(is_read.begin() + f, is_read.begin() + end, 1);
    if (end - f == lanes && 3 * n_read > lanes) {
      blocks.push_back(f), f = end;
    } else {
      for (; f < end; ++f) {
        if (is_read[f]) alone.push_back(f);
      }
    }
  }
}

// Live neurons next to each other, unless a matrix or the loss is to find all of them in their own order.
void fill_places(Layer& layer, bool keeps_order, int64_t batch_stride) {
  layer.place.assign_zero(padded(layer.n_live));
  for (int64_t r = 0; r < padded(layer.n_live); ++r) {
    const int64_t last = std::min(r, layer.n_live - 1);
    layer.place[r] = static_cast<int32_t>((keeps_order ? layer.live[last] : last) * batch_stride);
  }
}

// The order by columns, from that by rows, whose indices become places: those of the inputs are given.
void fill_columns(Layer& layer, const std::vector<int32_t>& input_place) {
  const int64_t n = layer.n_entries, n_stored = padded(n);
  layer.row.assign_zero(n_stored), layer.column.assign_zero(n_stored + 1);
  layer.flat.resize(n), layer.row_entry.resize(n);
  layer.column_ends.assign_zero(n_stored / 8);
  std::vector<int64_t> at(layer.n_in + 1);  // where the next entry of each column goes
  for (int64_t k = 0; k < n; ++k) ++at[layer.row_column[k] + 1];
  for (int64_t i = 0; i < layer.n_in; ++i) at[i + 1] += at[i];
  for (int64_t r = 0; r < layer.n_live; ++r) {
    const int64_t o = layer.live[r];
    for (int64_t k = layer.row_begin[r]; k < layer.row_begin[r + 1]; ++k) {
      const int64_t i = layer.row_column[k], to = at[i]++;
      layer.row[to] = layer.place[r];
      layer.column[to] = layer.row_column[k] = input_place[i];
      layer.flat[to] = static_cast<int32_t>(o * layer.n_in + i);
      layer.row_entry[k] = static_cast<int32_t>(to);
    }
  }
  for (int64_t k = 0; k < n; ++k) {
    const bool is_last = k + 1 == n || layer.column[k + 1] != layer.column[k];
    layer.column_ends[k / 8] |= static_cast<uint8_t>(is_last << k % 8);
  }
}

// Whole vectors; with 16 lanes and up to kTail columns more, those lie apart. Edge-popup's selection goes through whole rows.
int64_t row_stride(int64_t n_in, int lanes, bool is_edge_popup) {
  if (lanes == 0) return n_in;
  const int64_t rest = n_in % lanes;
  if (rest == 0) return n_in;
  return n_in > lanes && lanes == 16 && rest <= Layer::kTail && !is_edge_popup ? n_in - rest : n_in - rest + lanes;
}

void fill_values(Layer& layer, const float* parameters, const uint8_t* mask, const float* scores) {
  const int64_t n = layer.n_stored(), n_bias = padded(layer.n_live);
  layer.is_edge_popup = scores != nullptr;
  layer.has_factor = layer.is_edge_popup || (layer.is_dense && layer.n_entries < layer.n_out * layer.n_in);
  layer.weight.assign_zero(n), layer.state.assign_zero(2 * n);
  layer.factor.assign_zero(layer.has_factor ? n : 0), layer.score.assign_zero(scores != nullptr ? n : 0);
  layer.for_each_stored([&](int64_t k, int64_t at) {
    layer.weight[k] = mask[at] ? parameters[at] : 0;
    if (scores != nullptr) layer.score[k] = scores[at];
    if (layer.has_factor) layer.factor[k] = scores != nullptr ? parameters[at] : mask[at];
  });
  layer.bias.assign_zero(n_bias), layer.bias_factor.assign_zero(n_bias);
  layer.bias_state.assign_zero(2 * n_bias), layer.bias_score.assign_zero(n_bias);
  for (int64_t k = 0; k < layer.n_live; ++k) {
    const int64_t at = layer.bias_at + layer.live[k];
    layer.bias[k] = mask[at] ? parameters[at] : 0;
    if (scores != nullptr) layer.bias_score[k] = scores[at];
    layer.bias_factor[k] = scores != nullptr ? parameters[at] : mask[at];
  }
}

}  // namespace

int32_t ScorePart::key(float score) {
  int32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  bits &= 0x7fffffff;
  return bits > kInfinityKey ? -1 : bits;
}

bool ScorePart::finish(int64_t n_missing, int32_t above_all) {
  if (n_missing < 0 || n_missing > static_cast<int64_t>(candidates.size())) return false;
  const int64_t old_threshold = threshold;
  threshold = above_all, last_tie = -1;
  if (n_missing > 0) {
    const auto worst = candidates.begin() + n_missing - 1;
    std::nth_element(candidates.begin(), worst, candidates.end(), [this](const Candidate& a, const Candidate& b) {
      return a.key != b.key ? a.key > b.key : flat(a.position) < flat(b.position);
    });
    for (auto chosen = candidates.begin(); chosen <= worst; ++chosen) {
      in_force[chosen->position] = frozen[chosen->position];
    }
    threshold = worst->key, last_tie = flat(worst->position);
  }
  // The threshold's next move is likely no more than some of its last ones; 1024 steps of a float are 0.01%.
  constexpr int64_t kLeast = 1024;
  const int64_t move = std::abs(threshold - old_threshold);
  half_width = half_width == kEverything ? kLeast * 64 : std::max({kLeast, 4 * move, half_width * 3 / 4});
  return true;
}

void ScorePart::write_mask(uint8_t* mask) const {
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t c = 0; c < n_columns; ++c) {
      const int64_t at = r * stride + c, to = flat(at);
      const int32_t k = key(score[at]);
      mask[to] = k > threshold || (k == threshold && to <= last_tie);
    }
  }
}

void Network::load(const MlpTrainerParams& p, int64_t i, int lanes) {
  layers.resize(p.n_layers);
  n_inputs = p.widths[0];
  batch_stride = padded(std::min(p.batch_size, std::max(p.n_train, int64_t{1})));
  // Rows a large power of two apart would share a few sets of the first cache.
  if (batch_stride % 256 == 0) batch_stride += kMaxLanes;
  int64_t at = 0, widest = 0, n_multiplied = 0, most_stored = 0;
  for (int64_t l = 0; l < p.n_layers; ++l) {
    Layer& layer = layers[l];
    layer.n_in = p.widths[l], layer.n_out = p.widths[l + 1];
    layer.row_stride = row_stride(layer.n_in, lanes, p.scores != nullptr);
    layer.weight_at = at, layer.bias_at = at + layer.n_out * layer.n_in;
    at = layer.bias_at + layer.n_out;
    widest = std::max(widest, padded(layer.n_in));
  }
  const float* parameters = p.parameters + i * at;
  const float* scores = p.scores == nullptr ? nullptr : p.scores + i * at;
  // Edge-popup moves every score: all its weights count as kept.
  const std::vector<uint8_t> all(scores != nullptr ? at : 0, 1);
  const uint8_t* mask = scores != nullptr ? all.data() : p.mask + i * at;
  for (Layer& layer : layers) list_kept(layer, mask);
  const Liveness live(layers, mask, scores != nullptr || p.weight_decay != 0);
  for (int64_t l = 0; l < p.n_layers; ++l) {
    Layer& layer = layers[l];
    drop_dead(layer, live.reaches_output[l], live.can_be_nonzero[l]);
    // The dense path works on padded rows: a layer of 2 inputs would do 16 columns' work. What it does once an input, as
    // transposing it, is some four rows' work.
    layer.is_dense = lanes > 0 && layer.n_entries > 0 &&
                     layer.n_entries >= p.dense_from * (layer.n_out + 4) * std::max(layer.row_stride, layer.n_in);
    if (layer.is_dense) {
      layer.n_live = layer.n_out;
      for (int64_t o = 0; o < layer.n_out; ++o) layer.live[o] = static_cast<int32_t>(o);
    } else {
      sort_rows(layer);
    }
    most_stored = std::max(most_stored, layer.is_dense ? 0 : layer.n_stored());
    n_multiplied += layer.is_dense ? layer.n_stored() : layer.n_entries;
    layer.output.assign_zero(layer.n_out * batch_stride), layer.delta.assign_zero(layer.n_out * batch_stride);
  }
  list_features(layers[0], lanes, feature_blocks, features);
  std::vector<int32_t> input_place(n_inputs);
  for (int64_t f = 0; f < n_inputs; ++f) input_place[f] = static_cast<int32_t>(f * batch_stride);
  for (int64_t l = 0; l < p.n_layers; ++l) {
    Layer& layer = layers[l];
    const bool keeps_order = layer.is_matrix() || l + 1 == p.n_layers || layers[l + 1].is_matrix();
    fill_places(layer, keeps_order, batch_stride);
    if (!layer.is_dense) fill_columns(layer, input_place);
    fill_values(layer, parameters, mask, scores);
    input_place.assign(layer.n_out, 0);
    for (int64_t r = 0; r < layer.n_live; ++r) input_place[layer.live[r]] = layer.place[r];
  }
  score_parts.clear();
  for (Layer& layer : layers) {
    if (scores == nullptr) break;
    // Every score is stored. What has no padding is one row: only a part's last vector is not full.
    if (layer.is_dense) {
      score_parts.push_back({layer.n_out, layer.n_in, layer.row_stride, layer.score.data(), layer.factor.data(),
                             layer.weight.data(), 0});
    } else {
      const int64_t n = layer.n_out * layer.n_in;
      score_parts.push_back({1, n, n, layer.score.data(), layer.factor.data(), layer.weight.data(), layer.n_out});
    }
    score_parts.push_back({1, layer.n_out, layer.n_out, layer.bias_score.data(), layer.bias_factor.data(),
                           layer.bias.data(), 0});
  }
  // A selection then never allocates, so that it cannot fail on a thread of the team.
  for (ScorePart& part : score_parts) part.candidates.reserve(part.n_rows * part.n_columns);
  input.assign_zero(n_inputs * batch_stride);
  scratch.assign_zero(team.size() * (batch_stride + kGradientRows) * widest);
  together = n_multiplied * batch_stride >= kSharedFrom;
  const int64_t n_tiles = batch_stride / (4 * kMinLanes) + 2;  // four vectors each, and what is left: at most
  tiles_apart = together && team.size() > 1 && n_tiles * most_stored <= kTilesApartUpTo;
  for (auto& gradient : sparse_gradient) gradient.resize(tiles_apart ? n_tiles * most_stored : most_stored);
  label.assign_zero(batch_stride);
  target.assign_zero(layers.back().n_out * batch_stride);
}

void Network::store(float* flat) const {
  for (const Layer& layer : layers) {
    const float* weight = layer.is_edge_popup ? layer.score.data() : layer.weight.data();
    const float* bias = layer.is_edge_popup ? layer.bias_score.data() : layer.bias.data();
    // Pruned entries of a dense layer keep what the caller put there.
    const bool is_all_ours = layer.is_edge_popup || !layer.has_factor;
    layer.for_each_stored([&](int64_t k, int64_t at) {
      if (is_all_ours || layer.factor[k] != 0) flat[at] = weight[k];
    });
    for (int64_t k = 0; k < layer.n_live; ++k) {
      if (layer.is_edge_popup || layer.bias_factor[k] != 0) flat[layer.bias_at + layer.live[k]] = bias[k];
    }
  }
}

}  // namespace pns
