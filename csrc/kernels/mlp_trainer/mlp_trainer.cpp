// The plain step (the truth, and the baseline level), the epoch loop around every level's step, and the share-out of
// networks among threads.
#include "kernels/mlp_trainer/mlp_trainer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "core/flush_denormals.h"
#include "core/interruption.h"
#include "core/simd_level.h"
#include "kernels/mlp_trainer/network.h"

namespace pns {
namespace {

// The truth: compressed layers only, one sample and one parameter at a time.
struct PlainStep {
  static void gather(Network& net, const float* x, const uint32_t* index, int64_t n_batch) {
    for (const int64_t f : net.features) {
      for (int64_t b = 0; b < n_batch; ++b) net.input[f * net.batch_stride + b] = x[index[b] * net.n_inputs + f];
    }
  }

  static void forward(Network& net, int64_t n_batch) {
    for (size_t l = 0; l < net.layers.size(); ++l) {
      Layer& layer = net.layers[l];
      const float* x = net.layer_input(l);
      for (int64_t r = 0; r < layer.n_live; ++r) {
        for (int64_t b = 0; b < n_batch; ++b) {
          float y = layer.bias[r];
          for (int64_t k = layer.row_begin[r]; k < layer.row_begin[r + 1]; ++k) {
            y += layer.weight[layer.row_entry[k]] * x[layer.row_column[k] + b];
          }
          if (l + 1 < net.layers.size() && y <= 0) y = 0;
          layer.output[layer.place[r] + b] = y;
        }
      }
    }
  }

  static double loss(Network& net, int64_t n_batch, Loss kind, bool write_delta) {
    Layer& last = net.layers.back();
    const int64_t stride = net.batch_stride, n_out = last.n_out;
    double sum = 0;
    for (int64_t b = 0; b < n_batch; ++b) {
      const float* f = last.output.data() + b;
      if (kind == Loss::kCrossEntropy) {
        float largest = f[0], total = 0;
        for (int64_t c = 1; c < n_out; ++c) largest = std::max(largest, f[c * stride]);
        for (int64_t c = 0; c < n_out; ++c) total += std::exp(f[c * stride] - largest);
        sum += std::log(total) + largest - f[net.label[b] * stride];
        for (int64_t c = 0; c < n_out && write_delta; ++c) {
          const float p = std::exp(f[c * stride] - largest) / total;
          last.delta[c * stride + b] = (p - (c == net.label[b])) / n_batch;
        }
      } else {
        for (int64_t o = 0; o < n_out; ++o) {
          const float d = f[o * stride] - net.target[o * stride + b];
          sum += double(d) * d / n_out;
          if (write_delta) last.delta[o * stride + b] = 2 * d / (n_batch * n_out);
        }
      }
    }
    return sum;
  }

  static void backward(Network& net, int64_t n_batch, const UpdateRule& rule) {
    const int64_t stride = net.batch_stride;
    for (size_t l = net.layers.size(); l-- > 0;) {
      Layer& layer = net.layers[l];
      const float* x = net.layer_input(l);
      if (l > 0) {
        Layer& below = net.layers[l - 1];
        std::fill(below.delta.data(), below.delta.data() + below.n_out * stride, 0.0f);
        for (int64_t k = 0; k < layer.n_entries; ++k) {
          for (int64_t b = 0; b < n_batch; ++b) {
            const int64_t i = layer.column[k] + b;
            if (x[i] > 0) below.delta[i] += layer.weight[k] * layer.delta[layer.row[k] + b];
          }
        }
      }
      for (int64_t k = 0; k < layer.n_entries; ++k) {
        float g = 0;
        for (int64_t b = 0; b < n_batch; ++b) g += layer.delta[layer.row[k] + b] * x[layer.column[k] + b];
        if (layer.has_factor) g *= layer.factor[k];
        if (layer.is_edge_popup && layer.score[k] < 0) g = -g;
        update(rule, layer.trained().value + k, &layer.state[2 * k], g);
      }
      for (int64_t r = 0; r < layer.n_live; ++r) {
        float g = 0;
        for (int64_t b = 0; b < n_batch; ++b) g += layer.delta[layer.place[r] + b];
        g *= layer.bias_factor[r];
        if (layer.is_edge_popup && layer.bias_score[r] < 0) g = -g;
        update(rule, layer.bias_trained().value + r, &layer.bias_state[2 * r], g);
      }
    }
  }

  static void update(const UpdateRule& r, float* p, float* state, float g) {
    if (r.kind == Optimizer::kGradient) {
      *p = g;
      return;
    }
    g += r.weight_decay * *p;
    if (r.kind == Optimizer::kSgd) {
      state[0] = r.beta1 * state[0] + g;
      *p -= r.lr * state[0];
      return;
    }
    state[0] += r.one_minus_beta1 * (g - state[0]);
    state[1] = r.beta2 * state[1] + r.one_minus_beta2 * g * g;
    *p -= r.step_size * state[0] / (std::sqrt(state[1] + kLeastMoment) * r.inverse_sqrt_correction + r.eps);
  }

  static void select(ScorePart& part, int64_t keep) {
    part.candidates.clear();
    for (int64_t k = 0; k < part.n_rows * part.n_columns; ++k) {
      part.candidates.push_back({ScorePart::key(part.score[k]), static_cast<int32_t>(k)});
      part.in_force[k] = 0;
    }
    part.finish(keep, kInfinityKey);
  }

  static void epoch_order(const Shuffle& shuffle, uint32_t* order) {
    for (uint32_t j = 0; j < shuffle.n; ++j) order[j] = shuffled(shuffle, j);
  }
};

StepFunctions step_functions() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return mlp_step_avx512();
    case SimdLevel::kAvx2: return mlp_step_avx2();
    default: break;
  }
#endif
  return {0, PlainStep::gather, PlainStep::forward, PlainStep::loss, PlainStep::backward, PlainStep::select, PlainStep::epoch_order};
}

// One data set of the call: row-major samples.
struct Samples {
  int64_t n;
  const float* x;
  const int32_t* label;
  const float* y;
};

// Squared sums for the best factor of each output: argmin_a sum (a f - y)^2 = sum fy / sum ff.
struct MetricSums {
  explicit MetricSums(int64_t n_out) : yy(n_out), fy(n_out), ff(n_out) {}
  int64_t n_correct = 0;
  std::vector<double> yy, fy, ff;
};

class NetworkTrainer {
 public:
  NetworkTrainer(const MlpTrainerParams& p, const StepFunctions& step, int n_threads)
      : p_(p), step_(step), net_(n_threads) {}

  // False: stopped. Adds to n_done every epoch that is finished or skipped.
  template <typename Stop>
  bool train(int64_t i, Stop&& stop, std::atomic<int64_t>* n_done) {
    net_.load(p_, i, step_.lanes);
    n_parameters_ = net_.layers.back().bias_at + net_.layers.back().n_out;
    start_outputs(i);
    order_.resize(p_.n_train);
    beta1_power_ = beta2_power_ = 1;
    const Samples train = samples(p_.n_train, p_.x_train, p_.label_train, p_.y_train, i);
    const Samples test = samples(p_.n_test, p_.x_test, p_.label_test, p_.y_test, i);
    if (p_.scores != nullptr) select_scores(0);
    evaluate(test, p_.test_loss + i * (p_.epochs + 1), p_.metric + i * (p_.epochs + 1), stop);
    for (int64_t epoch = 0; epoch < p_.epochs; ++epoch) {
      if (!train_epoch(i, epoch, train, stop)) return false;
      if (!std::isfinite(p_.train_loss[i * p_.epochs + epoch])) {
        end_early(i, epoch);
        *n_done += p_.epochs - epoch;
        break;
      }
      const int64_t column = i * (p_.epochs + 1) + epoch + 1;
      evaluate(test, p_.test_loss + column, p_.metric + column, stop);
      ++*n_done;
    }
    store(i);
    return true;
  }

 private:
  // What is pruned leaves as it came; as a gradient it is 0.
  void start_outputs(int64_t i) const {
    const int64_t at = i * n_parameters_;
    float* out = p_.parameters_out + at;
    if (p_.optimizer == Optimizer::kGradient) {
      std::fill_n(out, n_parameters_, 0.0f);
    } else {
      std::copy_n(p_.parameters + at, n_parameters_, out);
    }
    if (p_.scores == nullptr) std::copy_n(p_.mask + at, n_parameters_, p_.mask_out + at);
  }

  Samples samples(int64_t n, const float* x, const int32_t* label, const float* y, int64_t i) const {
    const int64_t at = p_.dataset[i] * n;
    return {n, x + at * p_.widths[0], label == nullptr ? nullptr : label + at,
            y == nullptr ? nullptr : y + at * p_.widths[p_.n_layers]};
  }

  // What network i would have reported after the train loss of `epoch` is NaN; edge-popup keeps the density asked for.
  void end_early(int64_t i, int64_t epoch) {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    const int64_t n_left = p_.epochs - epoch, tests = i * (p_.epochs + 1) + epoch + 1;
    std::fill_n(p_.train_loss + i * p_.epochs + epoch + 1, n_left - 1, kNan);
    std::fill_n(p_.test_loss + tests, n_left, kNan);
    std::fill_n(p_.metric + tests, n_left, kNan);
    if (p_.scores != nullptr && p_.anneal) select_scores(p_.epochs - 1);
  }

  template <typename Stop>
  bool train_epoch(int64_t i, int64_t epoch, const Samples& train, Stop&& stop) {
    const Shuffle shuffle = make_shuffle(static_cast<uint32_t>(train.n), static_cast<uint64_t>(p_.keys[2 * i]),
                                          static_cast<uint32_t>(p_.keys[2 * i + 1]), static_cast<uint32_t>(epoch));
    // An annealed density changes with the epoch; the first epoch's is in force since before the evaluation.
    if (p_.scores != nullptr && epoch > 0 && p_.anneal) select_scores(epoch);
    step_.epoch_order(shuffle, order_.data());
    double sum = 0;
    for (int64_t at = 0; at < train.n; at += p_.batch_size) {
      if (stop()) return false;
      const int64_t n_batch = std::min(p_.batch_size, train.n - at);
      gather(train, order_.data() + at, n_batch);
      step_.forward(net_, n_batch);
      sum += step_.loss(net_, n_batch, p_.loss, true);
      beta1_power_ *= p_.beta1, beta2_power_ *= p_.beta2;
      step_.backward(net_, n_batch, rule(epoch));
      if (p_.scores != nullptr) select_scores(epoch);
    }
    p_.train_loss[i * p_.epochs + epoch] = sum / static_cast<double>(train.n);
    return true;
  }

  double learning_rate(int64_t epoch) const {
    switch (p_.schedule) {
      case Schedule::kCosine: return p_.lr * 0.5 * (1 + std::cos(3.14159265358979323846 * epoch / p_.epochs));
      case Schedule::kStep: return p_.lr * std::pow(p_.gamma, static_cast<double>(epoch / p_.step_epochs));
      default: return p_.lr;
    }
  }

  UpdateRule rule(int64_t epoch) const {
    const double lr = learning_rate(epoch);
    const double correction1 = 1 - beta1_power_, correction2 = 1 - beta2_power_;
    return {p_.optimizer,
            static_cast<float>(lr),
            static_cast<float>(p_.beta1),
            static_cast<float>(1 - p_.beta1),
            static_cast<float>(p_.beta2),
            static_cast<float>(1 - p_.beta2),
            static_cast<float>(p_.eps),
            static_cast<float>(p_.weight_decay),
            static_cast<float>(lr / correction1),
            static_cast<float>(1 / std::sqrt(correction2))};
  }

  void gather(const Samples& data, const uint32_t* index, int64_t n_batch) {
    const int64_t stride = net_.batch_stride, n_out = net_.layers.back().n_out;
    step_.gather(net_, data.x, index, n_batch);
    for (int64_t b = 0; data.label != nullptr && b < n_batch; ++b) net_.label[b] = data.label[index[b]];
    for (int64_t o = 0; data.y != nullptr && o < n_out; ++o) {
      for (int64_t b = 0; b < n_batch; ++b) net_.target[o * stride + b] = data.y[index[b] * n_out + o];
    }
  }

  template <typename Stop>
  void evaluate(const Samples& test, double* loss, double* metric, Stop&& stop) {
    if (p_.optimizer == Optimizer::kGradient) return;
    const int64_t n_out = net_.layers.back().n_out;
    MetricSums sums(n_out);
    std::vector<uint32_t> index(net_.batch_stride);
    double total = 0;
    for (int64_t at = 0; at < test.n && !stop(); at += net_.batch_stride) {
      const int64_t n_batch = std::min(net_.batch_stride, test.n - at);
      std::iota(index.begin(), index.end(), static_cast<uint32_t>(at));
      gather(test, index.data(), n_batch);
      step_.forward(net_, n_batch);
      total += step_.loss(net_, n_batch, p_.loss, false);
      add_metric(n_batch, &sums);
    }
    *loss = total / static_cast<double>(test.n);
    if (p_.loss == Loss::kCrossEntropy) {
      *metric = static_cast<double>(sums.n_correct) / static_cast<double>(test.n);
      return;
    }
    double squares = 0;
    for (int64_t o = 0; o < n_out; ++o) {
      squares += sums.yy[o] - (sums.ff[o] > 0 ? sums.fy[o] * sums.fy[o] / sums.ff[o] : 0 * sums.ff[o]);
    }
    *metric = squares / static_cast<double>(test.n * n_out);
  }

  void add_metric(int64_t n_batch, MetricSums* sums) const {
    const Layer& last = net_.layers.back();
    const int64_t stride = net_.batch_stride;
    if (p_.loss == Loss::kCrossEntropy) {
      for (int64_t b = 0; b < n_batch; ++b) {
        int64_t best = 0;
        for (int64_t o = 1; o < last.n_out; ++o) {
          if (last.output[o * stride + b] > last.output[best * stride + b]) best = o;
        }
        sums->n_correct += best == net_.label[b];
      }
      return;
    }
    for (int64_t o = 0; o < last.n_out; ++o) {
      for (int64_t b = 0; b < n_batch; ++b) {
        const double f = last.output[o * stride + b], y = net_.target[o * stride + b];
        sums->yy[o] += y * y;
        sums->fy[o] += f * y;
        sums->ff[o] += f * f;
      }
    }
  }

  // Puts the top of |score| in force: weights and biases of each layer apart.
  void select_scores(int64_t epoch) {
    const double density = p_.anneal && p_.epochs > 0 ? std::pow(p_.density, static_cast<double>(epoch + 1) / p_.epochs) : p_.density;
    std::atomic<size_t> next{0};
    net_.in_shares([&](Share) {
      for (size_t k = next++; k < net_.score_parts.size(); k = next++) {
        ScorePart& part = net_.score_parts[k];
        const double n = static_cast<double>(part.n_rows * part.n_columns);
        step_.select(part, std::max<int64_t>(0, static_cast<int64_t>(std::ceil(density * n - 1e-9))));
      }
    });
  }

  void store(int64_t i) const {
    net_.store((p_.scores == nullptr ? p_.parameters_out : p_.scores_out) + i * n_parameters_);
    uint8_t* mask = p_.mask_out + i * n_parameters_;
    for (const ScorePart& part : net_.score_parts) {  // in the order of the flat layout
      part.write_mask(mask);
      mask += part.n_rows * part.n_columns;
    }
  }

  const MlpTrainerParams& p_;
  const StepFunctions& step_;
  Network net_;
  AlignedBuffer<uint32_t> order_;
  int64_t n_parameters_ = 0;
  double beta1_power_ = 1, beta2_power_ = 1;  // to the number of updates
};

// The networks in the order in which threads take them: those that keep most first, so that no thread is left with a large
// one while the others have nothing more to do.
std::vector<int64_t> largest_first(const MlpTrainerParams& p, int64_t n_parameters) {
  std::vector<int64_t> order(p.n_networks), n_kept(p.n_networks);
  std::iota(order.begin(), order.end(), 0);
  const bool all_at_once = p.n_networks <= p.n_threads, all_alike = p.scores != nullptr;  // edge-popup's cost the same
  if (p.n_threads == 1 || all_at_once || all_alike) return order;
  for (int64_t i = 0; i < p.n_networks; ++i) {
    const uint8_t* mask = p.mask + i * n_parameters;
    n_kept[i] = n_parameters - std::count(mask, mask + n_parameters, uint8_t{0});
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return n_kept[a] > n_kept[b]; });
  return order;
}

}  // namespace

double mlp_dense_from() { return step_functions().lanes == kMaxLanes ? kDenseFromAvx512 : kDenseFromAvx2; }

bool mlp_trainer(const MlpTrainerParams& p) {
  const StepFunctions step = step_functions();
  const int n_threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(p.n_threads, p.n_networks)));
  // Threads that are left over join in where a network may be large enough: its steps are then shared.
  int64_t n_weights = 0, n_parameters = 0;
  for (int64_t l = 0; l < p.n_layers; ++l) {
    n_weights += p.widths[l + 1] * padded(p.widths[l]);
    n_parameters += p.widths[l + 1] * (p.widths[l] + 1);
  }
  const bool may_share = step.lanes > 0 && n_weights * padded(std::min(p.batch_size, p.n_train)) >= kSharedFrom;
  const int team_size = may_share ? std::max(1, p.n_threads / n_threads) : 1;
  std::vector<std::unique_ptr<NetworkTrainer>> trainers;
  for (int t = 0; t < n_threads; ++t) trainers.push_back(std::make_unique<NetworkTrainer>(p, step, team_size));
  // The clock, which takes a tenth of a small step, is read about every millisecond.
  constexpr int64_t kWorkBetween = 20'000'000;  // multiply-adds
  const int64_t each = std::clamp<int64_t>(kWorkBetween / std::max<int64_t>(1, n_weights * p.batch_size), 1, 256);
  Interruption interruption(p.should_stop);
  const std::vector<int64_t> order = largest_first(p, n_parameters);
  std::atomic<int64_t> next{0};
  return run_interruptible(n_threads, interruption, [&](int worker) {
    const FlushDenormals flush;
    int64_t n_steps = 0;
    auto stop = [&] { return worker == 0 && ++n_steps % each == 0 ? interruption.ask() : interruption.is_seen(); };
    for (int64_t i = next++; i < p.n_networks && !stop(); i = next++) {
      trainers[worker]->train(order[i], stop, &interruption.n_done);
    }
  });
}

void batch_order(int64_t n, int64_t seed, int64_t network, int64_t epoch, int64_t* order) {
  const Shuffle shuffle = make_shuffle(static_cast<uint32_t>(n), static_cast<uint64_t>(seed),
                                        static_cast<uint32_t>(network), static_cast<uint32_t>(epoch));
  std::vector<uint32_t> indices(n);
  step_functions().epoch_order(shuffle, indices.data());
  std::copy(indices.begin(), indices.end(), order);
}

}  // namespace pns
