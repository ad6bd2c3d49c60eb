// The trainer's step over Vec<float, W>: lanes run along the batch (forward, input gradient) or along the inputs (dense
// weight gradient), so that every path multiplies whole vectors. Sums run in a fixed order.
#pragma once

#include <algorithm>

#include "core/sparse_rows.h"
#include "core/vec.h"
#include "kernels/mlp_trainer/batch_order_body.h"
#include "kernels/mlp_trainer/dense_layer_body.h"
#include "kernels/mlp_trainer/network.h"
#include "kernels/mlp_trainer/selection_body.h"
#include "kernels/mlp_trainer/update_body.h"

namespace pns {
namespace {

template <int W>
struct MlpStep {
  using Vector = Vec<float, W>;

  static int64_t n_vectors(int64_t n_batch) { return (n_batch + W - 1) / W; }
  static int n_tiles(int64_t n_batch) {
    int n = 0;
    for_each_tile(n_vectors(n_batch), false, [&](auto, int64_t) { ++n; });
    return n;
  }

  // f(tile of V vectors) over the batch: 4 vectors at a time, then 2, then 1. 16 registers (AVX2) hold a dense block of
  // 6 rows x 2 vectors, but not one of 3 x 4 with what is multiplied.
  template <typename F>
  static void for_each_tile(int64_t n, bool is_dense, F&& f) {
    int64_t v = 0;
    for (; v + 4 <= n && (W == 16 || !is_dense); v += 4) f(std::integral_constant<int, 4>(), v * W);
    for (; v + 2 <= n; v += 2) f(std::integral_constant<int, 2>(), v * W);
    for (; v < n; ++v) f(std::integral_constant<int, 1>(), v * W);
  }

  // Blocks of W features and W samples are transposed. Lanes behind the batch repeat its last sample.
  static void gather(Network& net, const float* x, const uint32_t* index, int64_t n_batch) {
    const int64_t stride = net.batch_stride, n = net.n_inputs;
    float* input = net.input.data();
    for (const int64_t f : net.features) {
      for (int64_t b = 0; b < n_batch; ++b) input[f * stride + b] = x[index[b] * n + f];
    }
    for (int64_t b = 0; b < n_batch && !net.feature_blocks.empty(); b += W) {
      const float* sample[W];
      for (int64_t j = 0; j < W; ++j) sample[j] = x + index[std::min(b + j, n_batch - 1)] * n;
      for (const int64_t f : net.feature_blocks) {
        Vector block[W];
        for (int j = 0; j < W; ++j) block[j] = Vector::load(sample[j] + f);
        transpose(block);
        for (int j = 0; j < W; ++j) block[j].store(input + (f + j) * stride + b);
      }
    }
  }

  static void forward(Network& net, int64_t n_batch) {
    for (size_t l = 0; l < net.layers.size(); ++l) {
      net.in_shares([&](Share share) { layer_forward(net, l, n_batch, share); });
    }
  }

  static void layer_forward(Network& net, size_t l, int64_t n_batch, Share share) {
    const bool is_last = l + 1 == net.layers.size();
    for_each_tile(n_vectors(n_batch), net.layers[l].is_dense, [&](auto tile_vectors, int64_t at) {
      constexpr int V = decltype(tile_vectors)::value;
      is_last ? tile_forward<V, true>(net, l, at, share) : tile_forward<V, false>(net, l, at, share);
    });
  }

  // What a layer's sums become. A NaN stays one, so that a network that diverged shows it.
  template <int V, bool kIsLast>
  [[gnu::always_inline]] static void put_out(const Vector* sum, float* y) {
    for (int v = 0; v < V; ++v) (kIsLast ? sum[v] : max(Vector::zero(), sum[v])).store(y + v * W);
  }

  template <int V, bool kIsLast>
  static void tile_forward(Network& net, size_t l, int64_t at, Share share) {
    Layer& layer = net.layers[l];
    const int64_t stride = net.batch_stride, begin = share.begin(layer.n_out), end = share.end(layer.n_out);
    const float *x = net.layer_input(l) + at, *bias = layer.bias.data(), *weight = layer.weight.data();
    float* y = layer.output.data() + at;
    // All neurons are live in a full layer.
    const auto finish = [=](int64_t k, Vector* sum) {
      for (int v = 0; v < V; ++v) sum[v] = sum[v] + Vector::broadcast(bias[k]);
      put_out<V, kIsLast>(sum, y + k * stride);
    };
    if (layer.is_dense) {
      const int64_t n = std::min(layer.row_stride, layer.n_in);
      const DenseMatrix<float> rows{weight, layer.row_stride, 1, n};
      const DenseMatrix<float> tails{weight + layer.tail_at(), Layer::kTail, 1, layer.n_in - n};
      dense_product<W, V>(begin, end, x, stride, finish, rows, tails);
    } else if (layer.is_matrix()) {
      // By columns, as a compressed layer's weights lie, all of them are a matrix too.
      dense_product<W, V>(begin, end, x, stride, finish, DenseMatrix<float>{weight, 1, layer.n_out, layer.n_in});
    } else {
      sparse_forward<V, kIsLast>(layer, bias, weight, x, y, share);
    }
  }

  // A function of its own, so that the compiler has the registers for what the loop over the rows reads.
  template <int V, bool kIsLast>
  [[gnu::noinline]] static void sparse_forward(const Layer& layer, const float* bias, const float* weight, const float* x,
                                               float* y, Share share) {
    const int32_t *place = layer.place.data(), *column = layer.row_column.data(), *entry = layer.row_entry.data();
    const int64_t* begin = layer.row_begin.data();
    int64_t k = share.member;
    const auto rows_of = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      const int64_t end = layer.rows_up_to[kCount];
      if (k >= end) return;
      for (int64_t at = begin[k]; k < end; k += share.size, at += kCount * share.size) {
        Vector sum[V];
        for (int v = 0; v < V; ++v) sum[v] = Vector::broadcast(bias[k]);
        for (int j = 0; j < kCount; ++j) {
          const Vector w = Vector::broadcast(weight[entry[at + j]]);
          for (int v = 0; v < V; ++v) sum[v] = fma(w, Vector::load(x + column[at + j] + v * W), sum[v]);
        }
        put_out<V, kIsLast>(sum, y + place[k]);
      }
    };
    rows_of(std::integral_constant<int, 0>());
    rows_of(std::integral_constant<int, 1>());
    rows_of(std::integral_constant<int, 2>());
    rows_of(std::integral_constant<int, 3>());
    for (; k < layer.n_live; k += share.size) {
      Vector sum[V];
      for (int v = 0; v < V; ++v) sum[v] = Vector::broadcast(bias[k]);
      sparse_sum<V, true>(column, weight, entry, begin[k], begin[k + 1], x, 1, sum);
      put_out<V, kIsLast>(sum, y + place[k]);
    }
  }

  static double loss(Network& net, int64_t n_batch, Loss kind, bool write_delta) {
    return kind == Loss::kCrossEntropy ? cross_entropy(net, n_batch, write_delta)
                                       : mean_squared_error(net, n_batch, write_delta);
  }

  // 1 in lanes of samples, 0 behind them.
  static typename Vector::IntLanes is_sample(int64_t at, int64_t n_batch) {
    typename Vector::IntLanes lane;
    for (int j = 0; j < W; ++j) lane[j] = static_cast<int32_t>(at + j);
    return lane < static_cast<int32_t>(n_batch);
  }

  static double cross_entropy(Network& net, int64_t n_batch, bool write_delta) {
    Layer& last = net.layers.back();
    const int64_t stride = net.batch_stride, n_classes = last.n_out;
    const Vector scale = Vector::broadcast(1.0f / static_cast<float>(n_batch));
    double sum = 0;
    for (int64_t at = 0; at < n_batch; at += W) {
      const float* logit = last.output.data() + at;
      float* delta = last.delta.data() + at;
      typename Vector::IntLanes label;
      std::memcpy(&label, net.label.data() + at, sizeof(label));
      Vector largest = Vector::load(logit), of_label = Vector::zero(), total = Vector::zero();
      for (int64_t c = 1; c < n_classes; ++c) largest = max(Vector::load(logit + c * stride), largest);
      for (int64_t c = 0; c < n_classes; ++c) {
        const Vector z = Vector::load(logit + c * stride) - largest;
        of_label = select(label == static_cast<int32_t>(c), z, of_label);
        const Vector e = exp(z);
        e.store(delta + c * stride);
        total = total + e;
      }
      if (write_delta) {
        const Vector inverse = scale / total;
        const auto valid = is_sample(at, n_batch);
        for (int64_t c = 0; c < n_classes; ++c) {
          const Vector p = Vector::load(delta + c * stride) * inverse;
          const Vector d = select(label == static_cast<int32_t>(c), p - scale, p);
          select(valid, d, Vector::zero()).store(delta + c * stride);
        }
      }
      // sum of log(total): one logarithm of a product in double; 16 factors of at most n_classes cannot overflow
      double product = 1;
      for (int j = 0; j < W && at + j < n_batch; ++j) {
        product *= total.v[j];
        sum -= of_label.v[j];
      }
      sum += __builtin_log(product);
    }
    return sum;
  }

  static double mean_squared_error(Network& net, int64_t n_batch, bool write_delta) {
    Layer& last = net.layers.back();
    const int64_t stride = net.batch_stride;
    const Vector scale = Vector::broadcast(2.0f / static_cast<float>(n_batch * last.n_out));
    double sum = 0;
    for (int64_t at = 0; at < n_batch; at += W) {
      const auto valid = is_sample(at, n_batch);
      Vector total = Vector::zero();
      for (int64_t o = 0; o < last.n_out; ++o) {
        const int64_t k = o * stride + at;
        const Vector d = select(valid, Vector::load(last.output.data() + k) - Vector::load(net.target.data() + k),
                                Vector::zero());
        total = fma(d, d, total);
        if (write_delta) (d * scale).store(last.delta.data() + k);
      }
      for (int j = 0; j < W; ++j) sum += total.v[j];
    }
    return sum / static_cast<double>(last.n_out);
  }

  static void backward(Network& net, int64_t n_batch, const UpdateRule& rule) {
    switch (rule.kind) {
      case Optimizer::kGradient: return backward(net, n_batch, Updater<W, Optimizer::kGradient>(rule));
      case Optimizer::kSgd: return backward(net, n_batch, Updater<W, Optimizer::kSgd>(rule));
      case Optimizer::kAdam: return backward(net, n_batch, Updater<W, Optimizer::kAdam>(rule));
    }
  }

  template <typename Updater>
  static void backward(Network& net, int64_t n_batch, const Updater& updater) {
    const size_t last = net.layers.size() - 1;
    net.in_shares([&](Share share) { propagate(net, last, n_batch, share); });
    for (size_t l = last + 1; l-- > 0;) {
      // A layer's weights may change: the delta below has been made of the old ones.
      net.in_shares([&](Share share) {
        update(net, l, n_batch, share, updater);
        if (l > 0) propagate(net, l - 1, n_batch, share);
      });
    }
  }

  // The delta below a layer, and with it the gradients of a compressed one.
  static void propagate(Network& net, size_t l, int64_t n_batch, Share share) {
    if (!net.layers[l].is_dense) return sparse_gradients(net, l, n_batch, share);
    if (l > 0) input_delta(net, l, n_batch, share);
  }

  template <typename Updater>
  static void update(Network& net, size_t l, int64_t n_batch, Share share, const Updater& updater) {
    Layer& layer = net.layers[l];
    if (layer.is_dense) {
      float* transposed = net.transposed(share.member);
      transpose_batch<W>(layer, net.layer_input(l), net.batch_stride, n_batch, transposed);
      dense_gradient_update<W>(layer, transposed, net.batch_stride, n_batch, share, net.gradient(share.member), updater);
    } else {
      sparse_update(net, l, n_batch, share, updater);
    }
    switch (n_vectors(n_batch)) {
      case 1: return bias_update<1>(layer, 1, share, updater);
      case 2: return bias_update<2>(layer, 2, share, updater);
      case 4: return bias_update<4>(layer, 4, share, updater);
      default: return bias_update<0>(layer, n_vectors(n_batch), share, updater);
    }
  }

  // Members take tiles of the batch: a tile's deltas are nobody else's.
  static void sparse_gradients(Network& net, size_t l, int64_t n_batch, Share share) {
    const Layer& layer = net.layers[l];
    if (layer.n_entries == 0) return;
    const float* x = net.layer_input(l);
    const int n_makers = net.tiles_apart ? share.size : 1;
    int tile = 0;
    for_each_tile(n_vectors(n_batch), false, [&](auto tile_vectors, int64_t at) {
      constexpr int V = decltype(tile_vectors)::value;
      float* gradient = net.tile_gradient(l, tile);
      const bool is_first = tile == 0 || net.tiles_apart;
      if (tile++ % n_makers != share.member) return;
      if (l > 0) {
        column_pass<V, true>(layer, x, net.layers[l - 1].delta.data(), at, is_first, gradient);
      } else {
        column_pass<V, false>(layer, x, nullptr, at, is_first, gradient);
      }
    });
  }

  template <typename Updater>
  static void sparse_update(Network& net, size_t l, int64_t n_batch, Share share, const Updater& updater) {
    Layer& layer = net.layers[l];
    const int64_t n_vectors = layer.n_stored() / W, begin = share.begin(n_vectors) * W, end = share.end(n_vectors) * W;
    float* gradient = net.tile_gradient(l, 0);
    for (int tile = 1; net.tiles_apart && tile < n_tiles(n_batch); ++tile) {
      const float* of_tile = net.tile_gradient(l, tile);
      for (int64_t k = begin; k < end; k += W) (Vector::load(gradient + k) + Vector::load(of_tile + k)).store(gradient + k);
    }
    update_run<W>(layer.trained(), begin, end, gradient + begin, updater);
  }

  // delta_{l-1} = W_l^T delta_l where h_{l-1} > 0, W_l dense.
  static void input_delta(Network& net, size_t l, int64_t n_batch, Share share) {
    Layer& layer = net.layers[l];
    const int64_t stride = net.batch_stride;
    const float* output = net.layer_input(l);
    float* delta_below = net.layers[l - 1].delta.data();
    for_each_tile(n_vectors(n_batch), true, [&](auto tile_vectors, int64_t at) {
      constexpr int V = decltype(tile_vectors)::value;
      auto finish = [&](int64_t i, Vector* acc) {
        for (int v = 0; v < V; ++v) {
          const int64_t k = i * stride + at + v * W;
          select(Vector::load(output + k) > Vector::zero(), acc[v], Vector::zero()).store(delta_below + k);
        }
      };
      const int64_t begin = share.begin(layer.n_in), end = share.end(layer.n_in), n = layer.row_stride;
      const float* delta = layer.delta.data() + at;
      const DenseMatrix<float> rows{layer.weight.data(), 1, n, layer.n_out};
      const DenseMatrix<float> tails{layer.weight.data() + layer.tail_at() - n, 1, Layer::kTail, layer.n_out};
      dense_product<W, V>(begin, std::min(end, n), delta, stride, finish, rows);
      dense_product<W, V>(std::max(begin, n), end, delta, stride, finish, tails);
    });
  }

  // Both sums over the tile of V vectors at `at` for a compressed layer, in one pass by columns: the delta of each input,
  // and the gradient of each kept weight, is_first or added to what is there. An input x and the sum of its delta stay in
  // registers, so that a kept weight loads its place, its value and V vectors of delta, which serve both.
  template <int V, bool kHasBelow>
  static void column_pass(const Layer& layer, const float* x, float* delta_below, int64_t at, bool is_first,
                          float* gradient) {
    const int32_t *row = layer.row.data(), *column = layer.column.data();
    const uint8_t* column_ends = layer.column_ends.data();
    const float *delta = layer.delta.data() + at, *weight = layer.weight.data();
    const int64_t n = layer.n_stored();
    x += at, delta_below += kHasBelow ? at : 0;
    Vector input[V], sum[V];
    auto start_column = [&](int64_t k) {
      for (int v = 0; v < V; ++v) input[v] = Vector::load(x + column[k] + v * W), sum[v] = Vector::zero();
    };
    start_column(0);
    for (int64_t k = 0; k < n; k += W) {
      uint32_t ends = 0;
      std::memcpy(&ends, column_ends + k / 8, W / 8);
      const Vector dots = horizontal_sums<Vector>([&](int j) __attribute__((always_inline)) {
        const float* d = delta + row[k + j];
        const Vector w = Vector::broadcast(weight[k + j]);
        Vector dot = Vector::load(d) * input[0];
        for (int v = 1; v < V; ++v) dot = fma(Vector::load(d + v * W), input[v], dot);
        for (int v = 0; v < V && kHasBelow; ++v) sum[v] = fma(w, Vector::load(d + v * W), sum[v]);
        if (ends >> j & 1) {
          for (int v = 0; v < V && kHasBelow; ++v) {
            select(input[v] > Vector::zero(), sum[v], Vector::zero()).store(delta_below + column[k + j] + v * W);
          }
          start_column(k + j + 1);
        }
        return dot;
      });
      (is_first ? dots : Vector::load(gradient + k) + dots).store(gradient + k);
    }
  }

  // kVectors: those of the batch where they are known, or 0.
  template <int kVectors, typename Updater>
  [[gnu::always_inline]] static void bias_update(Layer& layer, int64_t count, Share share, Updater updater) {
    const int32_t* place = layer.place.data();
    const float* delta = layer.delta.data();
    const Trained trained = layer.bias_trained();
    for (int64_t k = share.member * W; k < layer.n_live; k += share.size * W) {
      const Vector g = horizontal_sums<Vector>([&](int j) __attribute__((always_inline)) {
        const float* of_neuron = delta + place[k + j];
        Vector sum = Vector::load(of_neuron);
        for (int64_t v = 1; v < (kVectors > 0 ? kVectors : count); ++v) sum = sum + Vector::load(of_neuron + v * W);
        return sum;
      });
      float* value = trained.value + k;
      updater.apply(value, trained.state + 2 * k, trained_gradient(g, trained.factor + k, trained.is_edge_popup, value));
    }
  }
};

template <int W>
StepFunctions step_functions() {
  using Step = MlpStep<W>;
  return {W, Step::gather, Step::forward, Step::loss, Step::backward, Selection<W>::run, BatchOrder<W>::run};
}

}  // namespace
}  // namespace pns
