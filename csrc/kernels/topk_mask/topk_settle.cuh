// The last step of long rows on CUDA: the threshold among the scores listed inside the bracket (topk_bracket.cuh).
//
// All blocks go over the list, 8 bytes an entry, and correct the mask where its first cut was wrong; entries in the bin of
// the threshold are put aside, some hundred, which the block that ends last ranks. Ends of the bracket that tie in bulk
// are left to topk_write_kernel. Shared memory: 8 KB of entries or of counters.
#pragma once

#include "kernels/topk_mask/topk_bracket.cuh"

namespace pns {
namespace {

// Where the threshold lies, and what is known of it. rank: of the threshold within where it lies.
enum class Where { kMissed, kAtHi, kInside, kAtLo };

struct Place {
  Where where;
  Count rank;
};

__device__ inline Place place_of(const BracketState& s, Count rank, Count capacity) {
  const Count above_hi = s.n_from_hi - s.n_equal_hi, above_lo = s.n_from_hi + s.n_listed;
  if (rank <= above_hi || rank > above_lo + s.n_equal_lo || s.n_listed > capacity) return {Where::kMissed, 0};
  if (rank <= s.n_from_hi) return {Where::kAtHi, rank - above_hi};
  if (rank <= above_lo) return {Where::kInside, rank - s.n_from_hi};
  return {Where::kAtLo, rank - above_lo};
}

// The bin of the threshold. Where it holds one key, ties are cut at a block, and only that block's remain to be ranked.
struct BinCut {
  Bin bin;
  bool is_one_key;
  int64_t block;
  Count rank, n_left;  // of the entries that remain, how many and which is the last kept
};

template <typename T>
__device__ BinCut cut_bins(const Rows<T>& rows, const Plan& plan, const BracketWorkspace& w, Count rank, int shift) {
  const int64_t row = blockIdx.y;
  const uint32_t* bin_counts = w.bin_counts + row * kBracketBins;
  BinCut cut{find_bin(kBracketBins, rank, [&](int bin) { return Count{bin_counts[bin]}; }), shift == 0, -1, 0, 0};
  cut.rank = cut.bin.rank, cut.n_left = cut.bin.n_equal;
  if (!cut.is_one_key) return cut;
  if (!rows.keeps_ties) {
    cut.n_left = 0;
    return cut;
  }
  const uint32_t* in_block = w.block_bins + row * plan.n_blocks * kBracketBins + cut.bin.bin;
  const int n_blocks = static_cast<int>(plan.n_blocks);  // the first block is the top bin
  const Bin block = find_bin(n_blocks, cut.bin.rank, [&](int b) {
    return Count{in_block[int64_t{n_blocks - 1 - b} * kBracketBins]};
  });
  cut.block = n_blocks - 1 - block.bin;
  cut.rank = block.rank, cut.n_left = block.n_equal;
  return cut;
}

// Corrects the mask where the cut it was written with was wrong.
template <typename T>
__device__ void settle(const Rows<T>& rows, int64_t row, const Bracket& b, uint2 entry, bool is_kept) {
  if (rows.has_mask() && is_kept != (entry.x >= b.cut)) *single_at(rows, row, entry.y).mask = is_kept;
}

// What is left of a bin, ranked by key and then the lowest position: by (key in the bin, ~position), no two of them equal.
__device__ inline Count composite_of(uint2 entry, uint32_t lowest) { return Count{entry.x - lowest} << 32 | ~entry.y; }

// The composite of the last one kept: few are compared in pairs, many take a pass for each 11 bits.
__device__ inline Count last_kept(const uint2* close, uint32_t lowest, Count n, Count rank, int n_bits) {
  __shared__ Count few[kFewClose];
  __shared__ Count last;
  auto* const counts = reinterpret_cast<uint32_t*>(few);
  if (n <= kFewClose) {
    for (Count i = threadIdx.x; i < n; i += blockDim.x) few[i] = composite_of(__ldcg(close + i), lowest);
    __syncthreads();
    for (Count i = threadIdx.x; i < n; i += blockDim.x) {
      const Count own = few[i];
      uint32_t n_above = 0;
#pragma unroll 4
      for (uint32_t j = 0; j < static_cast<uint32_t>(n); ++j) n_above += few[j] > own;
      if (n_above == rank - 1) last = own;  // one thread
    }
    __syncthreads();
    return last;
  }
  Count prefix = 0;
  while (n_bits > 0) {
    const int width = n_bits < 11 ? n_bits : 11, above = n_bits;
    n_bits -= width;
    clear_counts(counts, 1 << width);
    __syncthreads();
    for (Count i = threadIdx.x; i < n; i += blockDim.x) {
      const Count c = composite_of(__ldcg(close + i), lowest);
      if (c >> above == prefix) atomicAdd(counts + ((c >> n_bits) & ((1u << width) - 1)), 1u);
    }
    __syncthreads();
    const Bin found = find_bin(1 << width, rank, [&](int bin) { return Count{counts[bin]}; });
    prefix = prefix << width | static_cast<Count>(found.bin);
    rank = found.rank;
  }
  return prefix;
}

template <typename T>
__device__ uint32_t settle_close(const Rows<T>& rows, const Bracket& b, const uint2* close, const BinCut& cut) {
  const uint32_t lowest = lowest_in<T>(b, cut.bin.bin);
  const Count last = last_kept(close, lowest, cut.n_left, cut.rank, 32 + b.shift + kIdleBits<T>);
  const uint32_t threshold = lowest + static_cast<uint32_t>(last >> 32);
  for (Count i = threadIdx.x; i < cut.n_left; i += blockDim.x) {
    const uint2 entry = __ldcg(close + i);
    const bool is_kept = rows.keeps_ties ? composite_of(entry, lowest) >= last : entry.x > threshold;
    settle(rows, blockIdx.y, b, entry, is_kept);
  }
  return threshold;
}

// By one thread of one block: what the later launches go by.
template <typename T>
__device__ void write_outcome(const Rows<T>& rows, int64_t row, const Place& place, const BinCut& cut,
                              BracketState* state) {
  const Bracket& b = state->bracket;
  const bool is_hi = place.where == Where::kAtHi, is_inside = place.where == Where::kInside;
  if (place.where == Where::kMissed || (is_inside && cut.n_left > kMaxClose)) {
    state->outcome = Outcome::kFailed;
    return;
  }
  const uint32_t threshold = is_hi ? b.hi : is_inside ? key_in<T>(b, cut.bin.bin) : b.lo;
  if (!is_inside) {
    state->outcome = Outcome::kTies;
    state->n_kept = rows.keeps_ties ? place.rank : 0;
    state->threshold = threshold;
  }
  const bool is_known = !is_inside || cut.n_left == 0;
  if (is_known && rows.thresholds != nullptr) narrow(score_of(threshold), rows.thresholds + row);
}

// A listed score on the right side of the threshold; those that share its bin and are not yet ranked go to `close`.
template <typename T>
__device__ void settle_listed(const Rows<T>& rows, const Plan& plan, const BracketWorkspace& w, const Bracket& b,
                              const Place& place, const BinCut& cut, uint2 entry) {
  const int64_t row = blockIdx.y;
  bool is_kept = place.where == Where::kAtLo, is_open = false;
  if (place.where == Where::kInside) {
    const int bin = bin_of<T>(b, entry.x);
    const int64_t block = cut.is_one_key && bin == cut.bin.bin ? int64_t{entry.y} / plan.chunk : -1;
    is_kept = bin > cut.bin.bin || (block >= 0 && block < cut.block);
    is_open = bin == cut.bin.bin && cut.n_left > 0 && block <= cut.block && !is_kept;
  }
  if (is_open) {
    w.close[row * kMaxClose + atomicAdd(&w.states[row].n_close, 1u)] = entry;
  } else {
    settle(rows, row, b, entry, is_kept);
  }
}

// By all blocks of a grid (any, n_rows). False: nothing is settled, the radix passes have to.
template <typename T>
__device__ bool settle_row(const Rows<T>& rows, const Plan& plan, const BracketWorkspace& w) {
  const int64_t row = blockIdx.y;
  BracketState& state = w.states[row];
  const Bracket b = state.bracket;
  const Place place = place_of(state, rows.rank, w.capacity);
  BinCut cut{};
  if (place.where == Where::kInside) cut = cut_bins(rows, plan, w, place.rank, b.shift);
  if (blockIdx.x == 0 && threadIdx.x == 0) write_outcome(rows, row, place, cut, &state);
  if (place.where == Where::kMissed || cut.n_left > kMaxClose) return false;
  const uint2* const listed = w.listed + row * w.capacity;
  const Count n_listed = state.n_listed, step = Count{gridDim.x} * blockDim.x;
  constexpr int kAhead = 4;  // loads in flight
  for (Count i = Count{blockIdx.x} * blockDim.x + threadIdx.x; i < n_listed; i += kAhead * step) {
    uint2 entries[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) entries[u] = i + u * step < n_listed ? listed[i + u * step] : uint2{0, 0};
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (i + u * step < n_listed) settle_listed(rows, plan, w, b, place, cut, entries[u]);
    }
  }
  if (cut.n_left == 0 || !is_last_block(&state.settle_done)) return true;
  const uint32_t threshold = settle_close(rows, b, w.close + row * kMaxClose, cut);
  if (threadIdx.x == 0 && rows.thresholds != nullptr) narrow(score_of(threshold), rows.thresholds + row);
  return true;
}

}  // namespace
}  // namespace pns
