// Long rows: a sample brackets the threshold, one pass writes the mask and lists the few scores inside the bracket, and
// the threshold is found among these. Ends of the bracket that tie in bulk are counted, not listed.
//
// topk_sample_kernel: 2,048 scores a block at fixed places; the last block to end ranks them. topk_split_kernel: a block
// owns a chunk of a row; 4 bytes read and 1 written a score, and 8 written for each of the 1% that are listed, in any
// order: they carry their position. Then the list is ranked (topk_settle.cuh). Where the bracket missed or a list
// overflowed the radix passes (topk_mask.cu) do it all again.
// Shared memory of a split block: 8 KB of bins, 32 KB of entries on their way to the list.
#pragma once

#include "kernels/topk_mask/topk_scores.cuh"

namespace pns {
namespace {

constexpr int kBracketBins = 2048;       // of the keys inside the bracket, and of the first digit of a sample
constexpr int kSampleBlock = 2048;       // scores
constexpr unsigned kFewSamples = 16;     // with 22 bits in common: no bulk of ties
constexpr unsigned kMaxClose = 1 << 16;  // entries that one block is left to rank
constexpr unsigned kFewClose = 1024;     // of them that it compares in pairs
constexpr int kSplitBlocks = 2;          // an SM: 64 registers, 64 KB of loads in flight

// Sample positions: one in each of 2^bits strata, at a hashed place in it. n <= 2^32.
__host__ __device__ inline int64_t sample_position(int64_t i, int64_t n, int bits) {
  const int64_t within = static_cast<uint32_t>(i * 2654435761) >> 12;
  return (i * n + (within * n >> 20)) >> bits;
}

struct SamplePlan {
  int bits;                    // 2^bits samples
  int64_t rank_hi, rank_lo;    // of the bracket's ends in the sample; 0 and 2^bits + 1: beyond all of it
};

struct Bracket {
  uint32_t lo, hi;   // keys of the ends: scores between them, without the ends, are listed
  uint32_t cut;      // lo < cut <= hi, or hi: the guess that the mask is first written with
  int shift;         // a bin holds 2^shift keys that scores of the type can have
  bool counts_ties;  // with the ends
  float tie_share;   // of the chunks, the first ones: where the mask first has the ties with hi
};

// The threshold ties in bulk where both ends are one key: then the ties of the later chunks are left out at once.
__device__ inline bool has_ties(const Bracket& b, int64_t n_chunks, int64_t chunk) {
  return static_cast<float>(chunk) < b.tie_share * static_cast<float>(n_chunks);
}

enum class Outcome { kDone, kTies, kFailed };  // of the bracket; kTies: bulk ties with the threshold are left to write

// Of a row; zero at first.
struct BracketState {
  Bracket bracket;
  Count n_from_hi, n_equal_hi, n_equal_lo, n_listed;
  unsigned n_close, sample_done, settle_done;
  Outcome outcome;
  uint32_t threshold;
  Count n_kept;  // of the scores that equal it
};

struct BracketWorkspace {
  BracketState* states;     // [n_rows]
  uint32_t* sample_counts;  // [n_rows, kBracketBins]: of the first digit
  uint32_t* bin_counts;     // [n_rows, kBracketBins]: of the listed keys
  uint32_t* samples;        // [n_rows, 2^bits] keys
  uint2* listed;            // [n_rows, capacity]: key, position
  uint2* close;             // [n_rows, kMaxClose]
  uint2* tie_counts;        // [n_rows, n_blocks]: with hi, with lo
  uint32_t* block_bins;     // [n_rows, n_blocks, kBracketBins]: where a bin holds one key
  Count capacity;
};

// True in all threads of the block that ends last; it sees what the others wrote, through __ldcg.
__device__ inline bool is_last_block(unsigned* n_done) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(n_done, 1u) == gridDim.x - 1;
  __syncthreads();
  __threadfence();
  return is_last;
}

// The bits at the end of a key that are the same for all scores of one sign: a bin is to hold one score where it can.
template <typename T> constexpr int kIdleBits = 0;
template <> constexpr int kIdleBits<Float16> = 13;
template <> constexpr int kIdleBits<BFloat16> = 16;

// Of a key inside the bracket.
template <typename T>
__device__ int bin_of(const Bracket& b, uint32_t key) {
  return static_cast<int>(((key >> kIdleBits<T>) - ((b.lo + 1) >> kIdleBits<T>)) >> b.shift);
}

template <typename T>
__device__ uint32_t lowest_in(const Bracket& b, int bin) {
  return (((b.lo + 1) >> kIdleBits<T>) + (static_cast<uint32_t>(bin) << b.shift)) << kIdleBits<T>;
}

// Of a bin that holds one. The idle bits of negative scores are set.
template <typename T>
__device__ uint32_t key_in(const Bracket& b, int bin) {
  const uint32_t lowest = lowest_in<T>(b, bin);
  return lowest >> 31 != 0 ? lowest : lowest | ((1u << kIdleBits<T>) - 1);
}

__device__ inline int shift_of(uint32_t n_keys) {
  const int bits = 32 - __clz(static_cast<int>(n_keys));
  return bits > 11 ? bits - 11 : 0;
}

// The samples of the bins found so far, by their next digit. By ones, which the hardware adds up within a warp where they
// meet at one counter.
__device__ inline void count_samples(const SamplePlan& plan, const uint32_t* samples, uint32_t prefix_mask, int shift,
                                     uint32_t digit_mask, uint32_t (&counts)[2][kBracketBins],
                                     const Selection (&ends)[2]) {
  const bool is_same = ends[0].prefix == ends[1].prefix;  // then counts[0] are both's
  const auto* four = reinterpret_cast<const uint4*>(samples);
#pragma unroll 8
  for (int i = threadIdx.x; i < 1 << plan.bits >> 2; i += kThreads) {
    const uint4 raw = __ldcg(four + i);
    const uint32_t keys[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t prefix = keys[j] & prefix_mask, bin = keys[j] >> shift & digit_mask;
      if (prefix == ends[0].prefix) atomicAdd(&counts[0][bin], 1u);
      if (prefix == ends[1].prefix && !is_same) atomicAdd(&counts[1][bin], 1u);
    }
  }
}

// The keys of two ranks of the sample, by digits of 11, 11 and 10 bits. The last one is left out where few samples share
// the others: then the ends are those of the bins, which widens the bracket by 2^-13 of the threshold.
__device__ inline void rank_sample(const SamplePlan& plan, const uint32_t* first_counts, const uint32_t* samples,
                                   uint32_t (&counts)[2][kBracketBins], Selection (&ends)[2]) {
  for (int pass = 0; pass < 3; ++pass) {
    const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, n_bins = pass == 2 ? 1024 : 2048;
    if (pass == 2 && ends[0].n_equal < kFewSamples && ends[1].n_equal < kFewSamples) {
      ends[0] = {ends[0].prefix | 1023, ends[0].rank, 1};
      ends[1].n_equal = 1;
      return;
    }
    const bool is_same = pass == 0 || ends[0].prefix == ends[1].prefix;
    if (pass > 0) {
      clear_counts(counts[0], 2 * kBracketBins);
      __syncthreads();
      count_samples(plan, samples, ~0u << (pass == 1 ? 21 : 10), shift, n_bins - 1u, counts, ends);
      __syncthreads();
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      ends[e] = select_digit(ends[e], n_bins, shift, [&](int bin) -> Count {
        return pass == 0 ? __ldcg(first_counts + bin) : counts[is_same ? 0 : e][bin];
      });
    }
  }
}

template <typename T>
__device__ Bracket bracket_of(const Rows<T>& rows, int64_t row, const SamplePlan& plan, const Selection (&ends)[2]) {
  const bool has_hi = plan.rank_hi >= 1, has_lo = plan.rank_lo <= int64_t{1} << plan.bits;
  Bracket b;
  b.hi = has_hi && kLowestKey < ends[0].prefix && ends[0].prefix < kHighestKey ? ends[0].prefix : kHighestKey;
  if (has_hi && ends[0].prefix <= kLowestKey) b.hi = kLowestKey;
  b.lo = has_lo && ends[1].prefix > kLowestKey ? ends[1].prefix : kLowestKey;
  b.counts_ties = b.lo == kLowestKey || b.hi == kHighestKey || ends[0].n_equal > 1 || ends[1].n_equal > 1;
  const uint32_t first = (b.lo + 1) >> kIdleBits<T>, end = ((b.hi - 1) >> kIdleBits<T>) + 1;
  b.shift = shift_of(first < end ? end - first : 0);
  b.tie_share = 1;
  if (b.lo == b.hi) {  // as if they were spread evenly
    b.counts_ties = true;
    const int64_t kept = static_cast<int64_t>(ends[0].rank) + (plan.rank_lo - plan.rank_hi) / 2;
    b.tie_share = rows.keeps_ties ? static_cast<float>(kept) / static_cast<float>(ends[0].n_equal) : 0.0f;
  }
  // Entries on the right side of the cut need no second write. A hint that is far off changes nothing but that.
  const uint32_t hint = rows.hints == nullptr ? 0 : ranked_key(widen(rows.hints[row]));
  const uint32_t guess = hint == 0 ? b.lo + (b.hi - b.lo) / 2 : hint;
  b.cut = guess <= b.lo || guess > b.hi ? b.hi : guess;
  return b;
}

// Grid: (2^bits / kSampleBlock, n_rows).
template <typename T>
__global__ void __launch_bounds__(kThreads) topk_sample_kernel(Rows<T> rows, SamplePlan plan, BracketWorkspace w) {
  constexpr int kEach = kSampleBlock / kThreads;
  __shared__ uint32_t counts[2][kBracketBins];
  const int64_t row = blockIdx.y;
  uint32_t* const samples = w.samples + (row << plan.bits);
  uint32_t* const first_counts = w.sample_counts + row * kBracketBins;
  clear_counts(counts[0], kBracketBins);
  float x[kEach];
#pragma unroll
  for (int u = 0; u < kEach; ++u) {
    const int64_t i = int64_t{blockIdx.x} * kSampleBlock + u * kThreads + threadIdx.x;
    x[u] = widen(*single_at(rows, row, sample_position(i, rows.n, plan.bits)).scores);
  }
  __syncthreads();
#pragma unroll
  for (int u = 0; u < kEach; ++u) {
    const uint32_t key = ranked_key(x[u]);
    samples[int64_t{blockIdx.x} * kSampleBlock + u * kThreads + threadIdx.x] = key;
    atomicAdd(&counts[0][key >> 21], 1u);
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBracketBins; bin += kThreads) {
    if (counts[0][bin] > 0) atomicAdd(first_counts + bin, counts[0][bin]);
  }
  BracketState& state = w.states[row];
  if (!is_last_block(&state.sample_done)) return;
  const int64_t last = int64_t{1} << plan.bits;
  Selection ends[2] = {{0, static_cast<Count>(plan.rank_hi < 1 ? 1 : plan.rank_hi), 0},
                       {0, static_cast<Count>(plan.rank_lo > last ? last : plan.rank_lo), 0}};
  rank_sample(plan, first_counts, samples, counts, ends);
  if (threadIdx.x == 0) state.bracket = bracket_of(rows, row, plan, ends);
}

// What a warp has found inside the bracket and not yet listed. Room for many: each listing waits for an atomic that all
// warps of the device share.
struct Stage {
  static constexpr uint32_t kSize = 256;
  uint2* entries;              // [kSize], shared memory
  uint32_t n_staged;           // the same in all lanes
  uint32_t n_upper;            // listed so far by this lane with a key from the cut on

  template <typename T>
  __device__ void list(const Bracket& b, BracketState& state, uint2* listed, Count capacity, uint32_t* bins) {
    const uint32_t lane = threadIdx.x % kWarpSize;
    Count base = lane == 0 ? atomicAdd(&state.n_listed, Count{n_staged}) : 0;
    __syncwarp();  // the entries are in place
    base = __shfl_sync(kAllLanes, base, 0);
    for (uint32_t i = lane; i < n_staged; i += kWarpSize) {
      const uint2 entry = entries[i];
      atomicAdd(bins + bin_of<T>(b, entry.x), 1u);
      if (base + i < capacity) listed[base + i] = entry;
      n_upper += entry.x >= b.cut;
    }
    n_staged = 0;
    __syncwarp();  // before they are written again
  }
};

// What a thread of a split block knows.
struct Split {
  float lo, hi, cut, tie_lo;
  uint2* listed;  // [capacity], of the row
  Stage stage;
  uint32_t n_from_cut = 0, n_equal_hi = 0, n_equal_lo = 0;
  uint32_t pending = 0;  // a bit for each score inside that is not staged yet
};

// kIsAligned: the mask's words are. A loop for each case, since all that a score costs is some ten instructions.
template <bool kHasMask, bool kIsAligned, bool kCountsTies, typename T>
__device__ void split_piece(const Piece<T>& piece, const Bracket& b, BracketState& state, Count capacity, uint32_t* bins,
                            Split& s) {
  const uint32_t lanes_before = (1u << threadIdx.x % kWarpSize) - 1;
  auto take = [&](uint32_t i, const auto& x, bool is_there, int slot) {
    constexpr int kN = sizeof(x) / sizeof(float);
    if (!is_there) return;
    bool kept[kN];
#pragma unroll
    for (int j = 0; j < kN; ++j) {  // as floats, which NaN never passes: half the work of keys
      kept[j] = x[j] >= s.cut;
      s.pending |= x[j] > s.lo && x[j] < s.hi ? 1u << (slot * kN + j) : 0;
    }
    s.n_from_cut += store_mask<kIsAligned>(kHasMask ? piece.mask + i : nullptr, kept);
    if constexpr (kCountsTies) {
#pragma unroll
      for (int j = 0; j < kN; ++j) s.n_equal_hi += x[j] == s.hi, s.n_equal_lo += x[j] == s.tie_lo;
    }
  };
  // One of each lane at a time. Its score is loaded again, from L1, which leaves the registers to the next loads.
  auto stage_pending = [&](uint32_t first) {
    for (unsigned lanes; (lanes = __ballot_sync(kAllLanes, s.pending != 0)) != 0;) {
      if (s.pending != 0) {
        const uint32_t bit = __ffs(static_cast<int>(s.pending)) - 1;
        const uint32_t i = first + bit / kWide<T> * kWide<T> * blockDim.x + bit % kWide<T>;
        s.pending &= s.pending - 1;
        s.stage.entries[s.stage.n_staged + __popc(lanes & lanes_before)] = {
            ranked_key(widen(piece.scores[i])), static_cast<uint32_t>(piece.at) + i};
      }
      s.stage.n_staged += __popc(lanes);
      if (s.stage.n_staged > Stage::kSize - kWarpSize) s.stage.template list<T>(b, state, s.listed, capacity, bins);
    }
  };
  visit(piece, take, stage_pending);
}

// Grid: (n_blocks, n_rows).
template <typename T>
__global__ void __launch_bounds__(kThreads, kSplitBlocks) topk_split_kernel(Rows<T> rows, Plan plan,
                                                                          BracketWorkspace w) {
  __shared__ uint32_t bins[kBracketBins];
  __shared__ uint2 staged[kThreads / kWarpSize][Stage::kSize];
  __shared__ Bracket b;  // not in registers, which are short
  const int64_t row = blockIdx.y;
  BracketState& state = w.states[row];
  if (threadIdx.x == 0) b = state.bracket;
  clear_counts(bins, kBracketBins);
  __syncthreads();
  const bool is_with_ties = has_ties(b, plan.n_blocks, blockIdx.x);
  Split s{};
  s.lo = score_of(b.lo), s.hi = score_of(b.hi);
  s.cut = score_of(is_with_ties ? b.cut : b.hi + 1);  // beyond +infinity NaN, which nothing passes
  s.tie_lo = b.lo == b.hi ? score_of(0) : s.lo;       // NaN: those are counted as hi's
  s.listed = w.listed + row * w.capacity;
  s.stage.entries = staged[threadIdx.x / kWarpSize];
  visit_pieces(rows, plan, row, blockIdx.x, [&](const Piece<T>& piece) {
    const bool is_aligned = (reinterpret_cast<uintptr_t>(piece.mask) + size_to_boundary(piece)) % kWide<T> == 0;
    if (piece.mask == nullptr && b.counts_ties) {
      split_piece<false, true, true>(piece, b, state, w.capacity, bins, s);
    } else if (piece.mask == nullptr) {
      split_piece<false, true, false>(piece, b, state, w.capacity, bins, s);
    } else if (!is_aligned) {
      split_piece<true, false, true>(piece, b, state, w.capacity, bins, s);
    } else if (b.counts_ties) {
      split_piece<true, true, true>(piece, b, state, w.capacity, bins, s);
    } else {
      split_piece<true, true, false>(piece, b, state, w.capacity, bins, s);
    }
  });
  if (s.stage.n_staged > 0) s.stage.template list<T>(b, state, s.listed, w.capacity, bins);
  const Count n_below_cut = is_with_ties ? 0 : s.n_equal_hi;  // though not below hi
  const Count n_from_hi = block_scan(s.n_from_cut + n_below_cut - s.stage.n_upper).total;  // modulo 2^64
  const Count ties = block_scan(Count{s.n_equal_hi} << 32 | s.n_equal_lo).total;  // also waits for the bins
  const auto n_hi = static_cast<uint32_t>(ties >> 32), n_lo = static_cast<uint32_t>(ties);
  const int64_t block = row * plan.n_blocks + blockIdx.x;
  if (threadIdx.x == 0) {
    atomicAdd(&state.n_from_hi, n_from_hi);
    if (n_hi > 0) atomicAdd(&state.n_equal_hi, Count{n_hi});
    if (n_lo > 0) atomicAdd(&state.n_equal_lo, Count{n_lo});
    w.tie_counts[block] = {n_hi, n_lo};
  }
  for (int bin = threadIdx.x; bin < kBracketBins; bin += blockDim.x) {
    if (bins[bin] > 0) atomicAdd(w.bin_counts + row * kBracketBins + bin, bins[bin]);
    if (b.shift == 0) w.block_bins[block * kBracketBins + bin] = bins[bin];
  }
}

}  // namespace
}  // namespace pns
