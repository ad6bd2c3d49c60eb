// The targets of best_match on their supports, as the score kernel and stage two read them. A block owns a target, each
// of its warps a contiguous piece of the parameters, so that the features come out in order after one look at the sums.
#pragma once

#include "kernels/best_match/half_products.cuh"
#include "kernels/best_match/match_plan.cuh"

namespace pns {
namespace {

__device__ double block_sum(double value) {
  __shared__ double parts[kThreads / kWarpSize];
  for (int step = 1; step < kWarpSize; step *= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  if (threadIdx.x % kWarpSize == 0) parts[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  double sum = 0;
  for (double part : parts) sum += part;
  __syncthreads();
  return sum;
}

struct Survey {  // of a target's support
  int n_features;
  double peak;
  bool is_finite, is_like_previous;
};

// Writes the features in order.
template <typename T>
__device__ Survey survey_support(const Problem<T>& p, int64_t target, int32_t* feature) {
  __shared__ int counts[kThreads / kWarpSize], flags[kThreads / kWarpSize];
  __shared__ double peaks[kThreads / kWarpSize];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, n_warps = kThreads / kWarpSize;
  const int64_t n = p.n_parameters, piece = (n + kThreads - 1) / kThreads * kWarpSize;
  const int64_t begin = warp * piece, end = begin + piece < n ? begin + piece : n;
  const uint8_t* support = p.support + target * n;
  const uint8_t* previous = target % p.n_targets > 0 ? support - n : nullptr;
  int count = 0, is_finite = 1, is_alike = previous != nullptr;
  unsigned seen = 0;  // bit j: the support at begin + lane + 32 j
  double peak = 0;
#pragma unroll 4
  for (int64_t i = begin + lane; i < end; i += kWarpSize) {
    const bool is_on = support[i] != 0;
    const int64_t step = (i - begin) / kWarpSize;
    if (step < 32) seen |= static_cast<unsigned>(is_on) << step;
    const double size = fabs(target_value(p.target, p.target_is_f64, target * n + i));
    count += is_on;
    is_finite &= size < kFar;
    if (previous != nullptr) is_alike &= (previous[i] != 0) == is_on;
    if (is_on && size > peak) peak = size;
  }
  for (int step = 1; step < kWarpSize; step *= 2) {
    count += __shfl_xor_sync(kAllLanes, count, step);
    const double other = __shfl_xor_sync(kAllLanes, peak, step);
    if (other > peak) peak = other;
  }
  const bool all_finite = __all_sync(kAllLanes, is_finite), all_alike = __all_sync(kAllLanes, is_alike);
  if (lane == 0) {
    counts[warp] = count;
    peaks[warp] = peak;
    flags[warp] = all_finite | all_alike << 1;
  }
  __syncthreads();
  Survey survey{0, 0, true, true};
  int at = 0;
  for (int v = 0; v < n_warps; ++v) {
    if (v == warp) at = survey.n_features;
    survey.n_features += counts[v];
    if (peaks[v] > survey.peak) survey.peak = peaks[v];
    survey.is_finite &= flags[v] & 1;
    survey.is_like_previous &= flags[v] >> 1;
  }
  for (int64_t i = begin; i < end; i += kWarpSize) {
    const int64_t step = (i - begin) / kWarpSize;
    const bool is_on = step < 32 ? (seen >> step & 1) != 0 : i + lane < end && support[i + lane] != 0;
    const unsigned bits = __ballot_sync(kAllLanes, is_on);
    if (is_on) feature[at + __popc(bits & ((1u << lane) - 1))] = static_cast<int32_t>(i + lane);
    at += __popc(bits);
  }
  __syncthreads();
  return survey;
}

// The first of the features, which ascend, that is not below `least`.
__device__ inline int first_from(const int32_t* feature, int n_features, int64_t least) {
  int low = 0;
  for (int high = n_features; low < high;) {
    const int middle = (low + high) / 2;
    if (feature[middle] < least) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The float32 direction, feature by feature in pairs, panel by panel; an odd number is padded by the row of zeros.
template <typename T>
__device__ void write_pairs(const Problem<T>& p, const Plan& plan, const Workspace& w, int64_t target,
                            const TargetInfo& info, double inverse) {
  const int32_t* feature = w.feature + target * p.n_parameters;
  int32_t* first_slot = w.first_slot + target * (plan.n_panels + 1);
  uint2* pairs = reinterpret_cast<uint2*>(w.pairs);
  int slot = 0, begin = 0;
  for (int q = 0; q < plan.n_panels; ++q) {
    const int64_t column = int64_t{q} * plan.panel;
    const int end = q + 1 == plan.n_panels ? info.n_features
                                           : first_from(feature, info.n_features, column + plan.panel);
    for (int k = threadIdx.x; k < end - begin; k += kThreads) {
      const int32_t i = feature[begin + k];
      const double x = target_value(p.target, p.target_is_f64, target * p.n_parameters + i);
      const float direction = static_cast<float>(x * info.up * info.up_again * inverse);
      const unsigned offset = 4 * row_start(plan.log2_tile, static_cast<int>(i - column));
      pairs[2 * slot_at(plan, target, slot + k / 2) + k % 2] = {offset, __float_as_uint(direction)};
    }
    if (threadIdx.x == 0) {
      first_slot[q] = slot;
      const unsigned zeros = 4 * row_start(plan.log2_tile, plan.panel);
      if ((end - begin) % 2 == 1) pairs[2 * slot_at(plan, target, slot + (end - begin) / 2) + 1] = {zeros, 0};
    }
    slot += (end - begin + 1) / 2;
    begin = end;
  }
  if (threadIdx.x == 0) first_slot[plan.n_panels] = slot;
}

// The direction and the support in half precision where match_dense.cuh looks for them. Returns the dense_scale.
template <typename T>
__device__ float write_dense(const Problem<T>& p, const Plan& plan, const Workspace& w, int64_t target,
                             const TargetInfo& info, double inverse) {
  const int64_t problem = target / p.n_targets, group = target % p.n_targets / kDenseGroup;
  const int row = static_cast<int>(target % p.n_targets % kDenseGroup);
  uint16_t* halves =
      reinterpret_cast<uint16_t*>(w.dense + (problem * plan.n_groups + group) * plan.dense_steps * 2 * kWarpSize);
  double square = 0;
  const int column = threadIdx.x;
  if (column < 16 * plan.dense_steps) {
    const int64_t at = target * p.n_parameters + column;
    const bool is_on = info.n_features > 0 && column < p.n_parameters && p.support[at] != 0;
    float direction = 0;
    if (is_on) {
      const double x = target_value(p.target, p.target_is_f64, at);
      direction = static_cast<float>(x * info.up * info.up_again * inverse);
    }
    // Parameter 16 s + 4 t + 2 b + i is half i of register row / 8 + 2 b in lane 4 (row mod 8) + t.
    const int lane = 4 * (row % 8) + column / 4 % 4, half = 2 * (row / 8 + column / 2 % 2 * 2) + column % 2;
    uint16_t* to = halves + (column / 16 * 2 * kWarpSize + lane) * 8 + half;
    to[0] = to_half(direction);
    to[kWarpSize * 8] = to_half(is_on ? 1.0f : 0.0f);
    const float rounded = from_half(to_half(direction));
    square = rounded * rounded;
  }
  const float length2 = static_cast<float>(block_sum(square));
  if (info.n_features < kLeastDense) return 0;
  return length2 > 0 ? 1 / length2 : 1;
}

template <typename T>
__device__ void prepare_target(const Problem<T>& p, const Plan& plan, const Workspace& w, int64_t target) {
  int32_t* feature = w.feature + target * p.n_parameters;
  const Survey survey = survey_support(p, target, feature);
  TargetInfo info{};
  info.n_features = survey.is_finite ? survey.n_features : 0;
  info.is_like_previous = survey.is_like_previous && survey.is_finite;
  if (survey.is_finite) frexp(survey.peak, &info.exponent);
  const int up = -info.exponent < 1023 ? -info.exponent : 1023;
  info.up = ldexp(1.0, up);
  info.up_again = ldexp(1.0, -info.exponent - up);
  double square = 0;
  for (int k = threadIdx.x; k < info.n_features; k += kThreads) {
    const double x = target_value(p.target, p.target_is_f64, target * p.n_parameters + feature[k]);
    const double theta = x * info.up * info.up_again;
    square += theta * theta;
  }
  info.length2 = block_sum(square);
  const double inverse = info.length2 > 0 ? 1 / sqrt(info.length2) : 0;
  write_pairs(p, plan, w, target, info, inverse);
  if (plan.dense_steps > 0) info.dense_scale = write_dense(p, plan, w, target, info, inverse);
  if (threadIdx.x == 0) w.info[target] = info;
}

// The first blocks own a target, those after them kThreads * kPerLane candidates, which nobody holds yet.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4) best_match_prepare_kernel(Problem<T> p, Plan plan, Workspace w) {
  const int64_t n_targets = p.n_problems * p.n_targets;
  if (blockIdx.x < n_targets) {
    prepare_target(p, plan, w, blockIdx.x);
    return;
  }
  const int64_t begin = (blockIdx.x - n_targets) * kThreads * kPerLane + threadIdx.x;
  for (int i = 0; i < kPerLane; ++i) {
    const int64_t c = begin + i * kThreads;
    if (c >= p.n_problems * p.n_candidates) return;
    w.owner[c] = p.available == nullptr || p.available[c] != 0 ? kNobody : -1;
  }
}

}  // namespace
}  // namespace pns
