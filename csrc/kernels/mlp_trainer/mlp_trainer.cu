// mlp_trainer on CUDA: a block, or a cluster, owns a network for a range of epochs: drawing batches, gathering, forward,
// backward, optimiser and evaluation without a launch in between.
//
// A step is 2 L + 3 phases with a barrier after each: forward a layer a phase, loss (by the first warp, while the others
// gather the next batch), then gradients and update of layer l together with the delta of layer l - 1, which needs the
// old weights of layer l - 1 only. What a step reads and writes lies in shared memory (kShared), but for the moments
// where these do not fit (kStreamed); device memory is read for the samples only. Dense (2, 100, 100, 100, 4) at batch 32:
// 84 KB of weights, 87 KB of activations, 165 KB of moments that stream from L2; at density 0.1: 27 + 87 + 19 KB, all
// shared. 8 KB of shared memory are edge-popup's counters. Registers: up to 128 a thread (kGlobal: 228). A network too
// large for that stays in L2, with one to eight blocks, whose barrier is the cluster's.
#include "kernels/mlp_trainer/mlp_trainer_cuda.h"

#include <algorithm>

#include "core/cuda_check.cuh"
#include "kernels/mlp_trainer/network_training.cuh"

namespace pns {
namespace trainer {
namespace {

constexpr int kBuildThreads = 256;
constexpr int64_t kBlockBytes = 9728;  // of shared memory that a training block takes beside the dynamic

__global__ void __launch_bounds__(kBuildThreads, 1) mlp_measure_kernel(CudaTrainer t) {
  const FlatNetwork net(t, blockIdx.x);
  find_live(t, net);
  count_live(t, net);
}

__global__ void __launch_bounds__(kBuildThreads, 1) mlp_build_kernel(CudaTrainer t) {
  int64_t n_neurons = 0;
  for (int l = 0; l <= t.n_layers; ++l) n_neurons += t.widths[l];
  build_network(t, blockIdx.x, t.ranks + blockIdx.x * n_neurons);
}

template <typename Kind>
__global__ void __launch_bounds__(most_threads(Kind::kResidence), 1)
    mlp_train_kernel(CudaTrainer t, CudaTrainRange range) {
  PNS_DYNAMIC_SHARED(shared);
  __shared__ Session session;
  if (t.stopped[range.networks[blockIdx.x / range.n_blocks]] != 0) return;
  Training<Kind>(t, range, shared, &session).run(range);
}

// Edge-popup's mask: the top of the final scores at the final density.
__device__ void store_mask(const CudaTrainer& t, int64_t i) {
  const unsigned char* image = t.images + t.image_at[i];
  const ImageLayer* layers = reinterpret_cast<const ImageLayer*>(image);
  __shared__ ImageSizes sizes;
  __shared__ uint32_t counts[kMostBins];
  if (threadIdx.x == 0) sizes = lay_out(t, t.widths, t.counts + i * 2 * t.n_layers, nullptr);
  __syncthreads();
  const int32_t* keep = t.keep + 2 * t.n_layers * (t.epochs > 0 ? t.epochs - 1 : 0);
  for (int part = 0; part < 2 * t.n_layers; ++part) {
    const ImageLayer& layer = layers[part / 2];
    const float* of_layer = reinterpret_cast<const float*>(image + sizes.core + static_cast<size_t>(layer.state) * 16);
    const int64_t stride = state_stride(layer.n_stored);
    const bool is_weights = part % 2 == 0;
    const float* score = is_weights ? of_layer + kScore * stride
                                    : of_layer + n_states(t) * stride + kScore * state_stride(layer.n_rows);
    const ScorePart scores = is_weights ? ScorePart{score, layer.n_rows, layer.n_columns, layer.row_stride}
                                        : ScorePart{score, 1, layer.n_rows, layer.n_rows};
    const Threshold threshold = find_threshold(scores, keep[part], counts);
    uint8_t* out = t.mask_out + i * t.n_parameters + (is_weights ? layer.weight_at : layer.bias_at);
    for (int k = threadIdx.x; k < scores.n_stored(); k += blockDim.x) {
      if (scores.is_padding(k)) continue;
      out[k / scores.stride * scores.n_columns + k % scores.stride] = threshold.holds(magnitude_key(score[k]), k);
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kBuildThreads, 1) mlp_store_kernel(CudaTrainer t) {
  store_network(t, blockIdx.x);
  if (t.scores != nullptr) store_mask(t, blockIdx.x);
}

template <typename... Params, typename... Args>
void launch_each_network(const CudaTrainer& t, void (*kernel)(Params...), Args&&... args) {
  if (t.n_networks == 0) return;
  const CudaDeviceGuard guard("mlp_trainer", t.device);
  cuda_launch("mlp_trainer", {dim3(static_cast<unsigned>(t.n_networks)), kBuildThreads, t.stream}, kernel, args...);
}

template <Residence kResidence>
void launch_train(const CudaTrainer& t, const CudaTrainRange& range, const CudaLaunch& launch) {
  auto run = [&](auto kind) { cuda_launch("mlp_trainer", launch, mlp_train_kernel<decltype(kind)>, t, range); };
  const bool is_popup = t.scores != nullptr;
  switch (static_cast<Optimizer>(t.optimizer)) {
    case Optimizer::kGradient: return run(Kind<kResidence, Optimizer::kGradient, false>());
    case Optimizer::kSgd:
      return is_popup ? run(Kind<kResidence, Optimizer::kSgd, true>()) : run(Kind<kResidence, Optimizer::kSgd, false>());
    case Optimizer::kAdam:
      return is_popup ? run(Kind<kResidence, Optimizer::kAdam, true>()) : run(Kind<kResidence, Optimizer::kAdam, false>());
  }
}

// As many blocks a multiprocessor as its shared memory holds share its threads; each takes 1 KB and the static 8.4 KB more.
int threads_of(Residence residence, int64_t shared_bytes, int64_t max_shared_bytes) {
  const int most = most_threads(residence);
  if (residence != Residence::kShared) return most;
  const int64_t n_blocks = (max_shared_bytes + kBlockBytes) / (shared_bytes + kBlockBytes);
  return n_blocks >= 4 ? most / 4 : n_blocks >= 2 ? most / 2 : most;
}

}  // namespace
}  // namespace trainer

CudaNetworkPlan plan_cuda_network(const CudaTrainer& t, const int32_t* widths, const int32_t* counts,
                                  int64_t max_shared_bytes) {
  const trainer::ImageSizes sizes = trainer::lay_out(t, widths, counts, nullptr);
  CudaNetworkPlan plan{};
  plan.image_bytes = sizes.core + sizes.state + sizes.live;
  if (sizes.core + sizes.activations + sizes.state <= max_shared_bytes) {
    plan.residence = Residence::kShared;
    plan.shared_bytes = sizes.core + sizes.activations + sizes.state;
  } else if (sizes.core + sizes.activations <= max_shared_bytes) {
    plan.residence = Residence::kStreamed;
    plan.shared_bytes = sizes.core + sizes.activations;
  } else {
    plan.residence = Residence::kGlobal;
    plan.shared_bytes = trainer::round_up(t.n_layers * sizeof(trainer::ImageLayer), 16);
    plan.image_bytes += sizes.activations;
  }
  plan.n_threads = trainer::threads_of(plan.residence, plan.shared_bytes, max_shared_bytes);
  // Cycles of a step, as measured on an H200: 12 us of phases with next to nothing in them, 46 of a dense network.
  const double n_tiles = static_cast<double>((t.batch_size + trainer::kTile - 1) / trainer::kTile);
  plan.cost = 2000.0 * (2 * t.n_layers + 3);
  for (int64_t l = 0; l < t.n_layers; ++l) {
    const int64_t rows = counts[2 * l], columns = l == 0 ? widths[0] : counts[2 * (l - 1)];
    const bool is_dense = trainer::is_dense_layer(t, rows, columns, counts[2 * l + 1]);
    plan.cost += n_tiles * (is_dense ? 3.0 * rows * columns : 8.5 * counts[2 * l + 1]);
  }
  return plan;
}

void launch_mlp_measure(const CudaTrainer& t) { trainer::launch_each_network(t, trainer::mlp_measure_kernel, t); }
void launch_mlp_build(const CudaTrainer& t) { trainer::launch_each_network(t, trainer::mlp_build_kernel, t); }
void launch_mlp_store(const CudaTrainer& t) { trainer::launch_each_network(t, trainer::mlp_store_kernel, t); }

void launch_mlp_train(const CudaTrainer& t, const CudaTrainRange& range) {
  if (range.n_group == 0) return;
  const CudaDeviceGuard guard("mlp_trainer", t.device);
  const CudaLaunch launch{dim3(static_cast<unsigned>(range.n_group * range.n_blocks)),
                          static_cast<int>(range.n_threads), t.stream, static_cast<size_t>(range.shared_bytes),
                          static_cast<int>(range.n_blocks)};
  switch (range.residence) {
    case Residence::kShared: return trainer::launch_train<Residence::kShared>(t, range, launch);
    case Residence::kStreamed: return trainer::launch_train<Residence::kStreamed>(t, range, launch);
    case Residence::kGlobal: return trainer::launch_train<Residence::kGlobal>(t, range, launch);
  }
}

}  // namespace pns
