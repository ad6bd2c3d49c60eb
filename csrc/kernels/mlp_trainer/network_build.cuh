// Device code that finds out what of a network can matter, builds its image, and writes it back to the flat layout.
// A block a network; once a call each, so simplicity comes first.
#pragma once

#include "core/cuda_check.cuh"
#include "kernels/mlp_trainer/network_image.cuh"

namespace pns {
namespace trainer {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kWarp = 32;

// One network's rows of the call's arrays.
struct FlatNetwork {
  const float *parameters, *scores;
  const uint8_t* mask;
  uint8_t *reaches, *can;  // [sum of widths]: reaches the output; can be non-zero
  int32_t* counts;         // [n_layers, 2]
  bool keeps_all;

  __device__ FlatNetwork(const CudaTrainer& t, int64_t i) {
    int64_t n_neurons = 0;
    for (int l = 0; l <= t.n_layers; ++l) n_neurons += t.widths[l];
    parameters = t.parameters + i * t.n_parameters;
    scores = t.scores == nullptr ? nullptr : t.scores + i * t.n_parameters;
    mask = t.mask + i * t.n_parameters;
    reaches = t.flags + i * 2 * n_neurons;
    can = reaches + n_neurons;
    counts = t.counts + i * 2 * t.n_layers;
    // Edge-popup moves every score; weight decay moves what has no gradient.
    keeps_all = t.scores != nullptr || t.weight_decay != 0;
  }
  __device__ bool is_kept(int64_t flat) const { return scores != nullptr || mask[flat] != 0; }
  __device__ bool is_live(int64_t neuron) const { return reaches[neuron] && can[neuron]; }
};

// A layer in the flat layout, and where its inputs and outputs are among all neurons.
struct FlatLayer {
  int n_in, n_out;
  int64_t weight_at, bias_at, in_at, out_at;
};

template <typename F>
__device__ void for_each_layer(const CudaTrainer& t, bool backwards, F f) {
  const int n_layers = static_cast<int>(t.n_layers);
  FlatLayer layer{};
  for (int l = 0; l < n_layers; ++l) {  // to the last one
    layer.n_in = t.widths[l], layer.n_out = t.widths[l + 1];
    layer.bias_at = layer.weight_at + int64_t{layer.n_out} * layer.n_in;
    layer.out_at = layer.in_at + layer.n_in;
    if (!backwards) f(l, layer);
    if (l + 1 == n_layers) break;
    layer.weight_at = layer.bias_at + layer.n_out, layer.in_at = layer.out_at;
  }
  for (int l = n_layers - 1; backwards && l >= 0; --l) {
    f(l, layer);
    if (l == 0) break;
    layer.n_out = layer.n_in, layer.out_at = layer.in_at;
    layer.n_in = t.widths[l - 1], layer.in_at -= layer.n_in;
    layer.bias_at = layer.weight_at - layer.n_out;
    layer.weight_at = layer.bias_at - int64_t{layer.n_out} * layer.n_in;
  }
}

__device__ inline void find_live(const CudaTrainer& t, const FlatNetwork& net) {
  const int thread = threadIdx.x, n_threads = blockDim.x, lane = thread % kWarp;
  for_each_layer(t, true, [&](int l, const FlatLayer& layer) {
    for (int o = thread; o < layer.n_out && l + 1 == t.n_layers; o += n_threads) net.reaches[layer.out_at + o] = 1;
    __syncthreads();
    for (int i = thread; i < layer.n_in; i += n_threads) {
      uint8_t reaches = net.keeps_all;
      const uint8_t* column = net.mask + layer.weight_at + i;
      for (int o = 0; o < layer.n_out && !net.keeps_all; ++o) {
        reaches |= column[int64_t{o} * layer.n_in] & net.reaches[layer.out_at + o];
      }
      net.reaches[layer.in_at + i] = reaches;
    }
    __syncthreads();
  });
  for (int i = thread; i < t.widths[0]; i += n_threads) net.can[i] = net.reaches[i] = 1;  // inputs are never left out
  __syncthreads();
  for_each_layer(t, false, [&](int l, const FlatLayer& layer) {
    for (int o = thread / kWarp; o < layer.n_out; o += n_threads / kWarp) {
      bool can = net.keeps_all || l + 1 == t.n_layers || net.mask[layer.bias_at + o] != 0;
      const uint8_t* row = net.mask + layer.weight_at + int64_t{o} * layer.n_in;
      for (int i = lane; i < layer.n_in && !can; i += kWarp) can = row[i] && net.can[layer.in_at + i];
      can = __any_sync(kAllLanes, can);
      if (lane == 0) net.can[layer.out_at + o] = can;
    }
    __syncthreads();
  });
}

// Calls f(lane's column index or -1, kept weights of the row before this one) for 32 inputs at a time: whole warps.
template <typename F>
__device__ int visit_row(const FlatNetwork& net, const FlatLayer& layer, int64_t o, F f) {
  const int lane = threadIdx.x % kWarp;
  int n_before = 0;
  for (int begin = 0; begin < layer.n_in; begin += kWarp) {
    const int i = begin + lane;
    const bool is_entry = i < layer.n_in && net.is_kept(layer.weight_at + o * layer.n_in + i) &&
                          net.is_live(layer.in_at + i);
    const unsigned entries = __ballot_sync(kAllLanes, is_entry);
    f(is_entry ? i : -1, n_before + __popc(entries & ((1u << lane) - 1)));
    n_before += __popc(entries);
  }
  return n_before;
}

__device__ inline void count_live(const CudaTrainer& t, const FlatNetwork& net) {
  __shared__ int n_live, n_entries;
  for_each_layer(t, false, [&](int l, const FlatLayer& layer) {
    if (threadIdx.x == 0) n_live = n_entries = 0;
    __syncthreads();
    for (int o = threadIdx.x / kWarp; o < layer.n_out; o += blockDim.x / kWarp) {
      if (!net.is_live(layer.out_at + o)) continue;
      const int n = visit_row(net, layer, o, [](int, int) {});
      if (threadIdx.x % kWarp == 0) {
        atomicAdd(&n_live, 1);
        atomicAdd(&n_entries, n);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) net.counts[2 * l] = n_live, net.counts[2 * l + 1] = n_entries;
    __syncthreads();
  });
}

// Where each live neuron is among them, by the first warp: at[neuron] = rank or -1, live[rank] = neuron.
__device__ inline void rank_live(const FlatNetwork& net, int64_t neurons_at, int n, int32_t* at, int32_t* live) {
  const int lane = threadIdx.x % kWarp;
  int n_before = 0;
  for (int begin = 0; begin < n && threadIdx.x < kWarp; begin += kWarp) {
    const int i = begin + lane;
    const bool is_live = i < n && net.is_live(neurons_at + i);
    const unsigned bits = __ballot_sync(kAllLanes, is_live);
    const int rank = n_before + __popc(bits & ((1u << lane) - 1));
    if (i < n) at[i] = is_live ? rank : -1;
    if (is_live && live != nullptr) live[rank] = i;
    n_before += __popc(bits);
  }
}

// counts[0..n) to where each begins, in place; counts[n] becomes the sum. By the first warp.
__device__ inline void begins_of(uint32_t* counts, int n) {
  const int lane = threadIdx.x % kWarp;
  uint32_t before = 0;
  for (int begin = 0; begin <= n && threadIdx.x < kWarp; begin += kWarp) {
    const int i = begin + lane;
    const uint32_t own = i < n ? counts[i] : 0;
    uint32_t sum = own;
    for (int step = 1; step < kWarp; step *= 2) {
      const uint32_t below = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += below;
    }
    if (i <= n) counts[i] = before + sum - own;
    before += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
}

template <typename T>
__device__ T* image_part(unsigned char* image, uint32_t offset) {
  return reinterpret_cast<T*>(image + static_cast<size_t>(offset) * 16);
}

// row_at, column_at: ranks of the layer's outputs and inputs.
__device__ inline void build_compressed(const FlatNetwork& net, const FlatLayer& layer, const ImageLayer& to,
                                        const int32_t* row_at, const int32_t* column_at, unsigned char* image) {
  const int thread = threadIdx.x, n_threads = blockDim.x, lane = thread % kWarp;
  uint32_t *row_begin = image_part<uint32_t>(image, to.row_begin), *place = image_part<uint32_t>(image, to.place);
  uint32_t* column_begin = image_part<uint32_t>(image, to.column_begin);
  uint32_t* in_columns = image_part<uint32_t>(image, to.in_columns);
  float* weight = image_part<float>(image, to.weight);
  for (int o = thread / kWarp; o < layer.n_out; o += n_threads / kWarp) {
    if (row_at[o] < 0) continue;
    const int n = visit_row(net, layer, o, [](int, int) {});
    if (lane == 0) row_begin[row_at[o]] = n;
  }
  __syncthreads();
  begins_of(row_begin, to.n_rows);
  __syncthreads();
  for (int o = thread / kWarp; o < layer.n_out; o += n_threads / kWarp) {
    const int row = row_at[o];
    if (row < 0) continue;
    visit_row(net, layer, o, [&](int i, int n_before) {
      if (i < 0) return;
      const uint32_t at = row_begin[row] + n_before;
      place[at] = static_cast<uint32_t>(row) << 16 | static_cast<uint32_t>(column_at[i]);
      weight[at] = net.parameters[layer.weight_at + int64_t{o} * layer.n_in + i];
    });
  }
  auto each_in_column = [&](int i, auto f) {
    for (int o = 0; o < layer.n_out; ++o) {
      if (row_at[o] >= 0 && net.is_kept(layer.weight_at + int64_t{o} * layer.n_in + i)) f(row_at[o]);
    }
  };
  for (int i = thread; i < layer.n_in; i += n_threads) {
    if (column_at[i] < 0) continue;
    uint32_t n = 0;
    each_in_column(i, [&](int) { ++n; });
    column_begin[column_at[i]] = n;
  }
  __syncthreads();
  begins_of(column_begin, to.n_columns);
  __syncthreads();
  for (int i = thread; i < layer.n_in; i += n_threads) {
    if (column_at[i] < 0) continue;
    uint32_t at = column_begin[column_at[i]];
    each_in_column(i, [&](int row) {
      uint32_t low = row_begin[row], high = row_begin[row + 1];  // the row's entries ascend by column
      const uint32_t wanted = static_cast<uint32_t>(row) << 16 | static_cast<uint32_t>(column_at[i]);
      while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        (place[middle] <= wanted ? low : high) = middle;
      }
      in_columns[at++] = low;
    });
  }
}

__device__ inline void build_dense(const CudaTrainer& t, const FlatNetwork& net, const FlatLayer& layer,
                                   const ImageLayer& to, const int32_t* rows, const int32_t* columns,
                                   unsigned char* image, float* state) {
  float* weight = image_part<float>(image, to.weight);
  const int64_t stride = state_stride(to.n_stored);
  for (int k = threadIdx.x; k < to.n_stored; k += blockDim.x) {
    const int r = k / to.row_stride, c = k % to.row_stride;
    const bool is_real = c < to.n_columns;
    const int64_t flat =
        is_real ? layer.weight_at + int64_t{rows[r]} * layer.n_in + (columns == nullptr ? c : columns[c]) : 0;
    const bool is_kept = is_real && net.is_kept(flat);
    weight[k] = is_kept ? net.parameters[flat] : 0;
    if (to.is_masked) image_part<uint8_t>(image, to.kept)[k] = is_kept;
    if (t.scores != nullptr) {
      state[kScore * stride + k] = is_real ? net.scores[flat] : 0;
      state[kFrozen * stride + k] = is_real ? net.parameters[flat] : 0;
    }
  }
}

__device__ inline void build_biases(const CudaTrainer& t, const FlatNetwork& net, const FlatLayer& layer,
                                    const ImageLayer& to, const int32_t* rows, unsigned char* image, float* state) {
  float *bias = image_part<float>(image, to.bias), *of_bias = state + n_states(t) * state_stride(to.n_stored);
  const int64_t stride = state_stride(to.n_rows);
  for (int r = threadIdx.x; r < to.n_rows; r += blockDim.x) {
    const int64_t flat = layer.bias_at + rows[r];
    const bool is_kept = net.is_kept(flat);
    bias[r] = is_kept ? net.parameters[flat] : 0;
    image_part<uint8_t>(image, to.bias_kept)[r] = is_kept;
    if (t.scores != nullptr) {
      of_bias[kScore * stride + r] = net.scores[flat];
      of_bias[kFrozen * stride + r] = net.parameters[flat];
    }
  }
}

// ranks: int32 [sum of widths] of scratch. The image comes zeroed: moments and padding stay so.
__device__ inline void build_network(const CudaTrainer& t, int64_t i, int32_t* ranks) {
  const FlatNetwork net(t, i);
  unsigned char* image = t.images + t.image_at[i];
  ImageLayer* layers = reinterpret_cast<ImageLayer*>(image);
  __shared__ ImageSizes sizes;
  if (threadIdx.x == 0) sizes = lay_out(t, t.widths, net.counts, layers);
  __syncthreads();
  unsigned char *state = image + sizes.core, *live = state + sizes.state;
  rank_live(net, 0, t.widths[0], ranks, nullptr);
  __syncthreads();
  for_each_layer(t, false, [&](int l, const FlatLayer& layer) {
    const ImageLayer& to = layers[l];
    int32_t* rows = image_part<int32_t>(live, to.live);
    const int32_t* columns = l == 0 ? nullptr : image_part<int32_t>(live, layers[l - 1].live);
    rank_live(net, layer.out_at, layer.n_out, ranks + layer.out_at, rows);
    __syncthreads();
    float* of_layer = image_part<float>(state, to.state);
    if (to.row_stride > 0) {
      build_dense(t, net, layer, to, rows, columns, image, of_layer);
    } else {
      build_compressed(net, layer, to, ranks + layer.out_at, ranks + layer.in_at, image);
    }
    build_biases(t, net, layer, to, rows, image, of_layer);
    __syncthreads();
  });
}

// What is pruned leaves as it came; as a gradient it is 0.
__device__ inline void store_network(const CudaTrainer& t, int64_t i) {
  const FlatNetwork net(t, i);
  unsigned char* image = t.images + t.image_at[i];
  const ImageLayer* layers = reinterpret_cast<const ImageLayer*>(image);
  __shared__ ImageSizes sizes;
  if (threadIdx.x == 0) sizes = lay_out(t, t.widths, net.counts, nullptr);
  const int64_t at = i * t.n_parameters;
  const bool is_gradient = static_cast<Optimizer>(t.optimizer) == Optimizer::kGradient;
  for (int64_t k = threadIdx.x; k < t.n_parameters; k += blockDim.x) {
    t.parameters_out[at + k] = is_gradient ? 0 : t.parameters[at + k];
    if (t.scores == nullptr) t.mask_out[at + k] = t.mask[at + k];
  }
  __syncthreads();
  unsigned char *state = image + sizes.core, *live = state + sizes.state;
  for_each_layer(t, false, [&](int l, const FlatLayer& layer) {
    const ImageLayer& from = layers[l];
    const int32_t* rows = image_part<int32_t>(live, from.live);
    const int32_t* columns = l == 0 ? nullptr : image_part<int32_t>(live, layers[l - 1].live);
    float* out = (t.scores == nullptr ? t.parameters_out : t.scores_out) + at;
    const float* of_layer = image_part<float>(state, from.state);
    const float* of_bias = of_layer + n_states(t) * state_stride(from.n_stored);
    const float* weight = t.scores == nullptr ? image_part<float>(image, from.weight)
                                              : of_layer + kScore * state_stride(from.n_stored);
    const float* bias =
        t.scores == nullptr ? image_part<float>(image, from.bias) : of_bias + kScore * state_stride(from.n_rows);
    for (int k = threadIdx.x; k < from.n_stored; k += blockDim.x) {
      int r, c;
      if (from.row_stride > 0) {
        r = k / from.row_stride, c = k % from.row_stride;
        if (c >= from.n_columns || (from.is_masked && !image_part<uint8_t>(image, from.kept)[k])) continue;
      } else {
        const uint32_t place = image_part<uint32_t>(image, from.place)[k];
        r = place >> 16, c = place & 0xFFFF;
      }
      out[layer.weight_at + int64_t{rows[r]} * layer.n_in + (columns == nullptr ? c : columns[c])] = weight[k];
    }
    for (int r = threadIdx.x; r < from.n_rows; r += blockDim.x) {
      if (image_part<uint8_t>(image, from.bias_kept)[r]) out[layer.bias_at + rows[r]] = bias[r];
    }
  });
}

}  // namespace trainer
}  // namespace pns
