// Edge-popup's selection by one block: the `keep` largest |score| of a layer's weights or biases, exactly, ties to the
// lowest index. A radix select of three digits (11 + 11 + 10 bits) over the magnitudes' bits; counts are integers, so
// the order of atomics does not matter. 8 KB of shared memory.
#pragma once

#include "core/cuda_check.cuh"
#include "kernels/mlp_trainer/network_build.cuh"

namespace pns {
namespace trainer {

constexpr int kMostBins = 1 << 11;

// Scores in rows of `stride`, of which the first n_columns count.
struct ScorePart {
  const float* score;
  int n_rows, n_columns, stride;
  __device__ int n_stored() const { return n_rows * stride; }
  __device__ bool is_padding(int k) const { return stride != n_columns && k % stride >= n_columns; }
};

// What is in force: keys above the threshold, and of those that equal it the ones up to position last_tie.
struct Threshold {
  uint32_t key;
  int last_tie;
  __device__ bool holds(uint32_t k, int position) const { return k > key || (k == key && position <= last_tie); }
};

// The order of |score|; a NaN ranks lowest, so that a score that diverged is the first to go.
__device__ inline uint32_t magnitude_key(float score) {
  uint32_t bits;
  memcpy(&bits, &score, sizeof(bits));
  bits &= 0x7FFFFFFFu;
  return bits > 0x7F800000u ? 0 : bits + 1;
}

// The bin, from the top, in which the rank-th key lies: by the first warp. rank becomes that within the bin.
__device__ inline int find_bin(const uint32_t* counts, int n_bins, uint32_t* rank) {
  const int lane = threadIdx.x % kWarp, per_lane = n_bins / kWarp, top = n_bins - 1 - lane * per_lane;
  uint32_t own = 0;
  for (int j = 0; j < per_lane; ++j) own += counts[top - j];
  uint32_t sum = own;
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t before = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += before;
  }
  uint32_t above = sum - own;
  int bin = top;
  const bool is_here = above < *rank && *rank <= sum;
  if (is_here) {
    while (*rank > above + counts[bin]) above += counts[bin--];
  }
  const int source = __ffs(static_cast<int>(__ballot_sync(kAllLanes, is_here))) - 1;
  *rank -= __shfl_sync(kAllLanes, above, source);
  return __shfl_sync(kAllLanes, bin, source);
}

// The position of the rank-th score whose key is `key`, by the first warp.
__device__ inline int find_tie(const ScorePart& part, uint32_t key, uint32_t rank) {
  const int lane = threadIdx.x % kWarp, n = part.n_stored();
  for (int begin = 0; begin < n; begin += kWarp) {
    const int k = begin + lane;
    const bool is_tie = k < n && !part.is_padding(k) && magnitude_key(part.score[k]) == key;
    unsigned ties = __ballot_sync(kAllLanes, is_tie);
    const uint32_t n_ties = __popc(ties);
    if (rank > n_ties) {
      rank -= n_ties;
      continue;
    }
    for (; rank > 1; --rank) ties &= ties - 1;
    return begin + __ffs(static_cast<int>(ties)) - 1;
  }
  return n;
}

// The same in all threads of the block. 0 <= keep.
__device__ inline Threshold find_threshold(const ScorePart& part, int keep) {
  __shared__ uint32_t counts[kMostBins];
  __shared__ uint32_t known_prefix, known_rank;
  __shared__ Threshold found;
  if (keep == 0) return {0xFFFFFFFFu, -1};
  uint32_t prefix = 0, rank = keep;
  const int n = part.n_stored(), shifts[] = {21, 10, 0}, bits[] = {11, 11, 10};
#pragma unroll
  for (int pass = 0; pass < 3; ++pass) {
    const int shift = shifts[pass], n_bins = 1 << bits[pass];
    for (int b = threadIdx.x; b < n_bins; b += blockDim.x) counts[b] = 0;
    __syncthreads();
    for (int k = threadIdx.x; k < n; k += blockDim.x) {
      const uint32_t key = magnitude_key(part.score[k]);
      const bool is_candidate = pass == 0 || (key ^ prefix) >> (shift + bits[pass]) % 32 == 0;
      if (is_candidate && !part.is_padding(k)) atomicAdd(&counts[(key >> shift) & (n_bins - 1)], 1u);
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {
      const int bin = find_bin(counts, n_bins, &rank);
      prefix |= static_cast<uint32_t>(bin) << shift;
      if (threadIdx.x == 0) known_prefix = prefix, known_rank = rank;
      if (pass == 2) {
        const bool all_ties = counts[bin] == rank;
        const int last = all_ties ? n : find_tie(part, prefix, rank);
        if (threadIdx.x == 0) found = {prefix, last};
      }
    }
    __syncthreads();
    prefix = known_prefix, rank = known_rank;
    __syncthreads();
  }
  return found;
}

}  // namespace trainer
}  // namespace pns
