// What is made of a mask alone. Its index, built on the device: bits of the mask and of its transpose in one pass over
// its bytes, kept counts, their prefix sums, then the columns. A warp owns a square of 32 x 32 entries, later a row.
// And the masked copy of a dense weight or gradient, 16 bytes a thread.
// Bytes moved for 4,096 x 4,096: 17 MB of mask, 4 MB of bits written and read twice, 2 bytes a kept weight and index.
// No shared memory to speak of, below 64 registers.
#include "core/cuda_check.cuh"
#include "kernels/masked_linear/masked_linear_cuda.h"

namespace pns {
namespace {

namespace mask_index {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kWarpSize = 32;
constexpr int kWord = 32;
constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;
constexpr int64_t kSelectBlocks = 8 * 132;  // the blocks that 132 SMs hold at once
constexpr int64_t kWordsOfSegment = kCudaSegment / kWord;

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline dim3 grid_of_warps(int64_t n_warps) {
  constexpr int64_t kMaxGrid = (int64_t{1} << 31) - 1;
  const int64_t n_blocks = ceil_div(n_warps, kThreads / kWarpSize);
  return dim3(static_cast<unsigned>(n_blocks < kMaxGrid ? n_blocks : kMaxGrid));
}

__device__ inline int64_t first_warp() { return (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize; }
__device__ inline int64_t warps_of_grid() { return int64_t{gridDim.x} * (kThreads / kWarpSize); }

// Lane l reads column l of 32 rows: a ballot a row gives the rows' words, what a lane collects is its column's.
__global__ void __launch_bounds__(kThreads) mask_bits_kernel(CudaMaskCount p) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t n_words = ceil_div(p.n_in, kWord), n_words_t = ceil_div(p.n_out, kWord);
  const int64_t n_squares = p.n_networks * n_words * n_words_t;
  for (int64_t square = first_warp(); square < n_squares; square += warps_of_grid()) {
    const int64_t word = square % n_words, word_t = square / n_words % n_words_t;
    const int64_t network = square / n_words / n_words_t;
    const int64_t first_row = word_t * kWord, column = word * kWord + lane;
    const int64_t n_left = p.n_out - first_row;
    const int n_rows = static_cast<int>(n_left < kWord ? n_left : kWord);
    const uint8_t* at = p.mask + (network * p.n_out + first_row) * p.n_in + column;
    uint32_t of_row = 0, of_column = 0;
#pragma unroll 8
    for (int r = 0; r < n_rows; ++r) {
      const bool is_kept = column < p.n_in && at[r * p.n_in] != 0;
      const uint32_t bits = __ballot_sync(kAllLanes, is_kept);
      if (lane == r) of_row = bits;
      of_column |= static_cast<uint32_t>(is_kept) << r;
    }
    if (lane < n_rows) p.bits[(network * p.n_out + first_row + lane) * n_words + word] = of_row;
    if (column < p.n_in) p.bits_t[(network * p.n_in + column) * n_words_t + word_t] = of_column;
  }
}

__device__ inline int warp_sum(int value) {
  for (int step = kWarpSize / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

__device__ inline int warp_scan(int value, int lane) {  // inclusive
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int below = __shfl_up_sync(kAllLanes, value, step);
    if (lane >= step) value += below;
  }
  return value;
}

// Row r's count goes to row_begin[r + 1]; the mask's rows first, then its transpose's.
__global__ void __launch_bounds__(kThreads) mask_count_kernel(CudaMaskCount p) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t n_rows = p.n_networks * p.n_out, n_all = n_rows + p.n_networks * p.n_in;
  for (int64_t row = first_warp(); row < n_all; row += warps_of_grid()) {
    const bool is_transposed = row >= n_rows;
    const int64_t own = is_transposed ? row - n_rows : row;
    const int64_t n_words = ceil_div(is_transposed ? p.n_out : p.n_in, kWord);
    const uint32_t* bits = (is_transposed ? p.bits_t : p.bits) + own * n_words;
    int count = 0;
    for (int64_t w = lane; w < n_words; w += kWarpSize) count += __popc(bits[w]);
    count = warp_sum(count);
    if (lane == 0) (is_transposed ? p.row_begin_t : p.row_begin)[own + 1] = count;
  }
}

// Counts to begins, in place: one block for the mask, one for its transpose. A round takes 1,024 rows.
__global__ void __launch_bounds__(kScanThreads) mask_scan_kernel(CudaMaskCount p) {
  __shared__ int warp_sums[kScanThreads / kWarpSize];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  int32_t* begin = blockIdx.x == 0 ? p.row_begin : p.row_begin_t;
  const int64_t n_rows = p.n_networks * (blockIdx.x == 0 ? p.n_out : p.n_in);
  int before = 0;
  if (threadIdx.x == 0) begin[0] = 0;
  for (int64_t first = 0; first < n_rows; first += kScanThreads) {
    const int64_t row = first + threadIdx.x;
    const int sum = warp_scan(row < n_rows ? begin[row + 1] : 0, lane);
    if (lane == kWarpSize - 1) warp_sums[warp] = sum;
    __syncthreads();
    const int of_warp = warp_sums[lane];  // 32 warps
    const int up_to = warp_scan(of_warp, lane);
    const int before_warp = __shfl_sync(kAllLanes, up_to - of_warp, warp);
    if (row < n_rows) begin[row + 1] = before + before_warp + sum;
    before += __shfl_sync(kAllLanes, up_to, kWarpSize - 1);
    __syncthreads();  // warp_sums may be written again
  }
}

__global__ void __launch_bounds__(kThreads) mask_fill_kernel(CudaMaskFill p) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t n_words = ceil_div(p.n_columns, kWord), n_segments = ceil_div(p.n_columns, kCudaSegment);
  for (int64_t row = first_warp(); row < p.n_rows; row += warps_of_grid()) {
    int begin = p.row_begin[row];
    for (int64_t first = 0; first < n_words; first += kWarpSize) {
      const int64_t word = first + lane;
      uint32_t bits = word < n_words ? p.bits[row * n_words + word] : 0;
      const int count = __popc(bits), up_to = warp_scan(count, lane);
      int at = begin + up_to - count;
      if (word < n_words && word % kWordsOfSegment == 0) p.starts[row * n_segments + word / kWordsOfSegment] = at;
      for (; bits != 0; bits &= bits - 1) {
        p.columns[at++] = static_cast<uint16_t>(word * kWord + __ffs(static_cast<int>(bits)) - 1);
      }
      begin += __shfl_sync(kAllLanes, up_to, kWarpSize - 1);
    }
    if (row == p.n_rows - 1 && lane == 0) p.starts[p.n_rows * n_segments] = begin;
  }
}

template <typename T>
struct alignas(16) Pack {
  T values[16 / sizeof(T)];
};

template <typename T>
struct alignas(16 / sizeof(T)) MaskPack {
  uint8_t values[16 / sizeof(T)];
};

// 16 bytes and their mask entries a thread; the elements before `first` and after the last 16 bytes one by one.
template <typename T>
__global__ void __launch_bounds__(kThreads) select_kernel(const T* in, const uint8_t* mask, T* out, int64_t n,
                                                          int64_t first, int64_t n_packs) {
  constexpr int64_t kPack = 16 / sizeof(T);
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x, n_threads = int64_t{gridDim.x} * kThreads;
  const auto* packs = reinterpret_cast<const Pack<T>*>(in + first);
  const auto* masks = reinterpret_cast<const MaskPack<T>*>(mask + first);
  auto* results = reinterpret_cast<Pack<T>*>(out + first);
#pragma unroll 4
  for (int64_t at = thread; at < n_packs; at += n_threads) {
    Pack<T> pack = packs[at];
    const MaskPack<T> kept = masks[at];
#pragma unroll
    for (int j = 0; j < kPack; ++j) pack.values[j] = kept.values[j] != 0 ? pack.values[j] : T{0};
    results[at] = pack;
  }
  for (int64_t i = thread; i < n - n_packs * kPack; i += n_threads) {
    const int64_t at = i < first ? i : i + n_packs * kPack;
    out[at] = mask[at] != 0 ? in[at] : T{0};
  }
}

// All three in step with 16 bytes, or none is read so.
template <typename T>
void launch_select_of(const CudaSelect& p, cudaStream_t stream) {
  constexpr int64_t kPack = 16 / sizeof(T);
  const auto in = reinterpret_cast<uintptr_t>(p.in), out = reinterpret_cast<uintptr_t>(p.out);
  const int64_t first = static_cast<int64_t>((16 - in % 16) % 16 / sizeof(T));
  const bool is_in_step = in % 16 == out % 16 && (reinterpret_cast<uintptr_t>(p.mask) + first) % kPack == 0;
  const int64_t n_packs = is_in_step && p.n > first ? (p.n - first) / kPack : 0;
  const int64_t n_blocks = ceil_div(n_packs > 0 ? n_packs : p.n, kThreads);
  const dim3 grid(static_cast<unsigned>(n_blocks < kSelectBlocks ? n_blocks : kSelectBlocks));
  cuda_launch("masked_linear", {grid, kThreads, stream}, select_kernel<T>, static_cast<const T*>(p.in), p.mask,
              static_cast<T*>(p.out), p.n, n_packs > 0 ? first : 0, n_packs);
}

}  // namespace mask_index
}  // namespace

void launch_mask_count(const CudaMaskCount& p, const CudaQueue& queue) {
  using namespace mask_index;
  const CudaDeviceGuard guard("masked_linear", queue.device);
  const int64_t n_squares = p.n_networks * ceil_div(p.n_in, kWord) * ceil_div(p.n_out, kWord);
  const int64_t n_rows = p.n_networks * (p.n_out + p.n_in);
  const cudaStream_t stream = queue.stream;
  if (n_squares > 0) cuda_launch("masked_linear", {grid_of_warps(n_squares), kThreads, stream}, mask_bits_kernel, p);
  if (n_rows > 0) cuda_launch("masked_linear", {grid_of_warps(n_rows), kThreads, stream}, mask_count_kernel, p);
  cuda_launch("masked_linear", {dim3(2), kScanThreads, queue.stream}, mask_scan_kernel, p);
}

void launch_mask_fill(const CudaMaskFill& p, const CudaQueue& queue) {
  using namespace mask_index;
  if (p.n_rows == 0 || p.n_columns == 0) return;
  const CudaDeviceGuard guard("masked_linear", queue.device);
  cuda_launch("masked_linear", {grid_of_warps(p.n_rows), kThreads, queue.stream}, mask_fill_kernel, p);
}

void launch_select(const CudaSelect& p, const CudaQueue& queue) {
  if (p.n == 0) return;
  const CudaDeviceGuard guard("masked_linear", queue.device);
  switch (p.element_bytes) {
    case 2: return mask_index::launch_select_of<uint16_t>(p, queue.stream);
    case 4: return mask_index::launch_select_of<uint32_t>(p, queue.stream);
    case 8: return mask_index::launch_select_of<uint64_t>(p, queue.stream);
    default: throw std::invalid_argument("masked_linear: expected elements of 2, 4 or 8 bytes");
  }
}

}  // namespace pns
