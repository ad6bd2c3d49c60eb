// What the kernels of topk_mask share: scores as floats and as keys, a block's piece of a row or of a list, sums over a
// block, digits of keys and their counters, and the mask of a piece once the threshold is known. No kernel of its own.
#pragma once

#include <cstring>

#include "core/cuda_check.cuh"
#include "kernels/topk_mask/topk_mask_cuda.h"

namespace pns {
namespace {

using Count = unsigned long long;  // the 64-bit type atomicAdd takes

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kWarpSize = 32;
constexpr int kThreads = 512;  // a chunk's block
// Lanes 0 to 3 count into counters of their own, in different banks: equal digits are frequent (11 bits of a normal
// sample fall into some 30 bins) and atomics on one address wait for each other.
constexpr int kCopies = 4;

template <typename T>
constexpr int kWide = 16 / sizeof(T);  // scores in a load
// Loads in flight a thread: with 1,024 threads an SM 64 KB, above latency x bandwidth (30 KB). Of half precision, which
// reads less for each byte it writes, half of them: more take more than 64 registers.
template <typename T>
constexpr int kUnroll = sizeof(T) == 4 ? 4 : 2;

template <typename To, typename From>
__host__ __device__ inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// Half precision is ranked as the float it equals.
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(BFloat16 x) { return bits_as<float>(uint32_t{x.bits} << 16); }
__device__ inline float widen(Float16 x) {
#ifdef PNS_EMULATE_CUDA
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7FFFu;
  if (magnitude < 0x400) return (sign != 0 ? -1.0f : 1.0f) * magnitude / (1 << 24);
  const uint32_t exponent_bias = magnitude < 0x7C00 ? 112u << 23 : 224u << 23;
  return bits_as<float>(sign | ((magnitude << 13) + exponent_bias));
#else
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#endif
}

// Of floats that were widened: exact.
__device__ inline void narrow(float x, float* out) { *out = x; }
__device__ inline void narrow(float x, BFloat16* out) { out->bits = static_cast<uint16_t>(bits_as<uint32_t>(x) >> 16); }
__device__ inline void narrow(float x, Float16* out) {
  const uint32_t bits = bits_as<uint32_t>(x), magnitude = bits & 0x7FFFFFFFu;
  uint32_t half = (magnitude >> 13) - (112u << 10);
  if (magnitude < (113u << 23)) half = static_cast<uint32_t>(bits_as<float>(magnitude) * (1 << 24));
  if (magnitude >= 0x7F800000u) half = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  out->bits = static_cast<uint16_t>(half | (bits >> 31) << 15);
}

// In the order of the scores. NaN is 0, below -infinity (0x007FFFFF); -0 equals +0. On the bits alone, so no float
// option changes it.
constexpr uint32_t kLowestKey = 0x007FFFFFu, kHighestKey = 0xFF800000u;  // of the infinities
__host__ __device__ inline uint32_t ranked_key(float x) {
  uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0;
  if (magnitude == 0) bits = 0;
  return bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
}

__host__ __device__ inline float score_of(uint32_t key) {
  if (key == 0) return bits_as<float>(0x7FC00000u);
  return bits_as<float>((key >> 31) != 0 ? key ^ 0x80000000u : ~key);
}

// A tensor of a list; `begin` counts the scores before it. One behind the last has begin = n.
struct Segment {
  const void* scores;
  uint8_t* mask;
  int64_t begin;
};

template <typename T>
struct Rows {
  const T* scores;          // [n_rows, n]
  uint8_t* mask;            // [n_rows, n], or null: only the threshold is wanted
  const Segment* segments;  // of a list, which is one row, or null
  int64_t n_segments;
  int64_t n_rows, n;
  Count rank;  // of the threshold from the top, counted from 1
  bool keeps_ties;
  T* thresholds;  // [n_rows] or null
  const T* hints;  // [n_rows] or null

  __host__ __device__ bool has_mask() const { return mask != nullptr || segments != nullptr; }
};

struct Plan {
  bool is_one_block;  // a row
  int n_threads;      // a block
  int64_t n_blocks;   // a row
  int64_t chunk;
};

// What of one tensor a block owns.
template <typename T>
struct Piece {
  const T* scores;
  uint8_t* mask;
  uint32_t size;
  int64_t at;  // position of its first score in the row
};

template <typename I>
__host__ __device__ I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

__device__ inline int64_t segment_at(const Segment* segments, int64_t n_segments, int64_t position) {
  int64_t low = 0, high = n_segments;  // segments[low].begin <= position < segments[high].begin
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (segments[middle].begin <= position ? low : high) = middle;
  }
  return low;
}

template <typename T>
__device__ Piece<T> piece_at(const Rows<T>& rows, int64_t row, int64_t segment, int64_t begin, int64_t end) {
  if (rows.segments == nullptr) {
    const int64_t at = row * rows.n + begin;
    uint8_t* const mask = rows.mask == nullptr ? nullptr : rows.mask + at;
    return {rows.scores + at, mask, static_cast<uint32_t>(end - begin), begin};
  }
  const Segment s = rows.segments[segment];
  const int64_t next = rows.segments[segment + 1].begin, skipped = begin - s.begin;
  return {static_cast<const T*>(s.scores) + skipped, s.mask + skipped,
          static_cast<uint32_t>((next < end ? next : end) - begin), begin};
}

// work(piece) for what a block owns, in the order of the positions.
template <typename T, typename Work>
__device__ void visit_pieces(const Rows<T>& rows, const Plan& plan, int64_t row, int64_t block, Work work) {
  const int64_t begin = block * plan.chunk;
  const int64_t end = rows.n - begin < plan.chunk ? rows.n : begin + plan.chunk;
  int64_t segment = rows.segments == nullptr ? 0 : segment_at(rows.segments, rows.n_segments, begin);
  for (int64_t at = begin; at < end; ++segment) {
    const Piece<T> piece = piece_at(rows, row, segment, at, end);
    work(piece);
    at += piece.size;
  }
}

template <typename T>
__device__ Piece<T> single_at(const Rows<T>& rows, int64_t row, int64_t position) {
  const bool is_list = rows.segments != nullptr;
  return piece_at(rows, row, is_list ? segment_at(rows.segments, rows.n_segments, position) : 0, position,
                  position + 1);
}

__device__ inline void unpack(uint4 raw, float (&x)[4]) {
  x[0] = bits_as<float>(raw.x), x[1] = bits_as<float>(raw.y);
  x[2] = bits_as<float>(raw.z), x[3] = bits_as<float>(raw.w);
}

template <typename Half>
__device__ void unpack(uint4 raw, float (&x)[8]) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    x[2 * w] = widen(Half{static_cast<uint16_t>(words[w])});
    x[2 * w + 1] = widen(Half{static_cast<uint16_t>(words[w] >> 16)});
  }
}

template <typename T, typename Take>
__device__ void take_raw(uint4 raw, uint32_t i, bool is_there, int slot, Take& take) {
  float x[kWide<T>];
  if constexpr (sizeof(T) == 4) {
    unpack(raw, x);
  } else {
    unpack<T>(raw, x);
  }
  take(i, x, is_there, slot);
}

// The scores of a piece before the first 16-byte boundary.
template <typename T>
__device__ uint32_t size_to_boundary(const Piece<T>& c) {
  const uint32_t misaligned = reinterpret_cast<uintptr_t>(c.scores) / sizeof(T) % kWide<T>;
  return (kWide<T> - misaligned) % kWide<T>;
}

// take(i, x, is_there, slot) for the scores x[0...] at i...: kWide of them at a 16-byte boundary, single ones before the
// first and after the last. After slots 0, 1..., each blockDim.x kWide scores behind the one before, comes after(i of
// slot 0). All lanes of a warp make the same calls, so these may exchange values within a warp.
template <typename T, typename Take, typename After>
__device__ void visit(const Piece<T>& c, Take take, After after) {
  constexpr uint32_t kStep = kWide<T>;
  const uint32_t to_boundary = size_to_boundary(c);
  const uint32_t head = to_boundary < c.size ? to_boundary : c.size;
  const uint32_t n_vectors = (c.size - head) / kStep;
  if (threadIdx.x < kWarpSize) {  // at most 14 single scores
    const bool is_there = threadIdx.x < c.size - kStep * n_vectors;
    const uint32_t i = threadIdx.x < head ? threadIdx.x : threadIdx.x + kStep * n_vectors;
    const float x[1] = {is_there ? widen(c.scores[i]) : 0.0f};
    take(i, x, is_there, 0);
    after(i);
  }
  const uint4* vectors = reinterpret_cast<const uint4*>(c.scores + head);
  const uint32_t lane = threadIdx.x % kWarpSize;
  uint32_t v = threadIdx.x - lane;
  uint4 raw[kUnroll<T>];
  auto load = [&] {
    if (v + (kUnroll<T> - 1) * blockDim.x + kWarpSize > n_vectors) return false;
#pragma unroll
    for (int u = 0; u < kUnroll<T>; ++u) raw[u] = vectors[v + u * blockDim.x + lane];
    return true;
  };
  for (bool is_loaded = load(); is_loaded;) {
    const uint32_t first = v + lane;
#pragma unroll
    for (int u = 0; u < kUnroll<T>; ++u) take_raw<T>(raw[u], head + kStep * (first + u * blockDim.x), true, u, take);
    v += kUnroll<T> * blockDim.x;
    is_loaded = load();  // in flight while the warp is busy with what it took
    after(head + kStep * first);
  }
  for (; v < n_vectors; v += blockDim.x) {
    const bool is_there = v + lane < n_vectors;
    raw[0] = is_there ? vectors[v + lane] : uint4{0, 0, 0, 0};
    take_raw<T>(raw[0], head + kStep * (v + lane), is_there, 0, take);
    after(head + kStep * (v + lane));
  }
}

template <typename T, typename Take>
__device__ void visit(const Piece<T>& c, Take take) {
  visit(c, [&](uint32_t i, const auto& x, bool is_there, int) { take(i, x, is_there); }, [](uint32_t) {});
}

// Writes the mask of kN scores, unless out is null, and returns how many are kept. kIsAligned: out is, to kN bytes.
template <bool kIsAligned = false, int kN>
__device__ uint32_t store_mask(uint8_t* out, const bool (&kept)[kN]) {
  uint32_t words[(kN + 3) / 4] = {}, n_kept = 0;
#pragma unroll
  for (int j = 0; j < kN; ++j) words[j / 4] |= kept[j] ? 1u << 8 * (j % 4) : 0;
#pragma unroll
  for (uint32_t word : words) n_kept += __popc(word);
  if (out == nullptr) return n_kept;
  if (kN == 1 || (!kIsAligned && reinterpret_cast<uintptr_t>(out) % kN != 0)) {  // the same for all vectors of a piece
#pragma unroll
    for (int j = 0; j < kN; ++j) out[j] = kept[j];
  } else if constexpr (kN == 4) {
    *reinterpret_cast<uint32_t*>(out) = words[0];
  } else if constexpr (kN == 8) {
    *reinterpret_cast<uint2*>(out) = {words[0], words[1]};
  }
  return n_kept;
}

struct Scan {
  Count before;  // the sum over the threads before this one
  Count total;
};

__device__ inline Scan block_scan(Count value) {
  __shared__ Count warp_sums[kThreads / kWarpSize];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int n_warps = blockDim.x / kWarpSize;
  Count sum = value;
  for (int step = 1; step < kWarpSize; step *= 2) {
    const Count below = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == kWarpSize - 1) warp_sums[warp] = sum;
  __syncthreads();
  Scan scan{sum - value, 0};
  for (int w = 0; w < n_warps; ++w) {
    if (w < warp) scan.before += warp_sums[w];
    scan.total += warp_sums[w];
  }
  __syncthreads();  // warp_sums may be written again
  return scan;
}

// Counts a run of equal bins at once: scores that tie in bulk (zeros of pruned weights) would otherwise queue at one
// counter.
struct RunCounter {
  uint32_t* counts;
  int stride;
  uint32_t bin = 0, length = 0;

  __device__ void add(uint32_t next) {
    if (next != bin) {
      end();
      bin = next;
      length = 0;
    }
    ++length;
  }
  __device__ void end() {
    if (length > 0) atomicAdd(counts + bin * stride, length);
  }
};

__device__ inline void clear_counts(uint32_t* counts, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) counts[i] = 0;
}

struct Bin {
  int bin;
  Count rank;     // of what was looked for, among the keys of this bin
  Count n_equal;  // keys in it
};

// The bin of the key of this rank, bins counted from the top. Same in all threads.
template <typename CountOf>
__device__ Bin find_bin(int n_bins, Count rank, CountOf count_of) {
  __shared__ Bin found;
  const int per_thread = ceil_div<int>(n_bins, blockDim.x);
  const int top = n_bins - 1 - static_cast<int>(threadIdx.x) * per_thread;
  Count sum = 0;
  for (int bin = top; bin > top - per_thread && bin >= 0; --bin) sum += count_of(bin);
  Count above = block_scan(sum).before;
  if (above < rank && rank <= above + sum) {  // one thread
    int bin = top;
    Count in_bin = count_of(bin);
    while (rank > above + in_bin) {
      above += in_bin;
      in_bin = count_of(--bin);
    }
    found = {bin, rank - above, in_bin};
  }
  __syncthreads();
  return found;  // not written again before the two barriers of the next scan
}

// What is known of the threshold: its first digits (in place), and among the keys that share them its rank from the
// top, counted from 1. After the last digit, `rank` is how many of the `n_equal` equal scores belong to the k largest.
struct Selection {
  uint32_t prefix;
  Count rank;
  Count n_equal;
};

template <typename CountOf>
__device__ Selection select_digit(const Selection& known, int n_bins, int shift, CountOf count_of) {
  const Bin found = find_bin(n_bins, known.rank, count_of);
  return {known.prefix | static_cast<uint32_t>(found.bin) << shift, found.rank, found.n_equal};
}

template <typename T>
__device__ void write_from(const Piece<T>& c, uint32_t lowest_kept) {
  visit(c, [&](uint32_t i, const auto& x, bool is_there) {
    constexpr int kN = sizeof(x) / sizeof(float);
    if (!is_there) return;
    bool kept[kN];
#pragma unroll
    for (int j = 0; j < kN; ++j) kept[j] = ranked_key(x[j]) >= lowest_kept;
    store_mask(c.mask + i, kept);
  });
}

// Keeps the first n_kept of the scores equal to the threshold and returns how many there are. Each warp owns a
// contiguous part, so the block waits only once, for the counts of the parts before. kAhead loads in flight.
template <int kAhead, typename T>
__device__ Count write_first_equal(const Piece<T>& c, uint32_t threshold, Count n_kept) {
  const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const uint32_t n_warps = blockDim.x / kWarpSize;
  const uint32_t part = ceil_div<uint32_t>(c.size, n_warps * kWarpSize) * kWarpSize;
  const uint32_t begin = warp * part < c.size ? warp * part : c.size;
  const uint32_t end = c.size - begin < part ? c.size : begin + part;
  Count n_equal = 0;
#pragma unroll kAhead
  for (uint32_t i = begin + lane; i < end; i += kWarpSize) n_equal += ranked_key(widen(c.scores[i])) == threshold;
  const Scan scan = block_scan(n_equal);
  Count rank = __shfl_sync(kAllLanes, scan.before, 0);  // from 0, of the next equal score
  for (uint32_t i = begin; i < end; i += kAhead * kWarpSize) {
    uint32_t keys[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const uint32_t at = i + u * kWarpSize + lane;
      keys[u] = at < end ? ranked_key(widen(c.scores[at])) : 0;
    }
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      const uint32_t at = i + u * kWarpSize + lane;
      const bool is_equal = at < end && keys[u] == threshold;
      const unsigned equals = __ballot_sync(kAllLanes, is_equal);
      const Count own_rank = rank + __popc(equals & ((1u << lane) - 1));
      if (at < end) c.mask[at] = keys[u] > threshold || (is_equal && own_rank < n_kept);
      rank += __popc(equals);
    }
  }
  return scan.total;
}

// n_equal and n_kept (at most n_equal): those of this block's scores, the same in all threads.
template <int kAhead, typename T>
__device__ void write_mask(const Rows<T>& rows, const Plan& plan, int64_t row, int64_t block, uint32_t threshold,
                           Count n_equal, Count n_kept) {
  const bool is_uniform = n_kept == 0 || n_kept == n_equal;
  const uint32_t lowest_kept = threshold + (n_kept == 0);  // no overflow: no key lies above that of +infinity
  Count left = n_kept;
  visit_pieces(rows, plan, row, block, [&](const Piece<T>& piece) {
    if (is_uniform) {
      write_from(piece, lowest_kept);
    } else {
      const Count equals = write_first_equal<kAhead>(piece, threshold, left);
      left -= left < equals ? left : equals;
    }
  });
}

}  // namespace
}  // namespace pns
