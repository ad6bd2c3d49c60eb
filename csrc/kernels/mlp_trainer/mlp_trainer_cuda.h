// mlp_trainer on CUDA (contract: mlp_trainer.h). A block, or a cluster of blocks, owns a network for a whole range of
// epochs; the host sees a launch per range and group of networks.
//
// The work of a call: measure (which neurons and weights can matter), plan on the host, build (each network's image:
// compressed or dense layers, parameters, moments), train as often as there are ranges of epochs, store. Everything is
// enqueued on `stream`; only the plan needs numbers on the host. Memory comes from the caller.
#pragma once

#include <cstdint>

struct CUstream_st;  // *cudaStream_t, without the CUDA headers

namespace pns {

// Where a network's image and activations are while it trains.
enum class Residence : int32_t {
  kShared = 0,   // all in shared memory
  kStreamed = 1, // moments (edge-popup: scores and frozen parameters too) stream from L2, the rest in shared memory
  kGlobal = 2,   // all in L2 and global memory; a cluster of blocks shares the rows
};

// Threads of a block at most, and of a multiprocessor in several blocks: of 128 registers; addresses of 64 bits take more.
constexpr int most_threads(Residence residence) { return residence == Residence::kGlobal ? 256 : 512; }

// From this kept fraction of a layer's live rows x columns, rounded up to tiles of 16 x 32, it is dense. Measured on an H200
// at 100 x 100 (where 0.28 is density 0.4), batch 32, a step: compressed 40 us at density 0.3 and 56 at 0.5, dense 49.
constexpr double kCudaDenseFrom = 0.28;
constexpr int kMaxCudaWidth = 65535;  // rows and columns of a kept weight are 16 bits each

// Addresses are on the device unless said otherwise. Letters as in mlp_trainer.h.
struct CudaTrainer {
  int64_t n_networks, n_layers, n_parameters;  // n_parameters: P
  const int32_t* widths;      // [n_layers + 1]
  const float* parameters;    // [N, P]
  const uint8_t* mask;        // [N, P]
  const float* scores;        // [N, P] or null
  const int64_t* dataset;     // [N]
  const int64_t* keys;        // [N, 2]
  int64_t n_train, n_test;
  const float* x_train;       // [D, n_train, n_0]
  const float* x_test;
  const int64_t* label_train; // [D, n_train] or null
  const int64_t* label_test;
  const float* y_train;       // [D, n_train, n_L] or null
  const float* y_test;
  int64_t loss, optimizer;    // Loss, Optimizer
  int64_t epochs, batch_size; // batch_size at most n_train
  float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay;
  double dense_from;
  const float* rates;         // [epochs * steps, 3]: lr, lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
  const int32_t* keep;        // [max(epochs, 1), 2 * n_layers]: edge-popup, kept weights and biases of each layer
  float* parameters_out;      // [N, P]
  float* scores_out;          // [N, P] or null
  uint8_t* mask_out;          // [N, P]
  double* train_loss;         // [N, epochs]; these three come filled with NaN
  double* test_loss;          // [N, epochs + 1]
  double* metric;             // [N, epochs + 1]
  uint8_t* flags;             // [N, 2, sum of widths]: reaches the output; can be non-zero
  int32_t* ranks;             // [N, sum of widths]: scratch of launch_mlp_build
  int32_t* counts;            // [N, n_layers, 2]: live neurons, kept weights between live neurons
  int32_t* stopped;           // [N], zero before the first range: 1 once a train loss was not finite
  unsigned char* images;      // zeroed
  const int64_t* image_at;    // [N]: in bytes, multiples of 16
  int device;
  CUstream_st* stream;
};

// What the plan says of one network.
struct CudaNetworkPlan {
  int64_t image_bytes;   // of global memory
  int64_t shared_bytes;  // of a block
  Residence residence;
  int64_t n_threads;     // of a block, where there are more networks than multiprocessors
  double cost;           // of a step, about in cycles of a multiprocessor
};

// counts: [n_layers, 2] of the network, widths: [n_layers + 1], both on the host. max_shared_bytes: of a block, dynamic
// and static, as the device says.
CudaNetworkPlan plan_cuda_network(const CudaTrainer& t, const int32_t* widths, const int32_t* counts,
                                  int64_t max_shared_bytes);

void launch_mlp_measure(const CudaTrainer& t);
void launch_mlp_build(const CudaTrainer& t);

// Trains `networks` (int32 [n_group], of one residence) from epoch `first` up to `last`. first = 0 tests the untrained
// network before. kGlobal: n_blocks (1, 2, 4, 8) form a cluster a network; otherwise 1.
struct CudaTrainRange {
  const int32_t* networks;
  int64_t n_group;
  Residence residence;
  int64_t shared_bytes, n_threads, n_blocks;
  int64_t first, last;
};
void launch_mlp_train(const CudaTrainer& t, const CudaTrainRange& range);

void launch_mlp_store(const CudaTrainer& t);

}  // namespace pns
