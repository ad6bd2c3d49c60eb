// mlp_trainer: trains N independent masked MLPs of one architecture, each for all its epochs in one visit.
//
//   h_0 = x,  h_l = relu(W_l h_{l-1} + b_l),  f = W_L h_{L-1} + b_L   with pruned parameters 0
//   loss: mean cross-entropy of softmax(f), or mean squared error over batch and outputs
//   update of kept parameters: torch's SGD (momentum) or Adam; pruned parameters are never written
//   edge-popup (scores given): parameters stay; per layer, weights and biases apart, the top `density` of |score| are
//   in force; every score gets dL/ds = dL/dw_in_force * w * sign(s) (straight through |s|, sign(0) = 1)
//
// Shapes: N networks, D data sets, n samples, P parameters in flat layout [W_1 | b_1 | W_2 | b_2 ...], W row-major
// [O, I]. Network i reads data set dataset[i]; its batch order in an epoch is make_shuffle(n, keys[i], epoch), core/philox.h.
//
// A network stops after an epoch whose mean train loss is not finite, and the others go on: it keeps the parameters of
// that moment, and what it would have reported afterwards, the test of that epoch included, is NaN.
//
// A thread owns a network from its first to its last step; threads beyond the number of networks share the steps of
// one, by rows or parts of the batch, where a step is long enough. Every sum is made in one order: nothing depends on the
// number of threads or on what else is in the call. Per layer the time follows the kept weights (compressed) or, above
// dense_from, a register-blocked dense path. State of a 100-wide network: about 400 KB dense, 30 KB at density 0.01: it
// stays in L2.
#pragma once

#include <cstdint>
#include <functional>

namespace pns {

enum class Loss { kCrossEntropy, kMeanSquaredError };
enum class Optimizer { kGradient, kSgd, kAdam };  // kGradient: one batch; parameters_out receives the gradient
// Per epoch: lr, lr (1 + cos(pi epoch / epochs)) / 2, or lr gamma^(epoch / step_epochs) with an integer quotient.
enum class Schedule { kConstant, kCosine, kStep };

// From this kept fraction on a layer takes the dense path: of what it stores, and of four more rows (Network::load).
// Measured at 100 x 100, batch 32, a step of a Circle network on a Zen 5: compressed and dense meet at density 0.645 with
// AVX-512 (0.6: 19.4 and 21.5 us, 0.7: 23.4 and 21.4), at 0.85 with AVX2 (0.7: 32 and 40 us).
constexpr double kDenseFromAvx512 = 0.62, kDenseFromAvx2 = 0.79;
double mlp_dense_from();  // of the SIMD level in force

struct MlpTrainerParams {
  int64_t n_networks, n_layers;
  const int64_t* widths;      // [n_layers + 1]
  const float* parameters;    // [N, P]
  const uint8_t* mask;        // [N, P]
  const float* scores;        // [N, P] or null
  const int64_t* dataset;     // [N]
  const int64_t* keys;        // [N, 2]: seed, network
  int64_t n_train, n_test;
  const float* x_train;       // [D, n_train, n_0]
  const float* x_test;        // [D, n_test, n_0]
  const int32_t* label_train; // [D, n_train], cross-entropy
  const int32_t* label_test;
  const float* y_train;       // [D, n_train, n_L], mean squared error
  const float* y_test;
  Loss loss;
  int64_t epochs, batch_size;
  Optimizer optimizer;
  Schedule schedule;
  double lr, beta1, beta2, eps, weight_decay;  // SGD: beta1 is the momentum
  int64_t step_epochs;        // Schedule::kStep, >= 1
  double gamma;               // Schedule::kStep
  double density;             // edge-popup
  bool anneal;                // edge-popup: density^((epoch + 1) / epochs)
  double dense_from;          // kept fraction from which a layer is dense; tests force 0 and 2
  float* parameters_out;      // [N, P]
  float* scores_out;          // [N, P], edge-popup
  uint8_t* mask_out;          // [N, P]
  double* train_loss;         // [N, epochs]
  double* test_loss;          // [N, epochs + 1]; column 0 is before training
  double* metric;             // [N, epochs + 1]: accuracy, or mean squared error after the best factor per output
  int n_threads;
  // Called every 50 ms, or after a step that takes longer, on the calling thread with the epochs finished over all
  // networks (those that a stopped network skips included); true stops the call (the output is then incomplete).
  std::function<bool(int64_t)> should_stop;
};

// False: should_stop said so.
bool mlp_trainer(const MlpTrainerParams& p);

// The order in which network `network` of `seed` visits n samples in an epoch: int64 [n].
void batch_order(int64_t n, int64_t seed, int64_t network, int64_t epoch, int64_t* order);

}  // namespace pns
