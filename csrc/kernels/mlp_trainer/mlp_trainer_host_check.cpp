// The CUDA source of mlp_trainer, run on the CPU by the emulator and compared with the plain CPU trainer (compiled into
// this program): the same batches, so that parameters, masks and losses agree but for rounding.
//   c++ -std=c++17 -O1 -pthread -I csrc csrc/kernels/mlp_trainer/mlp_trainer_host_check.cpp && ./a.out
// Clusters are not emulated: a network of the global residence runs in one block here.
#define PNS_EMULATE_CUDA 1
#include "core/simd_level.cpp"
#include "core/thread_team.cpp"
#include "kernels/mlp_trainer/mlp_trainer.cpp"
#include "kernels/mlp_trainer/mlp_trainer.cu"
#include "kernels/mlp_trainer/network.cpp"

#include <cstdio>
#include <random>

#include "core/host_check.h"

namespace pns {
namespace {

struct Setting {
  const char* name;
  std::vector<int64_t> widths;
  Loss loss;
  Optimizer optimizer;
  int64_t n_train, n_test, epochs, batch_size;
  double density, weight_decay, dense_from, popup_density;  // popup_density < 0: fixed masks
  bool anneal;
  int64_t max_shared;  // residence: of what fits
  int64_t n_threads, range;
};

struct Outputs {
  std::vector<float> parameters, scores;
  std::vector<uint8_t> mask;
  std::vector<double> train_loss, test_loss, metric;
};

struct Problem {
  Setting s;
  int64_t n_networks = 2, n_parameters = 0, n_out = 0;
  std::vector<float> parameters, scores, x_train, x_test, y_train, y_test;
  std::vector<uint8_t> mask;
  std::vector<int64_t> dataset{1, 0}, keys{5, 0, 7, 3}, label_train, label_test;
  std::vector<int32_t> label_train32, label_test32;
};

Problem make_problem(const Setting& s) {
  Problem p{s};
  std::mt19937 random(static_cast<uint32_t>(s.n_train * 31 + s.batch_size));
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<double> uniform;
  auto fill = [&](std::vector<float>& v, int64_t n, float scale) {
    for (int64_t i = 0; i < n; ++i) v.push_back(scale * normal(random));
  };
  for (size_t l = 0; l + 1 < s.widths.size(); ++l) p.n_parameters += (s.widths[l] + 1) * s.widths[l + 1];
  p.n_out = s.widths.back();
  fill(p.parameters, 2 * p.n_parameters, 0.5f);
  for (int64_t i = 0; i < 2 * p.n_parameters; ++i) p.mask.push_back(uniform(random) < s.density);
  if (s.popup_density >= 0) fill(p.scores, 2 * p.n_parameters, 0.3f);
  fill(p.x_train, 2 * s.n_train * s.widths[0], 1), fill(p.x_test, 2 * s.n_test * s.widths[0], 1);
  if (s.loss == Loss::kCrossEntropy) {
    for (int64_t i = 0; i < 2 * s.n_train; ++i) p.label_train.push_back(random() % p.n_out);
    for (int64_t i = 0; i < 2 * s.n_test; ++i) p.label_test.push_back(random() % p.n_out);
    p.label_train32.assign(p.label_train.begin(), p.label_train.end());
    p.label_test32.assign(p.label_test.begin(), p.label_test.end());
  } else {
    fill(p.y_train, 2 * s.n_train * p.n_out, 1), fill(p.y_test, 2 * s.n_test * p.n_out, 1);
  }
  return p;
}

Outputs empty_outputs(const Problem& p) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Outputs o;
  o.parameters.assign(2 * p.n_parameters, -7.0f), o.mask.assign(2 * p.n_parameters, 9);
  o.scores.assign(p.scores.size(), -7.0f);
  o.train_loss.assign(2 * p.s.epochs, nan);
  o.test_loss.assign(2 * (p.s.epochs + 1), nan), o.metric.assign(2 * (p.s.epochs + 1), nan);
  return o;
}

template <typename T>
const T* data_or_null(const std::vector<T>& v) {
  return v.empty() ? nullptr : v.data();
}

constexpr double kLr = 0.01, kBeta1 = 0.9, kBeta2 = 0.999, kEps = 1e-8;

Outputs train_on_cpu(const Problem& p) {
  const Setting& s = p.s;
  Outputs o = empty_outputs(p);
  const bool is_popup = s.popup_density >= 0;
  MlpTrainerParams m{2, static_cast<int64_t>(s.widths.size()) - 1, s.widths.data(), p.parameters.data(), p.mask.data(),
                     data_or_null(p.scores), p.dataset.data(), p.keys.data(), s.n_train, s.n_test, p.x_train.data(),
                     p.x_test.data(), data_or_null(p.label_train32), data_or_null(p.label_test32),
                     data_or_null(p.y_train), data_or_null(p.y_test), s.loss, s.epochs, s.batch_size, s.optimizer,
                     Schedule::kConstant, kLr, kBeta1, kBeta2, kEps, s.weight_decay, 1, 1.0,
                     is_popup ? s.popup_density : 1.0, s.anneal, 2.0, o.parameters.data(), o.scores.data(),
                     o.mask.data(), o.train_loss.data(), o.test_loss.data(), o.metric.data(), 1, {}};
  REQUIRE(mlp_trainer(m), "%s stopped", s.name);
  return o;
}

std::vector<float> rates_of(const Setting& s) {
  std::vector<float> rates;
  const int64_t n_steps = s.epochs * ((s.n_train + s.batch_size - 1) / s.batch_size);
  for (int64_t step = 1; step <= n_steps; ++step) {
    rates.push_back(kLr);
    rates.push_back(static_cast<float>(kLr / (1 - std::pow(kBeta1, step))));
    rates.push_back(static_cast<float>(1 / std::sqrt(1 - std::pow(kBeta2, step))));
  }
  return rates;
}

std::vector<int32_t> keep_of(const Setting& s) {
  std::vector<int32_t> keep;
  for (int64_t epoch = 0; epoch < std::max<int64_t>(s.epochs, 1); ++epoch) {
    const double density =
        s.anneal && s.epochs > 0 ? std::pow(s.popup_density, (epoch + 1.0) / s.epochs) : s.popup_density;
    for (size_t l = 0; l + 1 < s.widths.size(); ++l) {
      for (int64_t n : {s.widths[l] * s.widths[l + 1], s.widths[l + 1]}) {
        keep.push_back(std::max(0, static_cast<int>(std::ceil(density * n - 1e-9))));
      }
    }
  }
  return keep;
}

Outputs train_under_emulator(const Problem& p, simt::Order order) {
  const Setting& s = p.s;
  simt::machine().order = order;
  Outputs o = empty_outputs(p);
  const int64_t n_layers = static_cast<int64_t>(s.widths.size()) - 1;
  const std::vector<int32_t> widths(s.widths.begin(), s.widths.end()), keep = keep_of(s);
  const std::vector<float> rates = rates_of(s);
  int64_t n_neurons = 0;
  for (int32_t w : widths) n_neurons += w;
  std::vector<uint8_t> flags(4 * n_neurons, kPoison);
  std::vector<int32_t> ranks(2 * n_neurons, -99), counts(4 * n_layers, -99), stopped(2, 0);
  CudaTrainer t{2, n_layers, p.n_parameters, widths.data(), p.parameters.data(), p.mask.data(),
                data_or_null(p.scores), p.dataset.data(), p.keys.data(), s.n_train, s.n_test, p.x_train.data(),
                p.x_test.data(), data_or_null(p.label_train), data_or_null(p.label_test), data_or_null(p.y_train),
                data_or_null(p.y_test), static_cast<int64_t>(s.loss), static_cast<int64_t>(s.optimizer), s.epochs,
                s.batch_size, kBeta1, 1 - kBeta1, kBeta2, 1 - kBeta2, kEps, static_cast<float>(s.weight_decay), s.dense_from, rates.data(), keep.data(),
                o.parameters.data(), o.scores.data(), o.mask.data(), o.train_loss.data(), o.test_loss.data(),
                o.metric.data(), flags.data(), ranks.data(), counts.data(), stopped.data(), nullptr, nullptr, 0,
                nullptr};
  launch_mlp_measure(t);
  int64_t image_at[2], n_bytes = 0;
  CudaNetworkPlan plans[2];
  for (int i = 0; i < 2; ++i) {
    plans[i] = plan_cuda_network(t, widths.data(), counts.data() + 2 * n_layers * i, s.max_shared);
    image_at[i] = n_bytes;
    n_bytes += plans[i].image_bytes;
  }
  std::vector<float4> images(n_bytes / 16 + 4);  // what follows shows writes beyond the end
  std::memset(images.data(), 0, n_bytes);
  std::memset(images.data() + n_bytes / 16, kPoison, 64);
  t.images = reinterpret_cast<unsigned char*>(images.data()), t.image_at = image_at;
  launch_mlp_build(t);
  for (int64_t first = 0; first < std::max<int64_t>(s.epochs, 1); first += s.range) {
    for (int32_t i = 0; i < 2; ++i) {
      launch_mlp_train(t, {&i, 1, plans[i].residence, plans[i].shared_bytes, s.n_threads, 1, first,
                           std::min(s.epochs, first + s.range)});
    }
  }
  launch_mlp_store(t);
  for (int k = 0; k < 64; ++k) {
    REQUIRE(reinterpret_cast<uint8_t*>(images.data())[n_bytes + k] == kPoison, "%s wrote beyond the images", s.name);
  }
  return o;
}

template <typename T>
void require_close(const char* name, const char* what, const std::vector<T>& a, const std::vector<T>& b, double limit) {
  REQUIRE(a.size() == b.size(), "%s, %s", name, what);
  for (size_t i = 0; i < a.size(); ++i) {
    const bool both_nan = std::isnan(double(a[i])) && std::isnan(double(b[i]));
    REQUIRE(both_nan || a[i] == b[i] || std::fabs(double(a[i]) - double(b[i])) <= limit * (1 + std::fabs(double(b[i]))),
            "%s, %s[%zu]: %.9g, on the CPU %.9g", name, what, i, double(a[i]), double(b[i]));
  }
}

void check(const Setting& s) {
  const Problem p = make_problem(s);
  const Outputs expected = train_on_cpu(p);
  Outputs first;
  for (simt::Order order : {simt::Order::kForward, simt::Order::kReverse, simt::Order::kScattered}) {
    const Outputs o = train_under_emulator(p, order);
    require_close(s.name, "parameters", o.parameters, expected.parameters, 2e-4);
    if (s.popup_density >= 0) require_close(s.name, "scores", o.scores, expected.scores, 1e-4);
    require_close(s.name, "mask", o.mask, expected.mask, 0);
    require_close(s.name, "train_loss", o.train_loss, expected.train_loss, 1e-4);
    if (s.optimizer != Optimizer::kGradient) {
      require_close(s.name, "test_loss", o.test_loss, expected.test_loss, 1e-4);
      require_close(s.name, "metric", o.metric, expected.metric, 1e-4);
    }
    if (order == simt::Order::kForward) first = o;
    require_close(s.name, "parameters in another order of threads", o.parameters, first.parameters, 0);
    require_close(s.name, "train_loss in another order of threads", o.train_loss, first.train_loss, 0);
    ++n_cases;
  }
}

}  // namespace
}  // namespace pns

int main() {
  using pns::Loss;
  using pns::Optimizer;
  const auto ce = Loss::kCrossEntropy, mse = Loss::kMeanSquaredError;
  const auto gradient = Optimizer::kGradient, sgd = Optimizer::kSgd, adam = Optimizer::kAdam;
  const int64_t all = 1 << 20;
  // name, widths, loss, optimizer, n_train, n_test, epochs, batch, density, decay, dense_from, popup, anneal, shared
  const std::vector<pns::Setting> settings = {
      {"dense", {3, 18, 37, 4}, ce, adam, 70, 33, 2, 32, 1.0, 0, 0, -1, false, all, 64, 2},
      {"dense, masked, mse", {2, 21, 5, 3}, mse, adam, 50, 20, 2, 16, 0.7, 0, 0, -1, false, all, 128, 1},
      {"compressed", {3, 18, 37, 4}, ce, adam, 70, 33, 2, 32, 0.3, 0, 2, -1, false, all, 64, 1},
      {"compressed, large batch", {2, 40, 40, 3}, mse, sgd, 90, 70, 2, 70, 0.2, 0, 2, -1, false, all, 128, 2},
      {"weight decay", {3, 18, 20, 4}, ce, sgd, 40, 10, 2, 32, 0.1, 0.1, 0.25, -1, false, all, 64, 2},
      {"collapsed", {3, 18, 20, 4}, ce, adam, 40, 10, 2, 32, 0.01, 0, 0.25, -1, false, all, 64, 2},
      {"gradient", {3, 18, 20, 4}, ce, gradient, 40, 40, 1, 40, 0.4, 0, 0.25, -1, false, all, 64, 1},
      {"one layer", {5, 3}, mse, adam, 33, 10, 3, 8, 0.8, 0, 0.25, -1, false, all, 64, 1},
      {"no epochs", {3, 6, 2}, ce, adam, 20, 40, 0, 32, 0.5, 0, 0.25, -1, false, all, 64, 1},
      {"streamed", {3, 18, 37, 4}, ce, adam, 70, 33, 2, 32, 0.9, 0, 0.25, -1, false, 34 << 10, 64, 1},
      {"global", {3, 18, 37, 4}, ce, adam, 70, 33, 2, 32, 0.5, 0, 0.6, -1, false, 1 << 10, 64, 1},
      {"edge-popup", {3, 18, 21, 4}, ce, sgd, 70, 33, 3, 32, 1.0, 5e-4, 0.25, 0.4, true, all, 64, 2},
      {"edge-popup, block", {3, 30, 25, 4}, ce, sgd, 200, 33, 3, 32, 1.0, 5e-4, 0.25, 0.4, false, all, 64, 2},
      {"edge-popup, global", {3, 30, 21, 4}, mse, adam, 40, 33, 2, 32, 1.0, 0, 0.25, 0.1, false, 1 << 10, 64, 1},
  };
  for (const pns::Setting& s : settings) pns::check(s);
  std::printf("%d cases agree\n", pns::n_cases);
}
