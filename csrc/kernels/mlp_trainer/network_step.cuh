// The products of one training step, for the threads that own a network.
//
// A quarter of a warp (8 lanes x 4 samples) owns one row of a compressed product, or four rows of a dense one; a warp
// tile is 4 or 16 rows x 32 samples. Shared memory gives 128 bytes a cycle, so a dense tile of 4 x 4 numbers a lane runs
// at half of the FMA rate at most; 8 x 8 would leave most warps without work at width 100. Every sum belongs to one lane
// or to a fixed tree of eight: nothing depends on the number of threads.
#pragma once

#include "core/cuda_check.cuh"
#include "kernels/mlp_trainer/network_build.cuh"
#include "kernels/mlp_trainer/network_image.cuh"

namespace pns {
namespace trainer {

constexpr int kQuarter = 8;  // lanes

struct Rule {
  Optimizer kind;
  float lr, step_size, inverse_sqrt_correction;
  float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay;
};

// torch.optim.SGD (momentum, no dampening) and torch.optim.Adam.
__device__ inline void update(const Rule& r, float* p, float* first, float* second, float g) {
  if (r.kind == Optimizer::kGradient) {
    *p = g;
    return;
  }
  g = fmaf(r.weight_decay, *p, g);
  if (r.kind == Optimizer::kSgd) {
    *first = fmaf(r.beta1, *first, g);
    *p -= r.lr * *first;
    return;
  }
  const float m = fmaf(r.one_minus_beta1, g - *first, *first);
  const float v = fmaf(r.one_minus_beta2, g * g, r.beta2 * *second);
  *first = m, *second = v;
  *p -= r.step_size * m / fmaf(sqrtf(v), r.inverse_sqrt_correction, r.eps);
}

__device__ inline void add(float4* sum, float w, const float4& x) {
  sum->x = fmaf(w, x.x, sum->x);
  sum->y = fmaf(w, x.y, sum->y);
  sum->z = fmaf(w, x.z, sum->z);
  sum->w = fmaf(w, x.w, sum->w);
}

__device__ inline float dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// A NaN stays one, so that a network that diverged shows it.
__device__ inline float relu(float x) { return x <= 0 ? 0 : x; }
__device__ inline float4 relu(const float4& x) { return {relu(x.x), relu(x.y), relu(x.z), relu(x.w)}; }
__device__ inline float4 where_positive(const float4& h, const float4& x) {
  return {h.x > 0 ? x.x : 0, h.y > 0 ? x.y : 0, h.z > 0 ? x.z : 0, h.w > 0 ? x.w : 0};
}
__device__ inline float4 splat(float x) { return {x, x, x, x}; }

// Lane j of each quarter gets the sum over the quarter of v[j].
__device__ inline float sum_transposed(float (&v)[kQuarter]) {
#pragma unroll
  for (int half = kQuarter / 2; half > 0; half /= 2) {
    const bool is_upper = (threadIdx.x & half) != 0;
#pragma unroll
    for (int j = 0; j < half; ++j) {
      const float given = is_upper ? v[j] : v[j + half], kept = is_upper ? v[j + half] : v[j];
      v[j] = kept + __shfl_xor_sync(kAllLanes, given, half);
    }
  }
  return v[0];
}

// Where a team's network lies. The members of one residence are in known memory, so that the compiler addresses it.
template <Residence kResidence>
struct Memory {
  const ImageLayer* layers;
  unsigned char *core, *state, *activations;
  int stride4;  // float4 from a neuron's activations to the next's

  template <typename T>
  __device__ T* of_core(uint32_t offset) const {
    return reinterpret_cast<T*>(core + static_cast<size_t>(offset) * 16);
  }
  // The weights' (or after them the biases') arrays of State.
  __device__ float* of_state(const ImageLayer& layer, int which) const {
    return reinterpret_cast<float*>(state + static_cast<size_t>(layer.state) * 16) +
           which * state_stride(layer.n_stored);
  }
  __device__ float* of_bias_state(const CudaTrainer& t, const ImageLayer& layer, int which) const {
    return of_state(layer, n_states(t)) + which * state_stride(layer.n_rows);
  }
  __device__ float4* rows(int row) const {
    return reinterpret_cast<float4*>(activations) + static_cast<size_t>(row) * stride4;
  }
};

// The warps that share a network: of a block, or of a cluster of blocks.
struct Team {
  int warp, n_warps, lane;
  int n_tiles;  // of kTile samples
};

// Items 0.. of a phase are shared out in turn; the next kind of items goes on where the last one stopped.
struct Turn {
  int next, step;
  template <typename F>
  __device__ void share(int n_items, F f) {
    for (; next < n_items; next += step) f(next);
    next -= n_items;
  }
};

template <Residence kResidence>
__device__ void forward_layer(const Memory<kResidence>& m, const Team& team, const ImageLayer& layer, const float4* x,
                              bool is_last) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter, stride4 = m.stride4;
  const float *weight = m.template of_core<float>(layer.weight), *bias = m.template of_core<float>(layer.bias);
  float4* y = m.rows(layer.output);
  Turn turn{team.warp, team.n_warps};
  if (layer.row_stride == 0) {
    const uint32_t* begin = m.template of_core<uint32_t>(layer.row_begin);
    const uint32_t* place = m.template of_core<uint32_t>(layer.place);
    turn.share((layer.n_rows + 3) / 4 * team.n_tiles, [&](int item) {
      const int r = item / team.n_tiles * 4 + group, at = item % team.n_tiles * kQuarter + q;
      if (r >= layer.n_rows) return;
      float4 sum = splat(bias[r]);
      const uint32_t end = begin[r + 1];
#pragma unroll 4
      for (uint32_t k = begin[r]; k < end; ++k) add(&sum, weight[k], x[(place[k] & 0xFFFF) * stride4 + at]);
      y[r * stride4 + at] = is_last ? sum : relu(sum);
    });
    return;
  }
  turn.share((layer.n_rows + 15) / 16 * team.n_tiles, [&](int item) {
    const int r = item / team.n_tiles * 16 + group * 4, at = item % team.n_tiles * kQuarter + q;
    const float4* weight4 = reinterpret_cast<const float4*>(weight);
    int row[4];  // places, not pointers: half the registers
    float4 sum[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int own = min(r + j, layer.n_rows - 1);
      row[j] = own * (layer.row_stride / 4);
      sum[j] = splat(bias[own]);
    }
    const float4* column = x + at;
    for (int i = 0; i < layer.row_stride / 4; ++i) {
      const float4 w[4] = {weight4[row[0] + i], weight4[row[1] + i], weight4[row[2] + i], weight4[row[3] + i]};
      const float4 x0 = column[0], x1 = column[stride4], x2 = column[2 * stride4], x3 = column[3 * stride4];
      column += 4 * stride4;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        add(&sum[j], w[j].x, x0);
        add(&sum[j], w[j].y, x1);
        add(&sum[j], w[j].z, x2);
        add(&sum[j], w[j].w, x3);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (r + j < layer.n_rows) y[(r + j) * stride4 + at] = is_last ? sum[j] : relu(sum[j]);
    }
  });
}

// below = W^T delta where the layer's input is positive.
template <Residence kResidence>
__device__ void input_delta(const Memory<kResidence>& m, const Team& team, const ImageLayer& layer, const float4* input,
                            const float4* delta, float4* below, Turn* turn) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter, stride4 = m.stride4;
  const float* weight = m.template of_core<float>(layer.weight);
  if (layer.row_stride == 0) {
    const uint32_t* begin = m.template of_core<uint32_t>(layer.column_begin);
    const uint32_t* entry = m.template of_core<uint32_t>(layer.in_columns);
    const uint32_t* place = m.template of_core<uint32_t>(layer.place);
    turn->share((layer.n_columns + 3) / 4 * team.n_tiles, [&](int item) {
      const int c = item / team.n_tiles * 4 + group, at = item % team.n_tiles * kQuarter + q;
      if (c >= layer.n_columns) return;
      float4 sum = splat(0);
      const uint32_t end = begin[c + 1];
#pragma unroll 4
      for (uint32_t e = begin[c]; e < end; ++e) {
        const uint32_t k = entry[e];
        add(&sum, weight[k], delta[(place[k] >> 16) * stride4 + at]);
      }
      below[c * stride4 + at] = where_positive(input[c * stride4 + at], sum);
    });
    return;
  }
  turn->share((layer.n_columns + 15) / 16 * team.n_tiles, [&](int item) {
    const int c = item / team.n_tiles * 16 + group * 4, at = item % team.n_tiles * kQuarter + q;
    // Columns beyond the last are read as the last four: their sums are not stored.
    const float4* column = reinterpret_cast<const float4*>(weight) + min(c / 4, layer.row_stride / 4 - 1);
    float4 sum[4] = {splat(0), splat(0), splat(0), splat(0)};
#pragma unroll 4
    for (int o = 0; o < layer.n_rows; ++o) {
      const float4 w = *column, d = delta[o * stride4 + at];
      column += layer.row_stride / 4;
      add(&sum[0], w.x, d);
      add(&sum[1], w.y, d);
      add(&sum[2], w.z, d);
      add(&sum[3], w.w, d);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at_j = (c + j) * stride4 + at;
      if (c + j < layer.n_columns) below[at_j] = where_positive(input[at_j], sum[j]);
    }
  });
}

// Kept weights k .. k + 31, one a lane: their gradients and updates.
template <Residence kResidence>
__device__ void update_entries(const Memory<kResidence>& m, const Team& team, const ImageLayer& layer, int begin,
                               const float4* input, const float4* delta, const Rule& rule) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter, stride4 = m.stride4;
  const uint32_t* place = m.template of_core<uint32_t>(layer.place);
  const int k = begin + team.lane, last = layer.n_stored - 1;
  const bool is_own = k <= last;
  float *p = m.template of_core<float>(layer.weight) + k, *first = m.of_state(layer, kFirst) + k;
  float* second = m.of_state(layer, kSecond) + k;
  float v[kQuarter];
#pragma unroll
  for (int j = 0; j < kQuarter; ++j) {
    const uint32_t at = place[min(begin + group * kQuarter + j, last)];
    const float4 *d = delta + (at >> 16) * stride4 + q, *x = input + (at & 0xFFFF) * stride4 + q;
    float sum = 0;
    for (int tile = 0; tile < team.n_tiles; ++tile) sum = dot(d[tile * kQuarter], x[tile * kQuarter], sum);
    v[j] = sum;
  }
  const float g = sum_transposed(v);
  if (is_own) update(rule, p, first, second, g);
}

// The weights of 16 rows x 32 columns of a dense layer: their gradients and updates.
template <Residence kResidence>
__device__ void update_block(const CudaTrainer& t, const Memory<kResidence>& m, const Team& team,
                             const ImageLayer& layer, int item, const float4* input, const float4* delta,
                             const Rule& rule) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter, stride4 = m.stride4;
  const int n_across = (layer.n_columns + 31) / 32;
  const int r = item / n_across * 16 + group * 4, c = item % n_across * 32 + q;  // and c + 8, 16, 24
  int d[4], x[4];
  float sum[4][4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    d[j] = min(r + j, layer.n_rows - 1) * stride4;
    x[j] = min(c + 8 * j, layer.n_columns - 1) * stride4;
  }
  for (int b = 0; b < team.n_tiles * kQuarter; ++b) {
    const float4 row[4] = {delta[d[0] + b], delta[d[1] + b], delta[d[2] + b], delta[d[3] + b]};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 column = input[x[i] + b];
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j][i] = dot(row[j], column, sum[j][i]);
    }
  }
  const bool is_popup = t.scores != nullptr;
  float *weight = m.template of_core<float>(layer.weight), *first = m.of_state(layer, kFirst);
  float *second = m.of_state(layer, kSecond), *trained = is_popup ? m.of_state(layer, kScore) : weight;
  const float* frozen = is_popup ? m.of_state(layer, kFrozen) : nullptr;
  const uint8_t* kept = m.template of_core<uint8_t>(layer.kept);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = (r + j) * layer.row_stride + c + 8 * i;
      if (r + j >= layer.n_rows || c + 8 * i >= layer.n_columns || (layer.is_masked && !kept[k])) continue;
      float g = sum[j][i];
      if (is_popup) g *= trained[k] < 0 ? -frozen[k] : frozen[k];  // straight through |score|, sign(0) = 1
      update(rule, trained + k, first + k, second + k, g);
    }
  }
}

// Biases begin .. begin + 31, one a lane.
template <Residence kResidence>
__device__ void update_biases(const CudaTrainer& t, const Memory<kResidence>& m, const Team& team,
                              const ImageLayer& layer, int begin, const float4* delta, const Rule& rule) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter;
  float v[kQuarter];
#pragma unroll
  for (int j = 0; j < kQuarter; ++j) {
    const float4* d = delta + min(begin + group * kQuarter + j, layer.n_rows - 1) * m.stride4 + q;
    float sum = 0;
    for (int tile = 0; tile < team.n_tiles; ++tile) sum = dot(d[tile * kQuarter], splat(1), sum);
    v[j] = sum;
  }
  float g = sum_transposed(v);
  const int r = begin + team.lane;
  if (r >= layer.n_rows || !m.template of_core<uint8_t>(layer.bias_kept)[r]) return;
  float* trained = m.template of_core<float>(layer.bias);
  if (t.scores != nullptr) {
    trained = m.of_bias_state(t, layer, kScore);
    const float frozen = m.of_bias_state(t, layer, kFrozen)[r];
    g *= trained[r] < 0 ? -frozen : frozen;
  }
  update(rule, trained + r, m.of_bias_state(t, layer, kFirst) + r, m.of_bias_state(t, layer, kSecond) + r, g);
}

template <Residence kResidence>
__device__ void update_layer(const CudaTrainer& t, const Memory<kResidence>& m, const Team& team,
                             const ImageLayer& layer, const float4* input, const float4* delta, const Rule& rule,
                             Turn* turn) {
  if (layer.row_stride == 0) {
    turn->share((layer.n_stored + kWarp - 1) / kWarp, [&](int item) {
      update_entries(m, team, layer, item * kWarp, input, delta, rule);
    });
  } else {
    turn->share((layer.n_rows + 15) / 16 * ((layer.n_columns + 31) / 32), [&](int item) {
      update_block(t, m, team, layer, item, input, delta, rule);
    });
  }
  turn->share((layer.n_rows + kWarp - 1) / kWarp, [&](int item) {
    update_biases(t, m, team, layer, item * kWarp, delta, rule);
  });
}

}  // namespace trainer
}  // namespace pns
