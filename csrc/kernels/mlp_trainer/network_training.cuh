// A team's training of its network: epochs, batches, losses, evaluation and edge-popup's selection around the products of
// network_step.cuh. Every function is called by all threads of the team unless it says otherwise.
#pragma once

#include "core/cuda_check.cuh"
#include "kernels/mlp_trainer/network_step.cuh"
#include "kernels/mlp_trainer/score_selection.cuh"

namespace pns {
namespace trainer {
namespace {

#ifdef PNS_EMULATE_CUDA
__device__ unsigned cluster_rank() { return 0; }
__device__ void cluster_sync() {}
#else
__device__ unsigned cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
// Everything before it, in global memory too, is seen by the cluster after it.
__device__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  __threadfence();
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  __threadfence();
#endif
}
#endif

// One split of the network's data set.
struct Samples {
  int64_t n;
  const float* x;
  const int64_t* label;
  const float* y;
};

// What a block's threads look up rarely: kept out of their registers.
struct Session {
  ImageSizes sizes;
  Samples train, test;
  Shuffle shuffle;
};

// A team's view of its network. Every member function is called by all of its threads.
template <typename Kind>
class Training {
 public:
  static constexpr Residence kResidence = Kind::kResidence;

  __device__ Training(const CudaTrainer& trainer, const CudaTrainRange& range, unsigned char* shared, Session* session)
      : t_(trainer), session_(*session), n_layers_(static_cast<int>(trainer.n_layers)),
        n_blocks_(static_cast<int>(range.n_blocks)),
        rank_(kResidence == Residence::kGlobal ? static_cast<int>(cluster_rank()) : 0),
        network_(range.networks[blockIdx.x / n_blocks_]), batch_(static_cast<int>(trainer.batch_size)) {
    const int n_warps = blockDim.x / kWarp;
    team_ = {rank_ * n_warps + static_cast<int>(threadIdx.x) / kWarp, n_blocks_ * n_warps,
             static_cast<int>(threadIdx.x) % kWarp, (batch_ + kTile - 1) / kTile};
    image_ = t_.images + t_.image_at[network_];
    n_out_ = t_.widths[n_layers_];
    find_memory(shared);
  }

  // Pass 2 epoch + 1 trains, 2 epoch + 2 tests what came of it; pass 0 tests the network as it came. One body for all: the
  // code of a step is all that the instruction cache holds.
  __device__ void run(const CudaTrainRange& range) {
    load();
#pragma unroll 1
    for (int64_t pass = range.first == 0 ? 0 : 2 * range.first + 1; pass <= 2 * range.last; ++pass) {
      const bool is_training = pass % 2 == 1;
      if (Kind::kOptimizer == Optimizer::kGradient && !is_training) continue;
      if (visit(is_training, static_cast<int>(pass / 2))) continue;
      if (is_first_thread()) t_.stopped[network_] = 1;
      break;
    }
    unload();
  }

 private:
  __device__ bool is_first_thread() const { return team_.warp == 0 && team_.lane == 0; }
  __device__ bool is_first_warp() const { return team_.warp == 0; }
  __device__ int team_thread() const { return team_.warp * kWarp + team_.lane; }

  __device__ void sync() const {
    if (kResidence == Residence::kGlobal && n_blocks_ > 1) {
      cluster_sync();
    } else {
      __syncthreads();
    }
  }

  // Shared memory: [core, which begins with the layers][activations][state], as far as they live there.
  __device__ void find_memory(unsigned char* shared) {
    if (threadIdx.x == 0) {
      session_.sizes = lay_out(t_, t_.widths, t_.counts + network_ * 2 * n_layers_, nullptr);
      session_.train = samples(t_.n_train, t_.x_train, t_.label_train, t_.y_train);
      session_.test = samples(t_.n_test, t_.x_test, t_.label_test, t_.y_test);
    }
    __syncthreads();
    const ImageSizes& sizes = session_.sizes;
    m_.layers = reinterpret_cast<const ImageLayer*>(shared);
    m_.stride4 = activation_stride(t_) / 4;
    if (kResidence == Residence::kGlobal) {
      m_.core = image_, m_.state = image_ + sizes.core;
      m_.activations = m_.state + sizes.state + sizes.live;
    } else {
      m_.core = shared, m_.activations = shared + sizes.core;
      m_.state = kResidence == Residence::kShared ? m_.activations + sizes.activations : image_ + sizes.core;
    }
  }

  __device__ static void copy(unsigned char* to, const unsigned char* from, int64_t bytes) {
    for (int64_t k = threadIdx.x; k < bytes / 16; k += blockDim.x) {
      reinterpret_cast<float4*>(to)[k] = reinterpret_cast<const float4*>(from)[k];
    }
  }

  __device__ void load() {
    PNS_DYNAMIC_SHARED(shared);
    if (kResidence == Residence::kGlobal) {
      copy(shared, image_, round_up(n_layers_ * sizeof(ImageLayer), 16));
    } else {
      copy(m_.core, image_, session_.sizes.core);
    }
    if (kResidence == Residence::kShared) copy(m_.state, image_ + session_.sizes.core, session_.sizes.state);
    // Lanes behind the batch and rows behind the last neuron: zero for good.
    for (int64_t k = team_thread(); k < session_.sizes.activations / 16; k += team_.n_warps * kWarp) {
      reinterpret_cast<float4*>(m_.activations)[k] = splat(0);
    }
    sync();
  }

  __device__ void unload() {
    sync();
    if (kResidence != Residence::kGlobal) copy(image_, m_.core, session_.sizes.core);
    if (kResidence == Residence::kShared) copy(image_ + session_.sizes.core, m_.state, session_.sizes.state);
  }

  __device__ Samples samples(int64_t n, const float* x, const int64_t* label, const float* y) const {
    const int64_t at = t_.dataset[network_] * n;
    return {n, x + at * t_.widths[0], label == nullptr ? nullptr : label + at, y == nullptr ? nullptr : y + at * n_out_};
  }

  // Two sets of everything a batch needs: one is worked on, the other is being gathered.
  __device__ float4* input(int set) const { return m_.rows(set * static_cast<int>(round_up(t_.widths[0], 4))); }
  __device__ float* target(int set) const { return reinterpret_cast<float*>(m_.rows(session_.sizes.target + set * n_out_)); }
  __device__ int32_t* labels(int set) const { return integers() + set * team_.n_tiles * kTile; }
  __device__ int32_t* order(int set) const { return integers() + (2 + set) * team_.n_tiles * kTile; }
  __device__ int32_t* integers() const { return reinterpret_cast<int32_t*>(m_.activations + session_.sizes.integers); }
  __device__ double* sums() const { return reinterpret_cast<double*>(m_.activations + session_.sizes.sums); }
  __device__ float4* delta(int l) const { return m_.rows(session_.sizes.delta + l % 3 * session_.sizes.delta_rows); }
  __device__ const float4* layer_input(int l, int set) const {
    return l == 0 ? input(set) : m_.rows(m_.layers[l - 1].output);
  }

  // The samples at `begin` and after in the epoch's order, for threads thread, thread + n_threads, ...
  __device__ void draw(int64_t begin, int set, int thread, int n_threads) const {
    const Shuffle& shuffle = session_.shuffle;
#pragma unroll 1
    for (int b = thread; b < batch_; b += n_threads) {
      if (begin + b < shuffle.n) order(set)[b] = shuffled(shuffle, static_cast<uint32_t>(begin + b));
    }
  }

  // Batch `begin` .. of data into set; in the order drawn, or as they come. A thread a sample, or a warp where a sample
  // has many numbers.
  __device__ void gather(const Samples& data, int64_t begin, bool is_drawn, int set, int thread, int n_threads) const {
    constexpr int kFew = 8;
    const int n_batch = batch_at(data, begin), n_in = t_.widths[0], stride = 4 * m_.stride4;
    const int n_lanes = n_in <= kFew ? 1 : kWarp, lane = thread % n_lanes;
    auto index = [&](int b) { return is_drawn ? int64_t{order(set)[b]} : begin + b; };
    float* x = reinterpret_cast<float*>(input(set));
#pragma unroll 1
    for (int b = thread / n_lanes; b < batch_; b += n_threads / n_lanes) {
      const float* from = b < n_batch ? data.x + index(b) * n_in : nullptr;
#pragma unroll 2
      for (int f = lane; f < n_in; f += n_lanes) x[f * stride + b] = from == nullptr ? 0 : from[f];
    }
    // From the other end: other warps, which wait for their own loads.
#pragma unroll 1
    for (int b = n_threads - 1 - thread; b < n_batch; b += n_threads) {
      const int64_t sample = index(b);
      if (data.label != nullptr) {
        labels(set)[b] = static_cast<int32_t>(data.label[sample]);
        continue;
      }
#pragma unroll 2
      for (int o = 0; o < n_out_; ++o) target(set)[o * stride + b] = data.y[sample * n_out_ + o];
    }
  }

  __device__ int batch_at(const Samples& data, int64_t begin) const {
    return data.n - begin < batch_ ? static_cast<int>(data.n - begin) : batch_;
  }

  __device__ void forward(int set) {
#pragma unroll 1
    for (int l = 0; l < n_layers_; ++l) {
      const bool is_last = l + 1 == n_layers_;
      if (!Kind::kIsPopup && m_.layers[l].row_stride == 0) {
        forward_compressed(m_, team_, m_.layers[l], layer_input(l, set), is_last);
      } else {
        forward_dense(m_, team_, m_.layers[l], layer_input(l, set), is_last);
      }
      sync();
    }
  }

  // By the first warp: this lane's part of the loss; writes the last layer's delta if asked to.
  __device__ double loss(int n_batch, int set, bool writes_delta) {
    const int stride = 4 * m_.stride4;
    const float* output = reinterpret_cast<const float*>(m_.rows(m_.layers[n_layers_ - 1].output));
    float* d = reinterpret_cast<float*>(delta(n_layers_ - 1));
    double sum = 0;
#pragma unroll 1
    for (int b = team_.lane; b < team_.n_tiles * kTile; b += kWarp) {
      const bool is_sample = b < n_batch;
      if (static_cast<Loss>(t_.loss) == Loss::kCrossEntropy) {
        const int label = is_sample ? labels(set)[b] : -1;
        float largest = output[b], total = 0;
#pragma unroll 4
        for (int c = 1; c < n_out_; ++c) largest = fmaxf(largest, output[c * stride + b]);
#pragma unroll 4
        for (int c = 0; c < n_out_; ++c) total += expf(output[c * stride + b] - largest);
        const float scale = 1.0f / (total * n_batch);
#pragma unroll 4
        for (int c = 0; c < n_out_; ++c) {
          const float z = output[c * stride + b] - largest;
          if (c == label) sum += double{logf(total)} - z;
          if (writes_delta) d[c * stride + b] = is_sample ? expf(z) * scale - (c == label ? 1.0f / n_batch : 0) : 0;
        }
      } else {
#pragma unroll 1
        for (int o = 0; o < n_out_; ++o) {
          const float difference = is_sample ? output[o * stride + b] - target(set)[o * stride + b] : 0;
          sum += double{difference} * difference / n_out_;
          if (writes_delta) d[o * stride + b] = difference * (2.0f / (n_batch * n_out_));
        }
      }
    }
    return sum;
  }

  __device__ static double warp_sum(double x) {
    for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
  }

  // The delta of the layer below l.
  __device__ void delta_below(int l, int set, Turn* turn) {
    if (!Kind::kIsPopup && m_.layers[l].row_stride == 0) {
      delta_compressed(m_, team_, m_.layers[l], layer_input(l, set), delta(l), delta(l - 1), turn);
    } else {
      delta_dense(m_, team_, m_.layers[l], layer_input(l, set), delta(l), delta(l - 1), turn);
    }
  }

  __device__ void backward(int set, const Rates& rates) {
    const int last = n_layers_ - 1;
    if (last > 0) {
      Turn turn{team_.warp, team_.n_warps};
      delta_below(last, set, &turn);
      sync();
    }
#pragma unroll 1
    for (int l = last; l >= 0; --l) {
      Turn turn{team_.warp, team_.n_warps};
      update_layer<Kind>(t_, m_, team_, m_.layers[l], layer_input(l, set), delta(l), rates, &turn);
      if (l > 1) delta_below(l - 1, set, &turn);
      sync();
    }
  }

  __device__ Rates rates_of(int64_t n_updates) const {
    const float* rates = t_.rates + 3 * n_updates;
    return {rates[0], rates[1], rates[2]};
  }

  // One pass over the train or the test samples. False, the same in all threads: the mean train loss is not finite.
  __device__ bool visit(bool is_training, int index) {
    const Samples& data = is_training ? session_.train : session_.test;
    const int thread = team_thread(), n_threads = team_.n_warps * kWarp, n_others = n_threads - kWarp;
    start_pass(is_training, index, thread, n_threads);
    gather(data, 0, is_training, 0, thread, n_threads);
    sync();
    const int n_steps = static_cast<int>((data.n + batch_ - 1) / batch_);
    double sum = 0;
    int n_correct = 0;
#pragma unroll 1
    for (int step = 0; step < n_steps; ++step) {
      const int set = step & 1;
      const int64_t begin = int64_t{step} * batch_;
      Rates rates{};
      if (is_training) rates = rates_of(int64_t{index} * n_steps + step);  // read from L2 while the products run
      // By the scores that the step before left, and the density of this epoch or of the one that is tested.
      if (Kind::kIsPopup && (is_training || step == 0)) select(is_training || index == 0 ? index : index - 1);
      forward(set);
      if (is_first_warp()) {
        sum += loss(batch_at(data, begin), set, is_training);
        if (!is_training) n_correct += add_metric(batch_at(data, begin), set);
      } else if (step + 1 < n_steps) {
        gather(data, begin + batch_, is_training, 1 - set, thread - kWarp, n_others);
        // Again by other warps.
        const int drawing = thread - kWarp < n_others / 2 ? thread - kWarp + n_others / 2 : thread - kWarp - n_others / 2;
        if (is_training) draw(begin + 2 * batch_, set, drawing, n_others);
      }
      sync();
      if (is_training) backward(set, rates);
    }
    return end_pass(is_training, index, data, sum, n_correct);
  }

  // Up to the order of the first two batches.
  __device__ void start_pass(bool is_training, int index, int thread, int n_threads) {
    if (is_training) {
      if (threadIdx.x == 0) {
        session_.shuffle = make_shuffle(static_cast<uint32_t>(session_.train.n),
                                        static_cast<uint64_t>(t_.keys[2 * network_]),
                                        static_cast<uint32_t>(t_.keys[2 * network_ + 1]), static_cast<uint32_t>(index));
      }
      __syncthreads();
#pragma unroll 1
      for (int set = 0; set < 2; ++set) draw(int64_t{set} * batch_, set, thread, n_threads);
    } else if (is_first_warp()) {
#pragma unroll 1
      for (int k = team_.lane; k < 3 * n_out_; k += kWarp) sums()[k] = 0;
    }
    sync();
  }

  __device__ bool end_pass(bool is_training, int index, const Samples& data, double sum, int n_correct) {
    if (is_first_warp()) {
      sum = warp_sum(sum) / static_cast<double>(data.n);
      if (!is_training) {
        write_test(data, index, sum, warp_sum(n_correct));
      } else if (team_.lane == 0) {
        t_.train_loss[network_ * t_.epochs + index] = sum;
      }
      if (team_.lane == 0) sums()[3 * n_out_] = is_training ? sum : 0;
    }
    sync();
    const double mean = sums()[3 * n_out_];
    sync();
    return mean - mean == 0;
  }

  // By the first warp: this lane's correct samples, or the sums of squares for the best factor of each output.
  __device__ int add_metric(int n_batch, int set) {
    const int stride = 4 * m_.stride4;
    const float* output = reinterpret_cast<const float*>(m_.rows(m_.layers[n_layers_ - 1].output));
    int n_correct = 0;
    if (static_cast<Loss>(t_.loss) == Loss::kCrossEntropy) {
#pragma unroll 1
      for (int b = team_.lane; b < n_batch; b += kWarp) {
        int best = 0;
#pragma unroll 1
        for (int c = 1; c < n_out_; ++c) best = output[c * stride + b] > output[best * stride + b] ? c : best;
        n_correct += best == labels(set)[b];
      }
      return n_correct;
    }
#pragma unroll 1
    for (int o = 0; o < n_out_; ++o) {
      double yy = 0, fy = 0, ff = 0;
#pragma unroll 1
      for (int b = team_.lane; b < n_batch; b += kWarp) {
        const double f = output[o * stride + b], y = target(set)[o * stride + b];
        yy += y * y, fy += f * y, ff += f * f;
      }
      yy = warp_sum(yy), fy = warp_sum(fy), ff = warp_sum(ff);
      double* s = sums() + 3 * o;
      if (team_.lane == 0) s[0] += yy, s[1] += fy, s[2] += ff;
    }
    return 0;
  }

  __device__ void write_test(const Samples& data, int64_t column, double mean, double n_correct) {
    __syncwarp();
    if (team_.lane != 0) return;
    const int64_t at = network_ * (t_.epochs + 1) + column;
    t_.test_loss[at] = mean;
    if (static_cast<Loss>(t_.loss) == Loss::kCrossEntropy) {
      t_.metric[at] = n_correct / static_cast<double>(data.n);
      return;
    }
    double squares = 0;
#pragma unroll 1
    for (int o = 0; o < n_out_; ++o) {
      const double *s = sums() + 3 * o, yy = s[0], fy = s[1], ff = s[2];
      squares += yy - (ff > 0 ? fy * fy / ff : 0 * ff);
    }
    t_.metric[at] = squares / static_cast<double>(data.n * n_out_);
  }

  // Part 2 l are the weights of layer l, part 2 l + 1 its biases.
  __device__ Enforcement enforcement(int part, int epoch) const {
    const ImageLayer& layer = m_.layers[part / 2];
    const int keep = t_.keep[2 * n_layers_ * epoch + part];
    if (part % 2 == 0) {
      return {{m_.of_state(layer, kScore), layer.n_rows, layer.n_columns, layer.row_stride}, keep,
              m_.of_state(layer, kFrozen), m_.template of_core<float>(layer.weight)};
    }
    return {{m_.of_bias_state(t_, layer, kScore), 1, layer.n_rows, layer.n_rows}, keep,
            m_.of_bias_state(t_, layer, kFrozen), m_.template of_core<float>(layer.bias)};
  }

  // Puts the top of |score| in force, in each part by itself: small ones shared out among the warps, large ones among
  // the blocks.
  __device__ void select(int epoch) {
    Turn turn{team_.warp, team_.n_warps};
    turn.share(2 * n_layers_, [&](int part) {
      const Enforcement e = enforcement(part, epoch);
      if (e.part.n_stored() <= kWarpScores) enforce_by_warp(e);
    });
    Bracket* brackets = reinterpret_cast<Bracket*>(m_.activations + session_.sizes.brackets);
#pragma unroll 1
    for (int part = rank_; part < 2 * n_layers_; part += n_blocks_) {
      const Enforcement e = enforcement(part, epoch);
      if (e.part.n_stored() > kWarpScores) enforce_by_block(e, brackets + part);
    }
    sync();
  }

  const CudaTrainer& t_;
  Session& session_;
  const int n_layers_, n_blocks_, rank_;
  const int64_t network_;
  const int batch_;
  int n_out_;
  Team team_;
  Memory<kResidence> m_;
  unsigned char* image_;
};

}  // namespace
}  // namespace trainer
}  // namespace pns
