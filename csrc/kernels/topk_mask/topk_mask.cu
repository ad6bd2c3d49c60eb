// topk_mask on CUDA: radix select on an order-preserving 32-bit key. A pass counts one digit of the keys that share
// the digits found so far; the bin of the k-th largest is the next digit. After the last pass the threshold is exact.
//
// Many or short rows: a block owns a row and does everything in one launch. Longer rows: a block owns a contiguous
// chunk of a row, one launch a digit (11 + 11 + 10 bits), then one for the mask. Contiguous chunks put the ties in
// index order: a block keeps what the chunks before it left over. From 2 M scores on a sample comes first
// (topk_bracket.cuh, topk_settle.cuh), and the passes return at once unless it failed: nobody waits for the device to
// decide. The first of them shares a launch with the end of the sample's way.
// Bytes moved per float32 score: with a sample 4 read and 1 written; else 4 reads of 4 (five where a block owns a row,
// after the first mostly from L2). All counters are integers, so atomics in any order give the same mask. At most 64
// registers; 33 KB of shared memory where digits are counted, 41 in the sample's way.
#include "kernels/topk_mask/topk_mask_cuda.h"

#include <algorithm>
#include <cmath>

#include "kernels/topk_mask/topk_bracket.cuh"
#include "kernels/topk_mask/topk_scores.cuh"
#include "kernels/topk_mask/topk_settle.cuh"

namespace pns {
namespace {

constexpr int kRowThreads = 256;    // a row's block
constexpr int kRowBlocks = 4;       // an SM: at 64 registers
#if defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 870 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1100)
constexpr int kCountBlocks = 3;  // an SM has 1,536 threads there
#else
constexpr int kCountBlocks = 4;
#endif
constexpr int kSmallThreads = 128;  // a row of at most kSmallRow scores has no work for more
constexpr int64_t kSmallRow = 2048;

// Derived from the numbers given; with them 10^8 scores take 193 us on an H200, other values have not been tried.
constexpr int64_t kMaxBlocks = 4 * 132;               // one wave on the 132 SMs of an H100 or H200
constexpr int64_t kSplitWave = kSplitBlocks * 132;
constexpr int64_t kMaxWaves = 4;
constexpr int64_t kEnough = int64_t{1} << 16;         // 256 KB a block: 15 us at its share of the bandwidth
constexpr int64_t kRowsFillDevice = 256;              // about two rows an SM: no need to split them
constexpr int64_t kMinChunk = int64_t{1} << 14;       // 64 KB: below that, clearing and merging counters dominate
constexpr int64_t kMaxChunk = int64_t{1} << 30;       // positions in a chunk and a block's counters are 32 bits wide
constexpr int64_t kChunkMultiple = 128;               // a chunk starts on a 128-byte line of the mask
constexpr int64_t kMinBracket = int64_t{1} << 21;     // 8 MB: four passes over L2 take no longer than six launches
constexpr int64_t kMaxBracket = int64_t{1} << 32;     // an entry of the list has a 32-bit position
constexpr int64_t kRowsAtOnce = 8;                    // of them, so that all their lists stay small
constexpr int64_t kSettleBlocks = 2 * 132;
constexpr int kTiesAhead = 8;  // loads in flight a thread of the one block that cuts ties: the others wait for it
// Bytes of lists: n / 16 and 4 MB.
constexpr int64_t kListedShare = 128;
constexpr int64_t kListedBase = int64_t{1} << 19;

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

// How rows of a size are ranked.
struct Strategy {
  Plan plan;
  bool has_bracket;
  int64_t n_rows_at_once;
  int sample_bits;
  Count capacity;  // of a row's list
  double sigmas;   // of the sample's ranks, on each side of the threshold's
  int64_t n_after;  // blocks a row of the launches after the split, most of which have little or nothing to do
};

struct RadixWorkspace {
  Count* totals;           // [n_rows, kPasses, kBins]
  Selection* selections;   // [n_rows, kPasses]: before each pass
  uint32_t* block_counts;  // [n_rows, n_blocks, kLastBins]: of the last digit
  BracketState* states;    // [n_rows], or null: no bracket was tried
};

struct Workspace {
  Segment* segments;  // [n_tensors + 1]
  unsigned char* cleared;
  size_t n_cleared;  // bytes
  RadixWorkspace radix;
  BracketWorkspace bracket;
  size_t n_bytes;
};

// counts: [n_bins][kCopies], cleared.
template <typename T>
__device__ void count_digits(const Piece<T>& c, uint32_t prefix, uint32_t prefix_mask, int shift, int n_bins,
                             uint32_t* counts) {
  RunCounter runs{counts + threadIdx.x % kCopies, kCopies};
  visit(c, [&](uint32_t, const auto& x, bool is_there) {
    constexpr int kN = sizeof(x) / sizeof(float);
    if (!is_there) return;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const uint32_t key = ranked_key(x[j]);
      if ((key & prefix_mask) == prefix) runs.add((key >> shift) & (n_bins - 1));
    }
  });
  runs.end();
}

__device__ uint32_t sum_copies(const uint32_t* counts, int bin) {
  uint32_t sum = 0;
  for (int copy = 0; copy < kCopies; ++copy) sum += counts[bin * kCopies + copy];
  return sum;
}

template <typename T>
__device__ void write_threshold(const Rows<T>& rows, int64_t row, uint32_t key) {
  if (threadIdx.x == 0 && rows.thresholds != nullptr) narrow(score_of(key), rows.thresholds + row);
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks) topk_rows_kernel(Rows<T> rows, Plan plan) {
  using D = RowDigits;
  __shared__ uint32_t counts[D::kBins * kCopies];
  for (int64_t row = blockIdx.x; row < rows.n_rows; row += gridDim.x) {
    Selection selection{0, rows.rank, 0};
    for (int pass = 0; pass < D::kPasses; ++pass) {
      clear_counts(counts, D::n_bins(pass) * kCopies);
      __syncthreads();
      visit_pieces(rows, plan, row, 0, [&](const Piece<T>& piece) {
        count_digits(piece, selection.prefix, D::prefix_mask(pass), D::shift(pass), D::n_bins(pass), counts);
      });
      __syncthreads();
      selection = select_digit(selection, D::n_bins(pass), D::shift(pass),
                               [&](int bin) { return Count{sum_copies(counts, bin)}; });
    }
    write_threshold(rows, row, selection.prefix);
    if (!rows.has_mask()) continue;
    write_mask<4>(rows, plan, row, 0, selection.prefix, selection.n_equal, rows.keeps_ties ? selection.rank : 0);
  }
}

// The selection before `pass` of the row blockIdx.y. Every block computes it, from what the launch before left: cheaper
// than a launch of its own, and no block waits for another.
__device__ Selection selection_before(Count rank, const RadixWorkspace& w, int pass) {
  using D = ChunkDigits;
  if (pass == 0) return {0, rank, 0};
  const int64_t at = int64_t{blockIdx.y} * D::kPasses + pass - 1;
  const Count* totals = w.totals + at * D::kBins;
  return select_digit(w.selections[at], D::n_bins(pass - 1), D::shift(pass - 1), [&](int bin) { return totals[bin]; });
}

// Counts the digit of `pass` in the chunks of the row blockIdx.y.
template <typename T>
__device__ void count_chunks(const Rows<T>& rows, const Plan& plan, const RadixWorkspace& w, int pass) {
  using D = ChunkDigits;
  __shared__ uint32_t counts[D::kBins * kCopies];
  const int64_t row = blockIdx.y, at = row * D::kPasses + pass;
  const int n_bins = D::n_bins(pass);
  const Selection selection = selection_before(rows.rank, w, pass);
  if (blockIdx.x == 0 && threadIdx.x == 0) w.selections[at] = selection;
  for (int64_t chunk = blockIdx.x; chunk < plan.n_blocks; chunk += gridDim.x) {
    clear_counts(counts, n_bins * kCopies);
    __syncthreads();
    visit_pieces(rows, plan, row, chunk, [&](const Piece<T>& piece) {
      count_digits(piece, selection.prefix, D::prefix_mask(pass), D::shift(pass), n_bins, counts);
    });
    __syncthreads();
    for (int bin = threadIdx.x; bin < n_bins; bin += blockDim.x) {
      const uint32_t sum = sum_copies(counts, bin);
      if (sum > 0) atomicAdd(w.totals + at * D::kBins + bin, Count{sum});
      if (pass == D::kPasses - 1) w.block_counts[(row * plan.n_blocks + chunk) * D::kLastBins + bin] = sum;
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kCountBlocks) topk_count_kernel(Rows<T> rows, Plan plan, RadixWorkspace w,
                                                                           int pass) {
  if (w.states != nullptr && w.states[blockIdx.y].outcome != Outcome::kFailed) return;
  count_chunks(rows, plan, w, pass);
}

// Settles what the bracket left open, or is the first pass over the digits.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) topk_settle_kernel(Rows<T> rows, Plan plan, RadixWorkspace w,
                                                                  BracketWorkspace bracket) {
  if (!settle_row(rows, plan, bracket)) count_chunks(rows, plan, w, 0);
}

// count_of(b): scores of chunk b that equal the threshold; n_kept of them all stay, the first ones. has_all, has_none:
// what the mask has of the chunk's already.
template <typename T, typename CountOf>
__device__ void write_chunk(const Rows<T>& rows, const Plan& plan, int64_t chunk, uint32_t threshold, Count n_kept,
                            bool has_all, bool has_none, CountOf count_of) {
  Count before = 0;
  for (int64_t b = threadIdx.x; b < chunk; b += blockDim.x) before += count_of(b);
  before = block_scan(before).total;
  const Count n_equal = count_of(chunk), left = n_kept > before ? n_kept - before : 0;
  const Count n_own = left < n_equal ? left : n_equal;
  if ((has_all && n_own == n_equal) || (has_none && n_own == 0)) return;
  write_mask<kTiesAhead>(rows, plan, blockIdx.y, chunk, threshold, n_equal, n_own);
}

// Of ties in bulk the mask has all with the upper end, in the chunks that had them kept, and none with the lower one.
template <typename T>
__device__ void write_ties(const Rows<T>& rows, const Plan& plan, const BracketState& state, const uint2* counts) {
  const bool is_hi = state.threshold == state.bracket.hi;
  for (int64_t chunk = blockIdx.x; chunk < plan.n_blocks; chunk += gridDim.x) {
    const bool has_all = is_hi && has_ties(state.bracket, plan.n_blocks, chunk);
    write_chunk(rows, plan, chunk, state.threshold, state.n_kept, has_all, !has_all,
                [&](int64_t b) { return Count{is_hi ? counts[b].x : counts[b].y}; });
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) topk_write_kernel(Rows<T> rows, Plan plan, RadixWorkspace w,
                                                              const uint2* tie_counts) {
  using D = ChunkDigits;
  const int64_t row = blockIdx.y;
  if (w.states != nullptr && w.states[row].outcome != Outcome::kFailed) {
    if (w.states[row].outcome == Outcome::kDone || !rows.has_mask()) return;
    return write_ties(rows, plan, w.states[row], tie_counts + row * plan.n_blocks);
  }
  const Selection selection = selection_before(rows.rank, w, D::kPasses);
  if (blockIdx.x == 0) write_threshold(rows, row, selection.prefix);
  if (!rows.has_mask()) return;
  const uint32_t* counts = w.block_counts + row * plan.n_blocks * D::kLastBins + selection.prefix % D::kLastBins;
  for (int64_t chunk = blockIdx.x; chunk < plan.n_blocks; chunk += gridDim.x) {
    write_chunk(rows, plan, chunk, selection.prefix, rows.keeps_ties ? selection.rank : 0, false, false,
                [&](int64_t b) { return Count{counts[b * D::kLastBins]}; });
  }
}

// A list's tensors arrive as a launch's parameters, at most 4 KB: a copy from host memory would have to outlive a graph.
constexpr int kSegmentsAtOnce = 128;
struct SegmentBatch {
  Segment segments[kSegmentsAtOnce];
  int n;
};

__global__ void topk_segments_kernel(const __grid_constant__ SegmentBatch batch, Segment* segments) {
  if (threadIdx.x < batch.n) segments[threadIdx.x] = batch.segments[threadIdx.x];
}

// Of one wave of blocks the slowest one counts, so more of them where each has enough to do.
int64_t split_blocks(int64_t n, int64_t n_rows) {
  const int64_t wave = std::max<int64_t>(1, kSplitWave / n_rows);
  return wave * std::clamp<int64_t>(n / (wave * kEnough), 1, kMaxWaves);
}

Plan chunks_of(int64_t n, int64_t max_blocks) {
  int64_t n_blocks = std::min(ceil_div(n, kMinChunk), std::max<int64_t>(1, max_blocks));
  n_blocks = std::max(n_blocks, ceil_div(n, kMaxChunk));
  const int64_t chunk = ceil_div(ceil_div(n, n_blocks), kChunkMultiple) * kChunkMultiple;
  return {false, kThreads, ceil_div(n, chunk), chunk};
}

// A function of the sizes alone: the workspace is asked for without a device. 1 <= n.
Strategy make_strategy(int64_t n_rows, int64_t n) {
  if (n >= kMinBracket && n <= kMaxBracket) {
    const int64_t at_once = std::min(n_rows, kRowsAtOnce);
    const int bits = n <= int64_t{1} << 24 ? 14 : n <= int64_t{1} << 27 ? 16 : 18;
    const auto capacity = static_cast<Count>(n / kListedShare + kListedBase / at_once);
    const Plan plan = chunks_of(n, split_blocks(n, at_once));
    return {plan, true, at_once, bits, capacity, 3.5, std::min(plan.n_blocks, kSettleBlocks / at_once)};
  }
  if (n <= kMinChunk || (n_rows >= kRowsFillDevice && n < kMinBracket)) {
    return {{true, n <= kSmallRow ? kSmallThreads : kRowThreads, 1, n}, false, n_rows, 0, 0, 0.0, 0};
  }
  return {chunks_of(n, kMaxBlocks / n_rows), false, n_rows, 0, 0, 0.0, 0};
}

// The sample's ranks about that of the threshold, no further off than the list has room for.
SamplePlan sample_plan(const Strategy& s, Count rank, int64_t n) {
  const double size = std::ldexp(1.0, s.sample_bits), share = size / static_cast<double>(n);
  const double middle = static_cast<double>(rank) * share;
  const double sigma = std::sqrt(std::max(0.0, middle * (1.0 - middle / size)));
  const double half = std::min(s.sigmas * (sigma + 2.0), 0.45 * static_cast<double>(s.capacity) * share);
  const auto hi = static_cast<int64_t>(std::floor(middle - half)), lo = static_cast<int64_t>(std::ceil(middle + half));
  const int64_t beyond = (int64_t{1} << s.sample_bits) + 1;
  return {s.sample_bits, std::max<int64_t>(0, hi), std::min(std::max<int64_t>(1, lo), beyond)};
}

// Hands out parts of the workspace; from address 0 it only counts.
struct Carver {
  unsigned char* base;
  size_t at = 0;
  template <typename E>
  E* take(int64_t n) {
    at = ceil_div<size_t>(at, 16) * 16;
    E* const part = reinterpret_cast<E*>(reinterpret_cast<uintptr_t>(base) + at);
    at += n * sizeof(E);
    return part;
  }
};

Workspace lay_out(void* base, const Strategy& s, int64_t n_tensors) {
  using D = ChunkDigits;
  Carver carver{static_cast<unsigned char*>(base)};
  Workspace w{};
  if (n_tensors > 0) w.segments = carver.take<Segment>(n_tensors + 1);
  if (s.plan.is_one_block) {
    w.n_bytes = carver.at;
    return w;
  }
  const int64_t n_rows = s.n_rows_at_once, n_blocks = n_rows * s.plan.n_blocks;
  w.cleared = carver.take<unsigned char>(0);
  const size_t clear_from = carver.at;
  w.radix.totals = carver.take<Count>(n_rows * D::kPasses * D::kBins);
  if (s.has_bracket) {
    w.radix.states = w.bracket.states = carver.take<BracketState>(n_rows);
    w.bracket.sample_counts = carver.take<uint32_t>(n_rows * kBracketBins);
    w.bracket.bin_counts = carver.take<uint32_t>(n_rows * kBracketBins);
  }
  w.n_cleared = carver.at - clear_from;
  w.radix.selections = carver.take<Selection>(n_rows * D::kPasses);
  w.radix.block_counts = carver.take<uint32_t>(n_blocks * (s.has_bracket ? kBracketBins : D::kLastBins));
  if (s.has_bracket) {
    w.bracket.block_bins = w.radix.block_counts;  // counted again only after those are of no use
    w.bracket.samples = carver.take<uint32_t>(n_rows << s.sample_bits);
    w.bracket.listed = carver.take<uint2>(n_rows * static_cast<int64_t>(s.capacity));
    w.bracket.close = carver.take<uint2>(n_rows * kMaxClose);
    w.bracket.tie_counts = carver.take<uint2>(n_blocks);
    w.bracket.capacity = s.capacity;
  }
  w.n_bytes = carver.at;
  return w;
}

template <typename T>
void launch_rows(const Rows<T>& rows, const Plan& plan, cudaStream_t stream) {
  const int64_t max_grid = (int64_t{1} << 31) - 1;
  const dim3 grid(static_cast<unsigned>(std::min(rows.n_rows, max_grid)));
  cuda_launch("topk_mask", {grid, plan.n_threads, stream}, topk_rows_kernel<T>, rows, plan);
}

// Rows in grid.y: at most 65,535. There are fewer than kRowsFillDevice, or each is longer than kMaxBracket and 2^16 of
// them do not fit an address space.
template <typename T>
void launch_radix(const Rows<T>& rows, const Strategy& s, const Workspace& w, cudaStream_t stream) {
  const int64_t n_blocks = s.has_bracket ? s.n_after : s.plan.n_blocks;
  const dim3 grid(static_cast<unsigned>(n_blocks), static_cast<unsigned>(rows.n_rows));
  const int n_threads = s.plan.n_threads;
  for (int pass = s.has_bracket; pass < ChunkDigits::kPasses; ++pass) {
    cuda_launch("topk_mask", {grid, n_threads, stream}, topk_count_kernel<T>, rows, s.plan, w.radix, pass);
  }
  cuda_launch("topk_mask", {rows.has_mask() ? grid : dim3(1, grid.y), n_threads, stream}, topk_write_kernel<T>, rows,
              s.plan, w.radix, w.bracket.tie_counts);
}

template <typename T>
void launch_bracket(const Rows<T>& rows, const Strategy& s, const Workspace& w, cudaStream_t stream) {
  const auto n_rows = static_cast<unsigned>(rows.n_rows);
  const SamplePlan sample = sample_plan(s, rows.rank, rows.n);
  const dim3 sample_grid((1u << sample.bits) / kSampleBlock, n_rows);
  cuda_launch("topk_mask", {sample_grid, kThreads, stream}, topk_sample_kernel<T>, rows, sample, w.bracket);
  const dim3 grid(static_cast<unsigned>(s.plan.n_blocks), n_rows);
  cuda_launch("topk_mask", {grid, s.plan.n_threads, stream}, topk_split_kernel<T>, rows, s.plan, w.bracket);
  const dim3 settle_grid(static_cast<unsigned>(s.n_after), n_rows);
  cuda_launch("topk_mask", {settle_grid, kThreads, stream}, topk_settle_kernel<T>, rows, s.plan, w.radix, w.bracket);
}

// The tensors of a list that are not empty, as one row.
template <typename T>
Rows<T> upload_segments(const CudaTopkMaskParams& p, Segment* table) {
  SegmentBatch batch{};
  int64_t begin = 0, n_sent = 0;
  auto send = [&] {
    cuda_launch("topk_mask", {dim3(1), kSegmentsAtOnce, p.stream}, topk_segments_kernel, batch, table + n_sent);
    n_sent += batch.n;
    batch.n = 0;
  };
  for (int64_t t = 0; t <= p.n_tensors; ++t) {
    const bool is_end = t == p.n_tensors;
    if (!is_end && p.tensors[t].size == 0) continue;
    batch.segments[batch.n++] = is_end ? Segment{nullptr, nullptr, begin}
                                       : Segment{p.tensors[t].scores, p.tensors[t].mask, begin};
    if (batch.n == kSegmentsAtOnce || is_end) send();
    if (!is_end) begin += p.tensors[t].size;
  }
  Rows<T> rows{};
  rows.segments = table;
  rows.n_segments = n_sent - 1;
  return rows;
}

template <typename T>
void launch_strategy(const CudaTopkMaskParams& p, const Strategy& s) {
  const Workspace w = lay_out(p.workspace, s, p.n_tensors);
  Rows<T> rows{};
  if (p.n_tensors > 0) rows = upload_segments<T>(p, w.segments);
  const bool is_legacy = p.ties == Ties::kLegacy;
  // Legacy cuts at the (n - keep)-th smallest, which is the (keep + 1)-th largest, and drops what equals it.
  rows.rank = static_cast<Count>(p.keep + is_legacy);
  rows.keeps_ties = !is_legacy;
  rows.n = p.n;
  for (int64_t done = 0; done < p.n_rows; done += s.n_rows_at_once) {
    rows.n_rows = std::min(s.n_rows_at_once, p.n_rows - done);
    if (p.scores != nullptr) rows.scores = static_cast<const T*>(p.scores) + done * p.n;
    if (p.mask != nullptr) rows.mask = p.mask + done * p.n;
    if (p.thresholds != nullptr) rows.thresholds = static_cast<T*>(p.thresholds) + done;
    if (p.hints != nullptr) rows.hints = static_cast<const T*>(p.hints) + done;
    if (s.plan.is_one_block) {
      launch_rows(rows, s.plan, p.stream);
      continue;
    }
    cuda_check("topk_mask", cudaMemsetAsync(w.cleared, 0, w.n_cleared, p.stream));
    if (s.has_bracket) launch_bracket(rows, s, w, p.stream);
    launch_radix(rows, s, w, p.stream);
  }
}

void launch_type(const CudaTopkMaskParams& p, const Strategy& s) {
  switch (p.type) {
    case ScoreType::kFloat32: return launch_strategy<float>(p, s);
    case ScoreType::kFloat16: return launch_strategy<Float16>(p, s);
    case ScoreType::kBFloat16: return launch_strategy<BFloat16>(p, s);
  }
}

// All or none kept, known without a look at the scores. No threshold: all bits set, a NaN of every type.
void fill(const CudaTopkMaskParams& p) {
  const int kept = p.keep > 0;
  if (p.mask != nullptr) cuda_check("topk_mask", cudaMemsetAsync(p.mask, kept, p.n_rows * p.n, p.stream));
  for (int64_t t = 0; t < p.n_tensors; ++t) {
    const CudaTensor& tensor = p.tensors[t];
    if (tensor.size > 0) cuda_check("topk_mask", cudaMemsetAsync(tensor.mask, kept, tensor.size, p.stream));
  }
  const size_t n_bytes = p.n_rows * (p.type == ScoreType::kFloat32 ? 4 : 2);
  if (p.thresholds != nullptr) cuda_check("topk_mask", cudaMemsetAsync(p.thresholds, 0xFF, n_bytes, p.stream));
}

}  // namespace

int64_t topk_mask_workspace(int64_t n_rows, int64_t n, int64_t n_tensors) {
  if (n_rows == 0 || n == 0) return 0;
  return static_cast<int64_t>(lay_out(nullptr, make_strategy(n_rows, n), n_tensors).n_bytes);
}

void launch_topk_mask(const CudaTopkMaskParams& p) {
  if (p.n_rows == 0 || (p.n == 0 && p.thresholds == nullptr)) return;
  const CudaDeviceGuard guard("topk_mask", p.device);
  const bool has_threshold = p.n > 0 && p.keep != (p.ties == Ties::kLegacy ? p.n : 0);
  const bool is_known = p.keep == 0 || p.keep == p.n;
  if (!has_threshold || (is_known && p.thresholds == nullptr)) return fill(p);
  launch_type(p, make_strategy(p.n_rows, p.n));
}

}  // namespace pns
