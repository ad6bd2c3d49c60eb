// topk_mask on CUDA: radix select on an order-preserving 32-bit key. A pass counts one digit of the keys that share
// the digits found so far; the bin of the k-th largest is the next digit. After the last pass the threshold is exact.
//
// Many or short rows: a block owns a row and does everything in one launch. Few long rows: a block owns a contiguous
// chunk of a row, one launch a digit (11 + 11 + 10 bits), then one for the mask. Contiguous chunks put the ties in
// index order: a block keeps what the chunks before it left over.
// Bytes moved per score: 4 reads of 4 (three digits, mask; five where a block owns a row, after the first mostly from
// L2), 1 written. All counters are integers, so atomics in any order give the same mask.
#include "kernels/topk_mask/topk_mask_cuda.h"

#include <algorithm>
#include <cstring>

#include "core/cuda_check.cuh"

namespace pns {
namespace {

using Count = unsigned long long;  // the 64-bit type atomicAdd takes

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kWarpSize = 32;
constexpr int kThreads = 512;       // a chunk's block: 4 fill an SM's 2,048 threads at the 32 registers it takes
constexpr int kRowThreads = 256;    // a row's block takes 48 registers: 5 blocks an SM, where of 512 threads only 2 fit
constexpr int kSmallThreads = 128;  // a row of at most kSmallRow scores has no work for more
constexpr int64_t kSmallRow = 2048;
// Lanes 0 to 3 count into counters of their own, in different banks: equal digits are frequent (11 bits of a normal
// sample fall into some 30 bins) and atomics on one address wait for each other.
constexpr int kCopies = 4;
constexpr int kUnroll = 4;  // loads of 16 bytes in flight a thread: 128 KB an SM, above latency x bandwidth (23 KB)

// Derived from the numbers given, not measured yet.
constexpr int64_t kMaxBlocks = 4 * 132;          // one wave on the 132 SMs of an H100 or H200
constexpr int64_t kRowsFillDevice = 256;         // about two rows an SM: no need to split them
constexpr int64_t kMinChunk = int64_t{1} << 14;  // 64 KB: below that, clearing and merging counters dominate
constexpr int64_t kMaxChunk = int64_t{1} << 30;  // positions in a chunk and a block's counters are 32 bits wide
constexpr int64_t kChunkMultiple = 128;          // a chunk starts on a 128-byte line of the mask

// The digits of a 32-bit key, highest first; the last one takes the bits left over.
template <int kBits>
struct Digits {
  static constexpr int kBins = 1 << kBits;
  static constexpr int kPasses = (32 + kBits - 1) / kBits;
  static constexpr int kLastBins = 1 << (32 - kBits * (kPasses - 1));
  __host__ __device__ static int n_bins(int pass) { return pass == kPasses - 1 ? kLastBins : kBins; }
  __host__ __device__ static int shift(int pass) { return pass == kPasses - 1 ? 0 : 32 - kBits * (pass + 1); }
  // The bits found before `pass`.
  __host__ __device__ static uint32_t prefix_mask(int pass) { return pass == 0 ? 0 : ~0u << (32 - kBits * pass); }
};
using RowDigits = Digits<8>;     // 4 KB of counters: short rows would spend their time on clearing more
using ChunkDigits = Digits<11>;  // a pass fewer

// NaN is 0, below -infinity (0x007FFFFF); -0 equals +0. On the bits alone, so no float option changes it.
__host__ __device__ inline uint32_t ranked_key(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0;
  if (magnitude == 0) bits = 0;
  return bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
}

// What is known of the threshold: its first digits (in place), and among the keys that share them its rank from the
// top, counted from 1. After the last digit, `rank` is how many of the `n_equal` equal scores belong to the k largest.
struct Selection {
  uint32_t prefix;
  Count rank;
  Count n_equal;
};

struct Chunk {
  const float* scores;
  uint8_t* mask;
  uint32_t size;
};

struct Rows {
  const float* scores;
  uint8_t* mask;
  int64_t n_rows, n;
  Count rank;  // of the threshold from the top, counted from 1
  bool keeps_ties;
};

struct Plan {
  bool is_one_block;  // a row
  int n_threads;      // a block
  int64_t n_blocks;   // a row
  int64_t chunk;
};

struct Workspace {
  Count* totals;           // [n_rows, kPasses, kBins]
  Selection* selections;   // [n_rows, kPasses]: before each pass
  uint32_t* block_counts;  // [n_rows, n_blocks, kLastBins]: of the last digit
};

template <typename T>
__host__ __device__ T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

__host__ __device__ inline Chunk chunk_of(const Rows& rows, const Plan& plan, int64_t row, int64_t block) {
  const int64_t begin = block * plan.chunk;
  const int64_t size = rows.n - begin < plan.chunk ? rows.n - begin : plan.chunk;
  const int64_t at = row * rows.n + begin;
  return {rows.scores + at, rows.mask + at, static_cast<uint32_t>(size)};
}

// one(i) for the scores before the first and after the last 16-byte boundary, four(i, scores) for those between.
template <typename One, typename Four>
__device__ void visit(const Chunk& c, One one, Four four) {
  const uint32_t misaligned = reinterpret_cast<uintptr_t>(c.scores) / sizeof(float) % 4;
  const uint32_t to_boundary = (4 - misaligned) % 4;
  const uint32_t head = to_boundary < c.size ? to_boundary : c.size;
  const uint32_t n_quads = (c.size - head) / 4;
  if (threadIdx.x < c.size - 4 * n_quads) {  // at most 6
    one(threadIdx.x < head ? threadIdx.x : threadIdx.x + 4 * n_quads);
  }
  const float4* quads = reinterpret_cast<const float4*>(c.scores + head);
  uint32_t q = threadIdx.x;
  for (; q + (kUnroll - 1) * blockDim.x < n_quads; q += kUnroll * blockDim.x) {
    float4 loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) loaded[u] = quads[q + u * blockDim.x];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) four(head + 4 * (q + u * blockDim.x), loaded[u]);
  }
  for (; q < n_quads; q += blockDim.x) four(head + 4 * q, quads[q]);
}

struct Scan {
  Count before;  // the sum over the threads before this one
  Count total;
};

__device__ Scan block_scan(Count value) {
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

// counts: [n_bins][kCopies], cleared. A thread adds a run of equal digits at once: scores that tie in bulk (zeros of
// pruned weights) would otherwise queue at one counter.
__device__ void count_digits(const Chunk& c, uint32_t prefix, uint32_t prefix_mask, int shift, int n_bins,
                             uint32_t* counts) {
  uint32_t* own = counts + threadIdx.x % kCopies;
  uint32_t run_bin = 0, run_length = 0;
  auto end_run = [&] {
    if (run_length > 0) atomicAdd(own + run_bin * kCopies, run_length);
  };
  auto add = [&](float x) {
    const uint32_t key = ranked_key(x);
    if ((key & prefix_mask) != prefix) return;
    const uint32_t bin = (key >> shift) & (n_bins - 1);
    if (bin != run_bin) {
      end_run();
      run_bin = bin;
      run_length = 0;
    }
    ++run_length;
  };
  visit(
      c, [&](uint32_t i) { add(c.scores[i]); },
      [&](uint32_t, float4 x) {
        add(x.x);
        add(x.y);
        add(x.z);
        add(x.w);
      });
  end_run();
}

__device__ void clear_counts(uint32_t* counts, int n_bins) {
  for (int i = threadIdx.x; i < n_bins * kCopies; i += blockDim.x) counts[i] = 0;
}

__device__ uint32_t sum_copies(const uint32_t* counts, int bin) {
  uint32_t sum = 0;
  for (int copy = 0; copy < kCopies; ++copy) sum += counts[bin * kCopies + copy];
  return sum;
}

// The next digit: the bin of the threshold, from the counts of the keys that share `known.prefix`. Same in all threads.
template <typename CountOf>
__device__ Selection select_digit(const Selection& known, int n_bins, int shift, CountOf count_of) {
  __shared__ Selection found;
  const int per_thread = ceil_div<int>(n_bins, blockDim.x);
  const int top = n_bins - 1 - static_cast<int>(threadIdx.x) * per_thread;
  Count sum = 0;
  for (int bin = top; bin > top - per_thread && bin >= 0; --bin) sum += count_of(bin);
  Count above = block_scan(sum).before;
  if (above < known.rank && known.rank <= above + sum) {  // one thread
    int bin = top;
    Count in_bin = count_of(bin);
    while (known.rank > above + in_bin) {
      above += in_bin;
      in_bin = count_of(--bin);
    }
    found = {known.prefix | static_cast<uint32_t>(bin) << shift, known.rank - above, in_bin};
  }
  __syncthreads();
  return found;  // not written again before the two barriers of the next scan
}

__device__ void write_from(const Chunk& c, uint32_t lowest_kept) {
  auto is_kept = [&](float x) -> unsigned char { return ranked_key(x) >= lowest_kept; };
  visit(
      c, [&](uint32_t i) { c.mask[i] = is_kept(c.scores[i]); },
      [&](uint32_t i, float4 x) {
        const uchar4 kept = {is_kept(x.x), is_kept(x.y), is_kept(x.z), is_kept(x.w)};
        uint8_t* out = c.mask + i;
        if (reinterpret_cast<uintptr_t>(out) % 4 == 0) {  // the same in all threads
          *reinterpret_cast<uchar4*>(out) = kept;
        } else {
          out[0] = kept.x, out[1] = kept.y, out[2] = kept.z, out[3] = kept.w;
        }
      });
}

// Keeps the first n_kept of the scores equal to the threshold. Each warp owns a contiguous piece, so the block waits
// only once, for the counts of the pieces before.
__device__ void write_first_equal(const Chunk& c, uint32_t threshold, Count n_kept) {
  const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const uint32_t n_warps = blockDim.x / kWarpSize;
  const uint32_t piece = ceil_div<uint32_t>(c.size, n_warps * kWarpSize) * kWarpSize;
  const uint32_t begin = warp * piece;
  const uint32_t end = begin + piece < c.size ? begin + piece : c.size;
  Count n_equal = 0;
#pragma unroll 4
  for (uint32_t i = begin + lane; i < end; i += kWarpSize) n_equal += ranked_key(c.scores[i]) == threshold;
  Count rank = __shfl_sync(kAllLanes, block_scan(n_equal).before, 0);  // from 0, of the next equal score
  for (uint32_t i = begin; i < end; i += kUnroll * kWarpSize) {
    uint32_t keys[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t at = i + u * kWarpSize + lane;
      keys[u] = at < end ? ranked_key(c.scores[at]) : 0;
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t at = i + u * kWarpSize + lane;
      const bool is_equal = at < end && keys[u] == threshold;
      const unsigned equals = __ballot_sync(kAllLanes, is_equal);
      const Count own_rank = rank + __popc(equals & ((1u << lane) - 1));
      if (at < end) c.mask[at] = keys[u] > threshold || (is_equal && own_rank < n_kept);
      rank += __popc(equals);
    }
  }
}

// n_equal and n_kept (at most n_equal): those of this chunk, the same in all threads.
__device__ void write_mask(const Chunk& c, uint32_t threshold, Count n_equal, Count n_kept) {
  if (n_kept == 0 || n_kept == n_equal) {
    write_from(c, threshold + (n_kept == 0));  // no overflow: no key lies above that of +infinity
  } else {
    write_first_equal(c, threshold, n_kept);
  }
}

__global__ void __launch_bounds__(kRowThreads) topk_rows_kernel(Rows rows, Plan plan) {
  using D = RowDigits;
  __shared__ uint32_t counts[D::kBins * kCopies];
  for (int64_t row = blockIdx.x; row < rows.n_rows; row += gridDim.x) {
    const Chunk c = chunk_of(rows, plan, row, 0);
    Selection selection{0, rows.rank, 0};
    for (int pass = 0; pass < D::kPasses; ++pass) {
      clear_counts(counts, D::n_bins(pass));
      __syncthreads();
      count_digits(c, selection.prefix, D::prefix_mask(pass), D::shift(pass), D::n_bins(pass), counts);
      __syncthreads();
      selection = select_digit(selection, D::n_bins(pass), D::shift(pass),
                               [&](int bin) { return Count{sum_copies(counts, bin)}; });
    }
    write_mask(c, selection.prefix, selection.n_equal, rows.keeps_ties ? selection.rank : 0);
  }
}

// The selection before `pass` of the row blockIdx.y. Every block computes it, from what the launch before left: cheaper
// than a launch of its own, and no block waits for another.
__device__ Selection selection_before(const Rows& rows, const Workspace& w, int pass) {
  using D = ChunkDigits;
  if (pass == 0) return {0, rows.rank, 0};
  const int64_t at = int64_t{blockIdx.y} * D::kPasses + pass - 1;
  const Count* totals = w.totals + at * D::kBins;
  return select_digit(w.selections[at], D::n_bins(pass - 1), D::shift(pass - 1), [&](int bin) { return totals[bin]; });
}

__global__ void __launch_bounds__(kThreads) topk_count_kernel(Rows rows, Plan plan, Workspace w, int pass) {
  using D = ChunkDigits;
  __shared__ uint32_t counts[D::kBins * kCopies];
  const int64_t row = blockIdx.y, at = row * D::kPasses + pass;
  const int n_bins = D::n_bins(pass);
  const Selection selection = selection_before(rows, w, pass);
  if (blockIdx.x == 0 && threadIdx.x == 0) w.selections[at] = selection;
  clear_counts(counts, n_bins);
  __syncthreads();
  count_digits(chunk_of(rows, plan, row, blockIdx.x), selection.prefix, D::prefix_mask(pass), D::shift(pass), n_bins,
               counts);
  __syncthreads();
  for (int bin = threadIdx.x; bin < n_bins; bin += blockDim.x) {
    const uint32_t sum = sum_copies(counts, bin);
    if (sum > 0) atomicAdd(w.totals + at * D::kBins + bin, Count{sum});
    if (pass == D::kPasses - 1) w.block_counts[(row * plan.n_blocks + blockIdx.x) * D::kLastBins + bin] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) topk_write_kernel(Rows rows, Plan plan, Workspace w) {
  using D = ChunkDigits;
  const int64_t row = blockIdx.y;
  const Selection selection = selection_before(rows, w, D::kPasses);
  // Block b's at b * kLastBins.
  const uint32_t* equal_counts = w.block_counts + row * plan.n_blocks * D::kLastBins + selection.prefix % D::kLastBins;
  Count before = 0;
  for (int64_t b = threadIdx.x; b < blockIdx.x; b += blockDim.x) before += equal_counts[b * D::kLastBins];
  before = block_scan(before).total;
  const Count n_equal = equal_counts[int64_t{blockIdx.x} * D::kLastBins];
  const Count kept = rows.keeps_ties ? selection.rank : 0;
  const Count left = kept > before ? kept - before : 0;
  write_mask(chunk_of(rows, plan, row, blockIdx.x), selection.prefix, n_equal, left < n_equal ? left : n_equal);
}

// A function of the sizes alone: the workspace is asked for without a device. 1 <= n.
Plan make_plan(int64_t n_rows, int64_t n) {
  if (n <= kMinChunk || (n_rows >= kRowsFillDevice && n <= kMaxChunk)) {
    return {true, n <= kSmallRow ? kSmallThreads : kRowThreads, 1, n};
  }
  int64_t n_blocks = std::min(ceil_div(n, kMinChunk), std::max<int64_t>(1, kMaxBlocks / n_rows));
  n_blocks = std::max(n_blocks, ceil_div(n, kMaxChunk));
  const int64_t chunk = ceil_div(ceil_div(n, n_blocks), kChunkMultiple) * kChunkMultiple;
  return {false, kThreads, ceil_div(n, chunk), chunk};
}

size_t totals_bytes(int64_t n_rows) {
  return n_rows * ChunkDigits::kPasses * ChunkDigits::kBins * sizeof(Count);
}

size_t selections_bytes(int64_t n_rows) { return n_rows * ChunkDigits::kPasses * sizeof(Selection); }

size_t workspace_bytes(int64_t n_rows, const Plan& plan) {
  if (plan.is_one_block) return 0;
  return totals_bytes(n_rows) + selections_bytes(n_rows) +
         n_rows * plan.n_blocks * ChunkDigits::kLastBins * sizeof(uint32_t);
}

void launch_rows(const Rows& rows, const Plan& plan, cudaStream_t stream) {
  const int64_t max_grid = (int64_t{1} << 31) - 1;
  const dim3 grid(static_cast<unsigned>(std::min(rows.n_rows, max_grid)));
  cuda_launch("topk_mask", {grid, plan.n_threads, stream}, topk_rows_kernel, rows, plan);
}

// Rows in grid.y: at most 65,535. There are fewer than kRowsFillDevice, or each is longer than kMaxChunk and 2^16 of
// them do not fit an address space.
void launch_chunks(const Rows& rows, const Plan& plan, void* workspace, cudaStream_t stream) {
  auto* bytes = static_cast<unsigned char*>(workspace);
  const size_t selections_at = totals_bytes(rows.n_rows), counts_at = selections_at + selections_bytes(rows.n_rows);
  const Workspace w{reinterpret_cast<Count*>(bytes), reinterpret_cast<Selection*>(bytes + selections_at),
                    reinterpret_cast<uint32_t*>(bytes + counts_at)};
  cuda_check("topk_mask", cudaMemsetAsync(w.totals, 0, selections_at, stream));
  const dim3 grid(static_cast<unsigned>(plan.n_blocks), static_cast<unsigned>(rows.n_rows));
  for (int pass = 0; pass < ChunkDigits::kPasses; ++pass) {
    cuda_launch("topk_mask", {grid, plan.n_threads, stream}, topk_count_kernel, rows, plan, w, pass);
  }
  cuda_launch("topk_mask", {grid, plan.n_threads, stream}, topk_write_kernel, rows, plan, w);
}

void launch_plan(const CudaTopkMaskParams& p, const Plan& plan) {
  const bool is_legacy = p.ties == Ties::kLegacy;
  // Legacy cuts at the (n - keep)-th smallest, which is the (keep + 1)-th largest, and drops what equals it.
  const Rows rows{p.scores, p.mask, p.n_rows, p.n, static_cast<Count>(p.keep + is_legacy), !is_legacy};
  if (plan.is_one_block) {
    launch_rows(rows, plan, p.stream);
  } else {
    launch_chunks(rows, plan, p.workspace, p.stream);
  }
}

}  // namespace

int64_t topk_mask_workspace(int64_t n_rows, int64_t n) {
  if (n_rows == 0 || n == 0) return 0;
  return static_cast<int64_t>(workspace_bytes(n_rows, make_plan(n_rows, n)));
}

void launch_topk_mask(const CudaTopkMaskParams& p) {
  if (p.n_rows == 0 || p.n == 0) return;
  const CudaDeviceGuard guard("topk_mask", p.device);
  if (p.keep == 0 || p.keep == p.n) {
    cuda_check("topk_mask", cudaMemsetAsync(p.mask, p.keep == p.n ? 1 : 0, p.n_rows * p.n, p.stream));
    return;
  }
  launch_plan(p, make_plan(p.n_rows, p.n));
}

}  // namespace pns
