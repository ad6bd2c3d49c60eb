// best_match on CUDA, four kernels in a row and nothing in between: the targets on their supports; of every tile of
// candidates the largest cosine^2, in float32 (match_score.cuh) or, for few parameters and many candidates, by a fifth
// kernel in half precision (match_dense.cuh, on Hopper match_warpgroup.cuh); for every target the exact best few of the
// tiles that may hold them (match_search.cuh); the greedy order. Every step is exact or a bound, and no float64 is added
// in an order that scheduling decides: the bits are the CPU's.
//
// The greedy order is what comes of it when all targets ask for their best candidate at once, each candidate goes to the
// lowest target that asks, and the others ask for their next (Gale & Shapley: the outcome does not depend on who asks
// when). A target that has used up its few is searched again by the whole block. Up to 168 registers and 96 KB of shared
// memory, of which a tile of candidates is all but a little.
#include "kernels/best_match/best_match_cuda.h"

#include <algorithm>

#include "core/cuda_check.cuh"
#include "kernels/best_match/match_dense.cuh"
#include "kernels/best_match/match_plan.cuh"
#include "kernels/best_match/match_prepare.cuh"
#include "kernels/best_match/match_score.cuh"
#include "kernels/best_match/match_search.cuh"
#include "kernels/best_match/match_warpgroup.cuh"

namespace pns {
namespace {

// A block a target: the kept best candidates, whoever else wants them.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3) best_match_select_kernel(Problem<T> p, Plan plan, Workspace w) {
  __shared__ BestList best;
  const int64_t target = blockIdx.x;
  const Searched<T> s{target, target / p.n_targets, w.info[target], -1};
  if (threadIdx.x == 0) best.n = 0;
  __syncthreads();
  if (s.info.n_features > 0) {
    const double rounding = rounding_of_scores(s.info);
    float reached = -kFarFloat;
    if (plan.has_scores) {
      reached = high_score(w.tile_score + target * plan.n_tiles, plan.n_tiles, kFarFloat, plan.kept);
    }
    const float least = least_score(reached, 2 * rounding, rounding);
    search_tiles(p, plan, w, s, {least, kFarFloat, least}, plan.kept, &best);
  }
  if (static_cast<int>(threadIdx.x) < best.n) w.match[target * plan.kept + threadIdx.x] = best.match[threadIdx.x];
  if (threadIdx.x == 0) {
    w.n_matches[target] = best.n;
    w.next[target] = 0;
  }
}

// Targets ask until none has to go on to its next candidate. `owner` is read past the L1, where atomics do not write.
template <typename T>
__device__ void hand_out(const Problem<T>& p, const Plan& plan, const Workspace& w, int64_t problem) {
  __shared__ int has_moved;
  int32_t* owner = w.owner + problem * p.n_candidates;
  for (bool goes_on = true; goes_on;) {
    if (threadIdx.x == 0) has_moved = 0;
    __syncthreads();
    for (int64_t t = threadIdx.x; t < p.n_targets; t += kThreads) {
      const int64_t at = problem * p.n_targets + t;
      const int32_t self = static_cast<int32_t>(t);
      int next = w.next[at];
      for (; next < w.n_matches[at]; ++next) {
        int32_t* holder = owner + w.match[at * plan.kept + next].index;
        if (*static_cast<volatile int32_t*>(holder) == self) break;
        if (atomicMin(holder, self) > self) {
          has_moved = 1;
          break;
        }
      }
      w.next[at] = next;
    }
    __syncthreads();
    goes_on = has_moved != 0;
    __syncthreads();
  }
}

// The first target that found all it kept taken, though there may be more; kNobody: none.
template <typename T>
__device__ int first_without(const Problem<T>& p, const Plan& plan, const Workspace& w, int64_t problem) {
  __shared__ int first;
  if (threadIdx.x == 0) first = kNobody;
  __syncthreads();
  for (int64_t t = threadIdx.x; t < p.n_targets; t += kThreads) {
    const int64_t at = problem * p.n_targets + t;
    if (w.n_matches[at] == plan.kept && w.next[at] == plan.kept) atomicMin(&first, static_cast<int>(t));
  }
  __syncthreads();
  const int found = first;
  __syncthreads();
  return found;
}

template <typename T>
__device__ void write_results(const Problem<T>& p, const Plan& plan, const Workspace& w, int64_t problem) {
  for (int64_t t = threadIdx.x; t < p.n_targets; t += kThreads) {
    const int64_t at = problem * p.n_targets + t;
    const bool is_found = w.next[at] < w.n_matches[at];
    DeviceMatch match{std::numeric_limits<double>::quiet_NaN(), 1, -1, -1};
    if (is_found) match = w.match[at * plan.kept + w.next[at]];
    const int exponent = w.info[at].exponent;
    p.index[at] = match.index;
    const double scale = is_found ? ldexp(match.scale, exponent) : 1;
    const double distance = is_found ? ldexp(match.distance, exponent) : match.distance;
    if (p.results_are_f64) {
      static_cast<double*>(p.scale)[at] = scale;
      static_cast<double*>(p.distance)[at] = distance;
    } else {
      static_cast<float*>(p.scale)[at] = static_cast<float>(scale);
      static_cast<float*>(p.distance)[at] = static_cast<float>(distance);
    }
  }
}

// A block a problem.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1) best_match_resolve_kernel(Problem<T> p, Plan plan, Workspace w) {
  __shared__ BestList best;
  const int64_t problem = blockIdx.x;
  for (;;) {
    hand_out(p, plan, w, problem);
    const int t = first_without(p, plan, w, problem);
    if (t == kNobody) break;
    // The targets before t are done; those after it give way.
    const int64_t target = problem * p.n_targets + t;
    const Searched<T> s{target, problem, w.info[target], t};
    if (threadIdx.x == 0) best.n = 0;
    __syncthreads();
    search_again(p, plan, w, s, &best);
    if (threadIdx.x == 0) {
      w.n_matches[target] = best.n;
      w.next[target] = 0;
      if (best.n == 1) w.match[target * plan.kept] = best.match[0];
    }
    __syncthreads();
  }
  write_results(p, plan, w, problem);
}

dim3 grid_of(int64_t n_blocks) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  if (n_blocks > kMostBlocks) throw std::runtime_error("best_match: too many blocks for one launch");
  return dim3(static_cast<unsigned>(n_blocks));
}

template <typename T>
void launch_dense(const Problem<T>& p, const Plan& plan, const Workspace& w, CUstream_st* stream) {
  const int64_t n_chunks = p.n_problems * plan.n_chunks();
  auto parts_of = [&](int64_t n_blocks) { return static_cast<int>(min_of(ceil_div(n_blocks, n_chunks), plan.n_tiles)); };
  if constexpr (sizeof(T) == 4) {
    if (plan.by_warpgroup) {
      const int n_parts = parts_of(kGroupBlocks);
      const size_t bytes = warpgroup_bytes(p.n_parameters, plan.dense_steps);
      const auto kernel = plan.dense_steps == 2 ? best_match_warpgroup_kernel<2> : best_match_warpgroup_kernel<4>;
      cuda_launch("best_match", {grid_of(n_chunks * n_parts), kGroupThreads, stream, bytes}, kernel, p, plan, w, n_parts);
      return;
    }
  }
  const int n_parts = parts_of(kDenseBlocks);
  const size_t bytes = kBlockGroups * 2 * plan.dense_steps * kWarpSize * sizeof(uint4) +
                       2 * kDenseWarps * kDenseTargets * sizeof(float);
  const auto kernel = plan.dense_steps == 2 ? best_match_dense_kernel<T, 2> : best_match_dense_kernel<T, 4>;
  cuda_launch("best_match", {grid_of(n_chunks * n_parts), kDenseThreads, stream, bytes}, kernel, p, plan, w, n_parts);
}

template <typename T>
void launch_all(const CudaBestMatchParams& q, const Plan& plan) {
  const Problem<T> p{q.n_problems, q.n_targets, q.n_candidates, q.n_parameters, q.target, q.target_is_f64, q.support,
                     static_cast<const T*>(q.candidates), q.available, q.index, q.scale, q.distance, q.results_are_f64};
  Workspace w;
  lay_out(p, plan, q.workspace, &w);
  const char* name = "best_match";
  const int64_t targets = p.n_problems * p.n_targets;
  const int64_t holders = ceil_div<int64_t>(p.n_problems * p.n_candidates, kThreads * kPerLane);
  if (plan.dense_steps > 0 && p.n_targets % kDenseGroup != 0) {  // read in whole groups
    const int64_t n_operands = p.n_problems * plan.n_groups * plan.dense_steps * 2 * kWarpSize;
    cuda_check(name, cudaMemsetAsync(w.dense, 0, n_operands * sizeof(*w.dense), q.stream));
  }
  cuda_launch(name, {grid_of(targets + holders), kThreads, q.stream}, best_match_prepare_kernel<T>, p, plan, w);
  if (plan.dense_steps > 0) launch_dense(p, plan, w, q.stream);
  if (plan.has_scores) {
    const int64_t n_blocks = plan.dense_steps > 0 ? min_of(kLeftOverBlocks, plan.n_tiles) : p.n_problems * plan.n_tiles;
    const CudaLaunch launch{grid_of(n_blocks), plan.n_threads, q.stream,
                            static_cast<size_t>(tile_bytes(plan.log2_tile, plan.panel))};
    const auto kernel = plan.has_quads ? best_match_score_kernel<T, true> : best_match_score_kernel<T, false>;
    cuda_launch(name, launch, kernel, p, plan, w);
  }
  cuda_launch(name, {grid_of(targets), kThreads, q.stream}, best_match_select_kernel<T>, p, plan, w);
  cuda_launch(name, {grid_of(p.n_problems), kThreads, q.stream}, best_match_resolve_kernel<T>, p, plan, w);
}

void launch_plan(const CudaBestMatchParams& p, Plan plan) {
  if (p.n_problems == 0 || p.n_targets == 0) return;
  if (reinterpret_cast<uintptr_t>(p.candidates) % 16 != 0) plan.dense_steps = 0;
  const CudaDeviceGuard guard("best_match", p.device);
  if (p.candidates_are_f64) {
    launch_all<double>(p, plan);
  } else {
    launch_all<float>(p, plan);
  }
}

int64_t workspace_bytes(int64_t n_problems, int64_t n_targets, int64_t n_candidates, int64_t n_parameters,
                        const Plan& plan) {
  const Problem<float> p{n_problems, n_targets, n_candidates, n_parameters};
  Workspace w;
  return static_cast<int64_t>(lay_out(p, plan, nullptr, &w));
}

}  // namespace

int64_t best_match_workspace(int64_t n_problems, int64_t n_targets, int64_t n_candidates, int64_t n_parameters) {
  if (n_problems == 0 || n_targets == 0) return 0;
  return workspace_bytes(n_problems, n_targets, n_candidates, n_parameters,
                         make_plan(n_problems, n_targets, n_candidates, n_parameters));
}

void launch_best_match(const CudaBestMatchParams& p) {
  Plan plan = make_plan(p.n_problems, p.n_targets, p.n_candidates, p.n_parameters);
  plan.by_warpgroup = plan.dense_steps > 0 && has_warpgroups("best_match", p.device);
  launch_plan(p, plan);
}

}  // namespace pns
