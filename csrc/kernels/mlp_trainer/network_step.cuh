// The products of one training step, for the threads that own a network.
//
// A quarter of a warp is 8 lanes x 4 samples. In a compressed product it owns a row. In a dense one the four quarters share
// four rows, each summing every fourth part, so that width 100 has work for all warps. Shared memory gives 128 bytes a
// cycle: a dense tile of 4 x 4 numbers a lane runs at half of the FMA rate at most; 8 x 8 would leave most warps without
// work. Every sum belongs to one lane or to a fixed tree: nothing depends on the number of threads.
#pragma once

#include "core/cuda_check.cuh"
#include "kernels/mlp_trainer/network_build.cuh"
#include "kernels/mlp_trainer/network_image.cuh"

namespace pns {
namespace trainer {

constexpr int kQuarter = 8, kQuarters = 4;  // lanes of a quarter, quarters of a warp

// What a training kernel is compiled for: its code has to stay in the instruction cache.
template <Residence kWhere, Optimizer kHow, bool kOfScores>
struct Kind {
  static constexpr Residence kResidence = kWhere;
  static constexpr Optimizer kOptimizer = kHow;
  static constexpr bool kIsPopup = kOfScores;
};

// What changes from step to step; the rest is in the launch's parameters, which cost no registers.
struct Rates {
  float lr, step_size, inverse_sqrt_correction;
};

// Hardware's approximations, right to 2 units in the last place: what they round is far below Adam's step.
#ifdef PNS_EMULATE_CUDA
inline float quick_root(float x) { return sqrtf(x); }
inline float quick_quotient(float a, float b) { return a / b; }
#else
__device__ inline float quick_root(float x) {
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
__device__ inline float quick_quotient(float a, float b) { return __fdividef(a, b); }
#endif

// torch.optim.SGD (momentum, no dampening) and torch.optim.Adam.
template <Optimizer kOptimizer>
__device__ void update(const CudaTrainer& t, const Rates& rates, float* p, float* first, float* second, float g) {
  if (kOptimizer == Optimizer::kGradient) {
    *p = g;
    return;
  }
  g = fmaf(t.weight_decay, *p, g);
  if (kOptimizer == Optimizer::kSgd) {
    *first = fmaf(t.beta1, *first, g);
    *p -= rates.lr * *first;
    return;
  }
  *first = fmaf(t.one_minus_beta1, g - *first, *first);
  *second = fmaf(t.one_minus_beta2, g * g, t.beta2 * *second);
  *p -= rates.step_size * quick_quotient(*first, fmaf(quick_root(*second), rates.inverse_sqrt_correction, t.eps));
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

__device__ inline float4 select(bool first, const float4& a, const float4& b) {
  return {first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w};
}

// v plus what the lane at the given distance has of `given`.
__device__ inline float4 add_exchanged(const float4& v, const float4& given, int distance) {
  return {v.x + __shfl_xor_sync(kAllLanes, given.x, distance), v.y + __shfl_xor_sync(kAllLanes, given.y, distance),
          v.z + __shfl_xor_sync(kAllLanes, given.z, distance), v.w + __shfl_xor_sync(kAllLanes, given.w, distance)};
}

// The sum over the quarters, in all of them.
__device__ inline float4 sum_quarters(float4 v) {
  v = add_exchanged(v, v, 2 * kQuarter);
  return add_exchanged(v, v, kQuarter);
}

// Quarter j gets the sum over the quarters of v[j].
__device__ inline float4 sum_quarters_transposed(const float4 (&v)[kQuarters]) {
  const bool is_upper = (threadIdx.x & (2 * kQuarter)) != 0, is_odd = (threadIdx.x & kQuarter) != 0;
  const float4 low = add_exchanged(select(is_upper, v[2], v[0]), select(is_upper, v[0], v[2]), 2 * kQuarter);
  const float4 high = add_exchanged(select(is_upper, v[3], v[1]), select(is_upper, v[1], v[3]), 2 * kQuarter);
  return add_exchanged(select(is_odd, high, low), select(is_odd, low, high), kQuarter);
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
#pragma unroll 1
    for (; next < n_items; next += step) f(next);
    next -= n_items;
  }
};

// With few rows a warp works on one at a time, each quarter on every fourth weight: the order of a sum depends on the
// layer's shape, never on the team.
constexpr int kFewRows = 16;

// Layers are passed by value: a store to shared memory might change what is there, as far as the compiler can tell.
template <Residence kResidence>
__device__ void forward_compressed(const Memory<kResidence>& m, const Team& team, const ImageLayer layer,
                                   const float4* x, bool is_last) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter, stride4 = m.stride4;
  const float *weight = m.template of_core<float>(layer.weight), *bias = m.template of_core<float>(layer.bias);
  const uint32_t* begin = m.template of_core<uint32_t>(layer.row_begin);
  const uint32_t* place = m.template of_core<uint32_t>(layer.place);
  float4* y = m.rows(layer.output);
  const bool is_few = layer.n_rows <= kFewRows;
  Turn turn{team.warp, team.n_warps};
#pragma unroll 1
  for (int tile = 0; tile < team.n_tiles; ++tile) {
    const int at = tile * kQuarter + q;
    turn.share(is_few ? layer.n_rows : (layer.n_rows + 3) / 4, [&](int item) {
      const int r = is_few ? item : item * 4 + group, step = is_few ? 4 : 1;
      if (r >= layer.n_rows) return;
      float4 sum = splat(is_few && group > 0 ? 0 : bias[r]);
      const uint32_t end = begin[r + 1];
#pragma unroll 4
      for (uint32_t k = begin[r] + (is_few ? group : 0); k < end; k += step) {
        add(&sum, weight[k], x[(place[k] & 0xFFFF) * stride4 + at]);
      }
      if (is_few) sum = sum_quarters(sum);
      if (!is_few || group == 0) y[r * stride4 + at] = is_last ? sum : relu(sum);
    });
  }
}

template <Residence kResidence>
__device__ void forward_dense(const Memory<kResidence>& m, const Team& team, const ImageLayer layer, const float4* x,
                              bool is_last) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter, stride4 = m.stride4;
  const float4* weight = m.template of_core<float4>(layer.weight);
  const float* bias = m.template of_core<float>(layer.bias);
  float4* y = m.rows(layer.output);
  const int n_parts = layer.row_stride / 4;
  Turn turn{team.warp, team.n_warps};
#pragma unroll 1
  for (int tile = 0; tile < team.n_tiles; ++tile) {
    const int at = tile * kQuarter + q;
    turn.share((layer.n_rows + 3) / 4, [&](int item) {
      const int r = item * 4;
      int row[4];  // places, not pointers: half the registers
      float4 sum[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int own = min(r + j, layer.n_rows - 1);
        row[j] = own * n_parts;
        sum[j] = splat(group > 0 ? 0 : bias[own]);
      }
#pragma unroll 1
      for (int i = group; i < n_parts; i += kQuarters) {
        const float4 w[4] = {weight[row[0] + i], weight[row[1] + i], weight[row[2] + i], weight[row[3] + i]};
        const float4* column = x + 4 * i * stride4 + at;
        const float4 x0 = column[0], x1 = column[stride4], x2 = column[2 * stride4], x3 = column[3 * stride4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          add(&sum[j], w[j].x, x0);
          add(&sum[j], w[j].y, x1);
          add(&sum[j], w[j].z, x2);
          add(&sum[j], w[j].w, x3);
        }
      }
      const float4 own = sum_quarters_transposed(sum);
      if (r + group < layer.n_rows) y[(r + group) * stride4 + at] = is_last ? own : relu(own);
    });
  }
}

// below = W^T delta where the layer's input is positive.
template <Residence kResidence>
__device__ void delta_compressed(const Memory<kResidence>& m, const Team& team, const ImageLayer layer,
                                 const float4* input, const float4* delta, float4* below, Turn* turn) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter, stride4 = m.stride4;
  const float* weight = m.template of_core<float>(layer.weight);
  const uint32_t* begin = m.template of_core<uint32_t>(layer.column_begin);
  const uint32_t* entry = m.template of_core<uint32_t>(layer.in_columns);
  const uint32_t* place = m.template of_core<uint32_t>(layer.place);
#pragma unroll 1
  for (int tile = 0; tile < team.n_tiles; ++tile) {
    const int at = tile * kQuarter + q;
    turn->share((layer.n_columns + 3) / 4, [&](int item) {
      const int c = item * 4 + group;
      if (c >= layer.n_columns) return;
      const float4 h = input[c * stride4 + at];
      float4 sum = splat(0);
      const uint32_t end = begin[c + 1];
#pragma unroll 4
      for (uint32_t e = begin[c]; e < end; ++e) {
        const uint32_t k = entry[e];
        add(&sum, weight[k], delta[(place[k] >> 16) * stride4 + at]);
      }
      below[c * stride4 + at] = where_positive(h, sum);
    });
  }
}

template <Residence kResidence>
__device__ void delta_dense(const Memory<kResidence>& m, const Team& team, const ImageLayer layer, const float4* input,
                            const float4* delta, float4* below, Turn* turn) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter, stride4 = m.stride4;
  const int n_parts = layer.row_stride / 4;
#pragma unroll 1
  for (int tile = 0; tile < team.n_tiles; ++tile) {
    const int at = tile * kQuarter + q;
    turn->share(n_parts, [&](int part) {
      const float4* column = m.template of_core<float4>(layer.weight) + part;
      float4 sum[4] = {splat(0), splat(0), splat(0), splat(0)};
#pragma unroll 4
      for (int o = group; o < layer.n_rows; o += kQuarters) {
        const float4 w = column[o * n_parts], d = delta[o * stride4 + at];
        add(&sum[0], w.x, d);
        add(&sum[1], w.y, d);
        add(&sum[2], w.z, d);
        add(&sum[3], w.w, d);
      }
      const float4 own = sum_quarters_transposed(sum);
      const int c = 4 * part + group, at_c = c * stride4 + at;
      if (c < layer.n_columns) below[at_c] = where_positive(input[at_c], own);
    });
  }
}

// Kept weights begin .. begin + 31, one a lane: their gradients and updates.
template <typename Kind>
__device__ void update_entries(const CudaTrainer& t, const Memory<Kind::kResidence>& m, const Team& team,
                               const ImageLayer& layer, int begin, const float4* input, const float4* delta,
                               const Rates& rates) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter, stride4 = m.stride4;
  const uint32_t* place = m.template of_core<uint32_t>(layer.place);
  const int last = layer.n_stored - 1, k = begin + team.lane;
  const bool is_there = k <= last;
  float *p = m.template of_core<float>(layer.weight) + k, *at_first = m.of_state(layer, kFirst) + k;
  float* at_second = m.of_state(layer, kSecond) + k;
  float value = 0, first = 0, second = 0;
  if (is_there) value = *p, first = *at_first, second = *at_second;  // on their way while the products run
  float v[kQuarter];
#pragma unroll
  for (int j = 0; j < kQuarter; ++j) {
    const uint32_t at = place[min(begin + group * kQuarter + j, last)];
    const float4 *d = delta + (at >> 16) * stride4 + q, *x = input + (at & 0xFFFF) * stride4 + q;
    float sum = 0;
#pragma unroll 1
    for (int tile = 0; tile < team.n_tiles; ++tile) sum = dot(d[tile * kQuarter], x[tile * kQuarter], sum);
    v[j] = sum;
  }
  update<Kind::kOptimizer>(t, rates, &value, &first, &second, sum_transposed(v));
  if (is_there) *p = value, *at_first = first, *at_second = second;
}

// The weights of 16 rows x 32 columns of a dense layer: their gradients and updates.
template <typename Kind>
__device__ void update_block(const CudaTrainer& t, const Memory<Kind::kResidence>& m, const Team& team,
                             const ImageLayer& layer, int row_tile, int column_tile, const float4* input,
                             const float4* delta, const Rates& rates) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter, stride4 = m.stride4;
  const int r = row_tile * 16 + group * 4, c = column_tile * 32 + q;  // and c + 8, 16, 24
  constexpr bool is_popup = Kind::kIsPopup;
  float* trained = is_popup ? m.of_state(layer, kScore) : m.template of_core<float>(layer.weight);
  float *at_first = m.of_state(layer, kFirst), *at_second = m.of_state(layer, kSecond);
  const float* frozen = is_popup ? m.of_state(layer, kFrozen) : nullptr;
  const uint8_t* kept = layer.is_masked ? m.template of_core<uint8_t>(layer.kept) : nullptr;
  float sum[4][4] = {}, first[4][4], second[4][4];
  auto row_at = [&](int j) { return min(r + j, layer.n_rows - 1) * layer.row_stride + c; };
  auto load_moments = [&](int j) {
    const int k = row_at(j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool is_real = r + j < layer.n_rows && c + 8 * i < layer.n_columns;
      first[j][i] = is_real ? at_first[k + 8 * i] : 0;
      second[j][i] = is_real ? at_second[k + 8 * i] : 0;
    }
  };
  load_moments(0);  // on the way from L2 while the products run; for more there are no registers
  int d[4], x[4];  // places of rows and columns; beyond the last: the last
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    d[j] = min(r + j, layer.n_rows - 1) * stride4;
    x[j] = min(c + 8 * j, layer.n_columns - 1) * stride4;
  }
#pragma unroll 1
  for (int b = 0; b < team.n_tiles * kQuarter; ++b) {
    const float4 row[4] = {delta[d[0] + b], delta[d[1] + b], delta[d[2] + b], delta[d[3] + b]};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 column = input[x[i] + b];
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j][i] = dot(row[j], column, sum[j][i]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j < 3) load_moments(j + 1);
    const int k = row_at(j);
    float value[4];
    bool is_trained[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      is_trained[i] = r + j < layer.n_rows && c + 8 * i < layer.n_columns && !(kept != nullptr && !kept[k + 8 * i]);
      value[i] = is_trained[i] ? trained[k + 8 * i] : 0;
      // Straight through |score|, sign(0) = 1.
      if (is_popup && is_trained[i]) sum[j][i] *= value[i] < 0 ? -frozen[k + 8 * i] : frozen[k + 8 * i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) update<Kind::kOptimizer>(t, rates, &value[i], &first[j][i], &second[j][i], sum[j][i]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!is_trained[i]) continue;
      trained[k + 8 * i] = value[i], at_first[k + 8 * i] = first[j][i], at_second[k + 8 * i] = second[j][i];
    }
  }
}

// Biases begin .. begin + 31, one a lane.
template <typename Kind>
__device__ void update_biases(const CudaTrainer& t, const Memory<Kind::kResidence>& m, const Team& team,
                              const ImageLayer& layer, int begin, const float4* delta, const Rates& rates) {
  const int group = team.lane / kQuarter, q = team.lane % kQuarter;
  const int r = begin + team.lane;
  const bool is_there = r < layer.n_rows;
  constexpr bool is_popup = Kind::kIsPopup;
  float* trained = (is_popup ? m.of_bias_state(t, layer, kScore) : m.template of_core<float>(layer.bias)) + r;
  float *at_first = m.of_bias_state(t, layer, kFirst) + r, *at_second = m.of_bias_state(t, layer, kSecond) + r;
  float value = 0, first = 0, second = 0;
  if (is_there) value = *trained, first = *at_first, second = *at_second;
  float v[kQuarter];
#pragma unroll
  for (int j = 0; j < kQuarter; ++j) {
    const float4* d = delta + min(begin + group * kQuarter + j, layer.n_rows - 1) * m.stride4 + q;
    float sum = 0;
#pragma unroll 1
    for (int tile = 0; tile < team.n_tiles; ++tile) sum = dot(d[tile * kQuarter], splat(1), sum);
    v[j] = sum;
  }
  float g = sum_transposed(v);
  if (is_popup && is_there) {
    const float frozen = m.of_bias_state(t, layer, kFrozen)[r];
    g *= value < 0 ? -frozen : frozen;
  }
  update<Kind::kOptimizer>(t, rates, &value, &first, &second, g);
  if (is_there && m.template of_core<uint8_t>(layer.bias_kept)[r]) {
    *trained = value, *at_first = first, *at_second = second;
  }
}

template <typename Kind>
__device__ void update_layer(const CudaTrainer& t, const Memory<Kind::kResidence>& m, const Team& team,
                             const ImageLayer layer, const float4* input, const float4* delta, const Rates& rates,
                             Turn* turn) {
  if (!Kind::kIsPopup && layer.row_stride == 0) {
    turn->share((layer.n_stored + kWarp - 1) / kWarp, [&](int item) {
      update_entries<Kind>(t, m, team, layer, item * kWarp, input, delta, rates);
    });
  } else {
#pragma unroll 1
    for (int column_tile = 0; column_tile < (layer.n_columns + 31) / 32; ++column_tile) {
      turn->share((layer.n_rows + 15) / 16, [&](int item) {
        update_block<Kind>(t, m, team, layer, item, column_tile, input, delta, rates);
      });
    }
  }
  turn->share((layer.n_rows + kWarp - 1) / kWarp, [&](int item) {
    update_biases<Kind>(t, m, team, layer, item * kWarp, delta, rates);
  });
}

}  // namespace trainer
}  // namespace pns
