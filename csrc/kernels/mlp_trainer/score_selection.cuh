// Edge-popup's selection: the `keep` largest |score| of a layer's weights or biases, exactly, ties to the lowest index.
//
// Up to 512 scores are one warp's, in registers. More are a block's: scores move little from step to step, so the last
// threshold brackets the next one; what lies above the bracket is in force, and the few inside are ranked against each
// other. A bracket that missed, and the first selection, take a radix select of three digits (11 + 11 + 10 bits). Counts
// are integers and candidates are ranked by key and position, so the order of atomics does not matter. 8 KB of shared
// memory.
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

// By radix. The same in all threads of the block. 0 <= keep.
__device__ inline Threshold find_threshold(const ScorePart& part, int keep, uint32_t* counts) {
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

// Where the next threshold is looked for: half_width keys around the last one; 0: anywhere.
struct Bracket {
  uint32_t key, half_width;

  __device__ void move_to(uint32_t next) {
    constexpr uint32_t kLeast = 1024, kFirst = 64 * kLeast;  // 1,024 steps of a float are 0.01%
    const uint32_t move = next > key ? next - key : key - next;
    const uint32_t kept = half_width / 4 * 3, far = move < (1u << 28) ? 4 * move : 1u << 30;
    half_width = half_width == 0 ? kFirst : max(kLeast, max(far, kept));
    key = next;
  }
  __device__ static uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }
};

// What is in force afterwards: frozen where the score is among the `keep` largest, else 0 (padding: frozen is 0).
struct Enforcement {
  ScorePart part;
  int keep;
  const float* frozen;
  float* in_force;
};

// By a block, within the bracket. False, the same in all threads: it missed, or holds too many.
__device__ inline bool enforce_within(const Enforcement& e, Bracket* bracket, uint32_t* shared) {
  constexpr int kMost = kMostBins / 2;  // candidates: key and position
  __shared__ uint32_t n_above, n_inside;
  const Bracket known = *bracket;
  if (known.half_width == 0 || e.keep == 0) return false;
  if (threadIdx.x == 0) n_above = n_inside = 0;
  __syncthreads();
  const uint32_t low = known.key > known.half_width ? known.key - known.half_width : 0;
  const uint32_t high = known.key + known.half_width;
  uint32_t own_above = 0;
  const int n = e.part.n_stored();
#pragma unroll 4
  for (int k = threadIdx.x; k < n; k += blockDim.x) {
    const float frozen = e.frozen[k];
    const uint32_t key = magnitude_key(e.part.score[k]);
    const bool is_above = key > high;
    e.in_force[k] = is_above ? frozen : 0;
    const bool is_real = key >= low && !e.part.is_padding(k);
    own_above += is_above && is_real;
    if (is_above || !is_real) continue;
    const uint32_t at = atomicAdd(&n_inside, 1u);
    if (at < kMost) shared[2 * at] = key, shared[2 * at + 1] = k;
  }
  for (int step = kWarp / 2; step > 0; step /= 2) own_above += __shfl_xor_sync(kAllLanes, own_above, step);
  if (threadIdx.x % kWarp == 0) atomicAdd(&n_above, own_above);
  __syncthreads();
  const uint32_t n_candidates = n_inside, n_missing = e.keep - n_above;  // wraps around where too many are above
  const bool fits = n_candidates <= kMost && n_missing - 1 < n_candidates;
  if (fits) {
    for (uint32_t i = threadIdx.x; i < n_candidates; i += blockDim.x) {
      const uint32_t key = shared[2 * i], position = shared[2 * i + 1];
      uint32_t rank = 0;
      for (uint32_t j = 0; j < n_candidates; ++j) {
        const uint32_t other = shared[2 * j];
        rank += other > key || (other == key && shared[2 * j + 1] < position);
      }
      if (rank < n_missing) e.in_force[position] = e.frozen[position];
      if (rank == n_missing - 1) bracket->move_to(key);
    }
  }
  __syncthreads();
  return fits;
}

__device__ inline void enforce_by_block(const Enforcement& e, Bracket* bracket) {
  __shared__ uint32_t shared[kMostBins];
  if (enforce_within(e, bracket, shared)) return;
  const Threshold threshold = find_threshold(e.part, e.keep, shared);
#pragma unroll 4
  for (int k = threadIdx.x; k < e.part.n_stored(); k += blockDim.x) {
    e.in_force[k] = threshold.holds(magnitude_key(e.part.score[k]), k) ? e.frozen[k] : 0;
  }
  if (threadIdx.x == 0 && e.keep > 0) bracket->move_to(threshold.key);
  __syncthreads();
}

constexpr int kWarpScores = 512;  // 16 a lane

// By a warp: the threshold's bits from the highest on, each by a count.
__device__ inline void enforce_by_warp(const Enforcement& e) {
  constexpr int kPerLane = kWarpScores / kWarp;
  const int lane = threadIdx.x % kWarp, n = e.part.n_stored();
  uint32_t keys[kPerLane];  // 0 behind the end and in padding: NaN's, and those lose ties by position or are frozen 0
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int k = j * kWarp + lane;
    keys[j] = k < n && !e.part.is_padding(k) ? magnitude_key(e.part.score[k]) : 0;
  }
  auto count_from = [&](uint32_t least) {
    int own = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) own += keys[j] >= least;
    return __reduce_add_sync(kAllLanes, own);
  };
  uint32_t threshold = 0;
#pragma unroll 1
  for (uint32_t bit = 1u << 30; bit != 0; bit /= 2) {
    if (count_from(threshold | bit) >= e.keep) threshold |= bit;
  }
  int n_ties = e.keep == 0 ? 0 : e.keep - count_from(threshold + 1);  // still to be kept, in order of position
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int k = j * kWarp + lane;
    const bool is_real = k < n && !e.part.is_padding(k), is_tie = is_real && keys[j] == threshold;
    const unsigned ties = __ballot_sync(kAllLanes, is_tie);
    const bool is_kept = e.keep > 0 && (keys[j] > threshold || (is_tie && __popc(ties & ((1u << lane) - 1)) < n_ties));
    if (k < n) e.in_force[k] = is_kept ? e.frozen[k] : 0;
    n_ties -= min(n_ties, __popc(ties));
  }
}

}  // namespace trainer
}  // namespace pns
