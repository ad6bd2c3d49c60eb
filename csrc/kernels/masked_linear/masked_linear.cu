// masked_linear on CUDA: the product with a sparse weight and the products that are its gradient, float32.
//
// Both are bound by shared memory: a kept weight meets every sample, 4 bytes of x for one multiply-add. So x lies
// there feature-major, the samples of a feature side by side, and all reads are 16 bytes without bank conflicts.
//   Product: a block owns 32 samples of some rows, 8 lanes (4 samples each) a row. It walks through panels of x.
//   Outer product: a block owns a segment of 192 columns of some rows with up to 256 samples, a warp a row.
// Bytes moved (4,096 x 4,096, 256 samples): product: 64 MB of x from L2, 48 bytes a kept weight; outer product: 28 MB
// of x, 92 MB of grad from L2, the whole gradient written once. At most 226 and 207 KB of shared memory: one block an
// SM, with 1,024 threads of 64 registers or 512 of 96.
#include <algorithm>

#include "core/cuda_check.cuh"
#include "kernels/masked_linear/masked_linear_cuda.h"

namespace pns {
namespace {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kWarpSize = 32;
constexpr int64_t kMaxGrid = (int64_t{1} << 31) - 1;
constexpr int kSms = 132;  // of an H100 or H200: blocks that make one wave; the numbers do not depend on it

// The product.
constexpr int kTile = 32;                            // samples of a block
constexpr int kGroup = 8;                            // lanes of a row, four samples each
constexpr int kFeatureStride = kTile + 4;            // floats: 9 x 16 bytes, so 8 features lie in all 32 banks
constexpr int kMaxPanel = 1536;                      // features: 216 KB, and 10 KB of entries
constexpr int kEntryPairs = kGroup / 2 + 1;          // of a group, with one to spare: 4 groups lie in all 32 banks
constexpr int kMaxThreads = 1024, kMinThreads = 512;
constexpr int kNoColumn = 1 << 30;

// The outer product.
constexpr int kQuad = 4 * kWarpSize;  // samples a warp reads at once, 16 bytes a lane
constexpr int kOuterThreads = 512, kOuterWarps = kOuterThreads / kWarpSize;
constexpr int kSegment = static_cast<int>(kCudaSegment);

constexpr int kTransposeThreads = 256;
constexpr int kPackThreads = 256;

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline dim3 grid_of(int64_t n_blocks) { return dim3(static_cast<unsigned>(std::min(n_blocks, kMaxGrid))); }

struct ProductPlan {
  int n_threads;
  int rows_of_group;  // 1 or 2
  int panel;          // features
  int64_t n_tiles, n_row_blocks, n_blocks, n_segments;
  size_t shared_bytes;
};

struct OuterPlan {
  int64_t padded, chunk;  // samples
  int64_t rows_of_block, n_row_blocks, n_segments, n_blocks;
  size_t shared_bytes;
};

// tile[f * stride + s] = x[s, f] for features [0, n_features) and kSamples samples, of which n_left, at least one, are
// there; 0 for the others. A warp takes 32 features of 4 samples: reads of 128 bytes, writes of 16 a lane. It reads
// kAhead of them before it writes, since no read may overtake a write that could alias it. What is not there is read
// elsewhere and dropped: that costs fewer instructions than not to read.
template <int kSamples, int kAhead>
__device__ void load_features(const float* x, int x_stride, int64_t n_left, int n_features, float* tile, int stride) {
  constexpr int kQuads = kSamples / 4;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, n_warps = blockDim.x / kWarpSize;
  const int n_sharing = n_warps > kQuads ? n_warps / kQuads : 1;  // warps with the same samples
  const int n_at_once = n_warps / n_sharing, step = n_sharing * kWarpSize;
  for (int quad = warp % n_at_once; quad < kQuads; quad += n_at_once) {
    const int n_here = static_cast<int>(n_left < kSamples ? n_left : kSamples) - 4 * quad;
    int rows[4];  // 256 samples of 65,536 features
#pragma unroll
    for (int j = 0; j < 4; ++j) rows[j] = (j < n_here ? 4 * quad + j : 0) * x_stride;
    for (int first = warp / n_at_once * kWarpSize + lane; first < n_features; first += kAhead * step) {
      float4 values[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int feature = first + k * step, at = feature < n_features ? feature : first;
        values[k] = {x[rows[0] + at], x[rows[1] + at], x[rows[2] + at], x[rows[3] + at]};
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int feature = first + k * step;
        const float4 v = {n_here > 0 ? values[k].x : 0.0f, n_here > 1 ? values[k].y : 0.0f,
                          n_here > 2 ? values[k].z : 0.0f, n_here > 3 ? values[k].w : 0.0f};
        if (feature < n_features) *reinterpret_cast<float4*>(tile + feature * stride + 4 * quad) = v;
      }
    }
  }
}

__device__ inline void multiply_add(float weight, const float4& x, float4& sum) {
  sum.x += weight * x.x;
  sum.y += weight * x.y;
  sum.z += weight * x.z;
  sum.w += weight * x.w;
}

// A row's kept weights, and how far it has come.
struct Row {
  int at, end;
  int first;  // of the row in the dense weight, which has fewer than 2^31
};

struct Panel {
  const float* x;      // [size + 1][kFeatureStride]; the last one is zeros
  int begin, end;      // columns
  int zeros;           // where the zeros start
  int4* entries;       // this group's: [kEntryPairs]
};

// Adds the row's entries in the panel. A group takes 8 at once, each lane fetches one while the 8 before are summed:
// its column two rounds ahead, its weight one. Groups that have none left take part with zeros: a weight of 0 times a
// feature that is there could be NaN.
__device__ void add_entries(const CudaMaskedProduct& p, const Panel& panel, int column_stride, Row& row,
                            float4& sum) {
  const int lane = threadIdx.x % kGroup, shift = threadIdx.x % kWarpSize / kGroup * kGroup;
  auto column_at = [&](int at) { return at < row.end ? static_cast<int>(p.columns[at]) : kNoColumn; };
  auto weight_at = [&](int at, int column) {
    if (column >= panel.end) return 0.0f;
    return p.packed != nullptr ? p.packed[at] : p.weight[row.first + column * column_stride];
  };
  int column = column_at(row.at + lane), ahead = column_at(row.at + kGroup + lane);
  float weight = weight_at(row.at + lane, column);
  for (;;) {
    const bool is_here = column < panel.end;
    const unsigned here = __ballot_sync(kAllLanes, is_here);
    if (here == 0) return;
    const int offset = is_here ? (column - panel.begin) * kFeatureStride : panel.zeros;
    int2* own = reinterpret_cast<int2*>(panel.entries) + lane;
    *own = {offset, __float_as_int(weight)};
    const int n_here = __popc(here >> shift & 0xFFu);
    row.at += n_here;
    column = n_here == kGroup ? ahead : kNoColumn;  // else the row's next ones are another panel's
    weight = weight_at(row.at + lane, column);
    ahead = column_at(row.at + kGroup + lane);
    __syncwarp();
    const float* x = panel.x + 4 * lane;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {  // 4 features in flight; with all 8 registers spill
      const int4 first = panel.entries[2 * half], second = panel.entries[2 * half + 1];
      const float4 values[] = {
          *reinterpret_cast<const float4*>(x + first.x), *reinterpret_cast<const float4*>(x + first.z),
          *reinterpret_cast<const float4*>(x + second.x), *reinterpret_cast<const float4*>(x + second.z)};
      multiply_add(__int_as_float(first.y), values[0], sum);
      multiply_add(__int_as_float(first.w), values[1], sum);
      multiply_add(__int_as_float(second.y), values[2], sum);
      multiply_add(__int_as_float(second.w), values[3], sum);
    }
    __syncwarp();
  }
}

__device__ inline Row row_at(const CudaMaskedProduct& p, const ProductPlan& plan, int64_t network, int64_t row) {
  if (row >= p.n_rows) return {0, 0, 0};
  const int32_t* starts = p.starts + (network * p.n_rows + row) * plan.n_segments;
  const int64_t first = network * p.n_rows * p.n_in + row * (p.is_transposed ? 1 : p.n_in);
  return {starts[0], starts[plan.n_segments], static_cast<int>(first)};
}

// The group's sums: its 4 samples a lane, of the rows it owns.
template <int kRows>
__device__ void write_sums(const CudaMaskedProduct& p, int64_t network, int64_t first_sample, int64_t first_row,
                           int row_step, const float4 (&sums)[kRows]) {
  const int64_t sample = first_sample + threadIdx.x % kGroup * 4;
  const int64_t n_left = p.batch - sample;
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    const int64_t row = first_row + k * row_step;
    if (row >= p.n_rows) continue;
    const float bias = p.bias != nullptr ? p.bias[network * p.n_rows + row] : 0.0f;
    float* y = p.y + (network * p.batch + sample) * p.n_rows + row;
    if (n_left > 0) y[0 * p.n_rows] = sums[k].x + bias;
    if (n_left > 1) y[1 * p.n_rows] = sums[k].y + bias;
    if (n_left > 2) y[2 * p.n_rows] = sums[k].z + bias;
    if (n_left > 3) y[3 * p.n_rows] = sums[k].w + bias;
  }
}

template <int kRows>
__global__ void __launch_bounds__(kMaxThreads, 1) sparse_product_kernel(CudaMaskedProduct p, ProductPlan plan) {
  PNS_DYNAMIC_SHARED(shared);
  float* x = reinterpret_cast<float*>(shared);
  const int group = threadIdx.x / kGroup, n_groups = blockDim.x / kGroup, zeros = plan.panel * kFeatureStride;
  if (threadIdx.x < kFeatureStride) x[zeros + threadIdx.x] = 0.0f;
  int4* entries = reinterpret_cast<int4*>(x + zeros + kFeatureStride) + group * kEntryPairs;
  const int column_stride = p.is_transposed ? static_cast<int>(p.n_rows) : 1;
  for (int64_t block = blockIdx.x; block < plan.n_blocks; block += gridDim.x) {
    const int64_t network = block / plan.n_tiles / plan.n_row_blocks;
    const int64_t first_row = block / plan.n_tiles % plan.n_row_blocks * n_groups * kRows + group;
    const int64_t first_sample = block % plan.n_tiles * kTile;
    Row rows[kRows];
    float4 sums[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      rows[k] = row_at(p, plan, network, first_row + k * n_groups);
      sums[k] = {0.0f, 0.0f, 0.0f, 0.0f};
    }
    const float* samples = p.x + (network * p.batch + first_sample) * p.n_in;
    for (int begin = 0; begin < p.n_in; begin += plan.panel) {
      const int n_left = static_cast<int>(p.n_in) - begin, size = n_left < plan.panel ? n_left : plan.panel;
      __syncthreads();  // the panel before has been read
      load_features<kTile, 4>(samples + begin, static_cast<int>(p.n_in), p.batch - first_sample, size, x, kFeatureStride);
      __syncthreads();
      const Panel panel{x, begin, begin + size, zeros, entries};
#pragma unroll
      for (int k = 0; k < kRows; ++k) add_entries(p, panel, column_stride, rows[k], sums[k]);
    }
    write_sums<kRows>(p, network, first_sample, first_row, n_groups, sums);
  }
}

// packed[e] = the weight of entry e, a warp a row: dense weights are read once, not once for every 32 samples.
__global__ void __launch_bounds__(kPackThreads) pack_weights_kernel(CudaMaskedProduct p, int64_t n_segments) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t step = int64_t{gridDim.x} * (kPackThreads / kWarpSize), n_rows = p.n_networks * p.n_rows;
  const int64_t column_stride = p.is_transposed ? p.n_rows : 1;
  for (int64_t row = (int64_t{blockIdx.x} * kPackThreads + threadIdx.x) / kWarpSize; row < n_rows; row += step) {
    const int64_t network = row / p.n_rows, of_network = row % p.n_rows;
    const float* weight = p.weight + network * p.n_rows * p.n_in + of_network * (p.is_transposed ? 1 : p.n_in);
    const int end = p.starts[(row + 1) * n_segments];
#pragma unroll 4
    for (int at = p.starts[row * n_segments] + lane; at < end; at += kWarpSize) {
      p.packed[at] = weight[p.columns[at] * column_stride];
    }
  }
}

// grad_columns[n, o, b] = grad[n, b, o], 0 for batch <= b < padded.
__global__ void __launch_bounds__(kTransposeThreads) transpose_grad_kernel(CudaMaskedOuter p, int64_t padded) {
  __shared__ float square[kWarpSize][kWarpSize + 1];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, n_warps = kTransposeThreads / kWarpSize;
  const int64_t n_across = ceil_div(p.n_out, kWarpSize), n_down = padded / kWarpSize;
  for (int64_t block = blockIdx.x; block < p.n_networks * n_across * n_down; block += gridDim.x) {
    const int64_t out = block % n_across * kWarpSize, sample = block / n_across % n_down * kWarpSize;
    const int64_t network = block / n_across / n_down;
    __syncthreads();  // the square before has been read
    for (int s = warp; s < kWarpSize; s += n_warps) {
      const bool is_there = sample + s < p.batch && out + lane < p.n_out;
      square[s][lane] = is_there ? p.grad[(network * p.batch + sample + s) * p.n_out + out + lane] : 0.0f;
    }
    __syncthreads();
    for (int o = warp; o < kWarpSize && out + o < p.n_out; o += n_warps) {
      p.grad_columns[(network * p.n_out + out + o) * padded + sample + lane] = square[lane][o];
    }
  }
}

// The four sums over all lanes at once; lane l gets that of l / 8. Fewer exchanges than one sum after the other.
__device__ inline float sum_of_four(const float (&values)[4]) {
  const bool is_upper = threadIdx.x & 16, is_odd = threadIdx.x & 8;
  const float first = (is_upper ? values[2] : values[0]) +
                      __shfl_xor_sync(kAllLanes, is_upper ? values[0] : values[2], 16);
  const float second = (is_upper ? values[3] : values[1]) +
                       __shfl_xor_sync(kAllLanes, is_upper ? values[1] : values[3], 16);
  float sum = (is_odd ? second : first) + __shfl_xor_sync(kAllLanes, is_odd ? first : second, 8);
  for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

// dots[column] = grad row . x column for entries [begin, end), 4 at a time. x: this lane's samples of the segment.
template <int kQuads>
__device__ void add_dots(const uint16_t* columns, int begin, int end, int64_t first_column, const float* x,
                         const float4 (&grad)[kQuads], float* dots) {
  constexpr int kStride = kQuads * kQuad + 4;
  const int lane = threadIdx.x % kWarpSize;
  for (int at = begin; at < end; at += kWarpSize) {
    const int n = end - at < kWarpSize ? end - at : kWarpSize;
    const int column = lane < n ? columns[at + lane] - static_cast<int>(first_column) : 0;
    for (int e = 0; e < n; e += 4) {  // past n: column 0 again, not written
      float partial[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* of_column = x + __shfl_sync(kAllLanes, column, e + j) * kStride;
        float sum = 0.0f;
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          const float4 v = *reinterpret_cast<const float4*>(of_column + q * kQuad);
          sum += grad[q].x * v.x;
          sum += grad[q].y * v.y;
          sum += grad[q].z * v.z;
          sum += grad[q].w * v.w;
        }
        partial[j] = sum;
      }
      const float dot = sum_of_four(partial);
      const int own = e + lane / 8, own_column = __shfl_sync(kAllLanes, column, own);
      if (lane % 8 == 0 && own < n) dots[own_column] = dot;
    }
  }
}

// A row's segment out, zeros between the dots, which are cleared for the next row.
__device__ void write_segment(float* dots, int size, float* out, bool adds) {
  __syncwarp();
#pragma unroll
  for (int k = 0; k < kSegment / kWarpSize; ++k) {
    const int c = k * kWarpSize + threadIdx.x % kWarpSize;
    const float dot = dots[c];
    dots[c] = 0.0f;
    if (c < size) out[c] = adds ? out[c] + dot : dot;
  }
  __syncwarp();
}

template <int kQuads>
struct OuterRow {
  float4 grad[kQuads];
  int begin, end;
};

template <int kQuads>
__device__ OuterRow<kQuads> outer_row(const CudaMaskedOuter& p, const OuterPlan& plan, int64_t row, int64_t segment,
                                      int64_t sample) {
  const int32_t* starts = p.starts + row * plan.n_segments + segment;
  OuterRow<kQuads> r;
  r.begin = starts[0];
  r.end = starts[1];
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    r.grad[q] = *reinterpret_cast<const float4*>(p.grad_columns + row * plan.padded + sample + q * kQuad);
  }
  return r;
}

template <int kQuads>
__global__ void __launch_bounds__(kOuterThreads, 1) sparse_outer_kernel(CudaMaskedOuter p, OuterPlan plan) {
  PNS_DYNAMIC_SHARED(shared);
  constexpr int kChunk = kQuads * kQuad, kStride = kChunk + 4;  // an odd number of 16 bytes
  float* x = reinterpret_cast<float*>(shared);  // [kSegment][kStride]
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  float* dots = x + kSegment * kStride + warp * kSegment;
  for (int c = lane; c < kSegment; c += kWarpSize) dots[c] = 0.0f;
  for (int64_t block = blockIdx.x; block < plan.n_blocks; block += gridDim.x) {
    const int64_t segment = block % plan.n_segments, network = block / plan.n_segments / plan.n_row_blocks;
    const int64_t first_column = segment * kSegment, n_left = p.n_in - first_column;
    const int size = static_cast<int>(n_left < kSegment ? n_left : kSegment);
    const int64_t first_row = block / plan.n_segments % plan.n_row_blocks * plan.rows_of_block;
    const int64_t end_row = first_row + plan.rows_of_block < p.n_out ? first_row + plan.rows_of_block : p.n_out;
    for (int64_t sample = 0; sample < plan.padded; sample += kChunk) {
      __syncthreads();  // the samples before have been read
      const float* samples = p.x + (network * p.batch + sample) * p.n_in + first_column;
      load_features<kChunk, 6>(samples, static_cast<int>(p.n_in), p.batch - sample, size, x, kStride);
      __syncthreads();
      const int64_t own_row = first_row + warp;
      if (own_row >= end_row) continue;
      OuterRow<kQuads> next = outer_row<kQuads>(p, plan, network * p.n_out + own_row, segment, sample + 4 * lane);
      for (int64_t row = own_row; row < end_row; row += kOuterWarps) {
        const OuterRow<kQuads> r = next;
        const int64_t after = row + kOuterWarps < end_row ? row + kOuterWarps : row;
        next = outer_row<kQuads>(p, plan, network * p.n_out + after, segment, sample + 4 * lane);
        add_dots<kQuads>(p.columns, r.begin, r.end, first_column, x + 4 * lane, r.grad, dots);
        write_segment(dots, size, p.grad_weight + (network * p.n_out + row) * p.n_in + first_column, sample > 0);
      }
    }
  }
}

// Rows of a block: as many as fill the device with one wave, or more blocks of the most. `largest_panel`: kMaxPanel.
ProductPlan make_product_plan(const CudaMaskedProduct& p, int64_t largest_panel) {
  ProductPlan plan{};
  plan.n_tiles = ceil_div(p.batch, kTile);
  plan.n_segments = ceil_div(p.n_in, kCudaSegment);
  const int64_t n_panels = ceil_div(p.n_in, largest_panel);
  plan.panel = static_cast<int>(ceil_div(p.n_in, n_panels));
  constexpr struct {
    int n_threads, rows_of_group;
  } kShapes[] = {{kMinThreads, 1}, {kMaxThreads, 1}, {kMaxThreads, 2}};
  for (const auto& shape : kShapes) {
    plan.n_threads = shape.n_threads;
    plan.rows_of_group = shape.rows_of_group;
    plan.n_row_blocks = ceil_div(p.n_rows, shape.n_threads / kGroup * shape.rows_of_group);
    plan.n_blocks = plan.n_tiles * plan.n_row_blocks * p.n_networks;
    if (plan.n_blocks <= kSms) break;
  }
  plan.shared_bytes = (plan.panel + 1) * kFeatureStride * sizeof(float) +
                      plan.n_threads / kGroup * kEntryPairs * sizeof(int4);
  return plan;
}

void launch_product_plan(const CudaMaskedProduct& p, const ProductPlan& plan, cudaStream_t stream) {
  if (p.packed != nullptr) {
    const int64_t n_blocks = ceil_div(p.n_networks * p.n_rows, kPackThreads / kWarpSize);
    cuda_launch("masked_linear", {grid_of(n_blocks), kPackThreads, stream}, pack_weights_kernel, p, plan.n_segments);
  }
  auto* kernel = plan.rows_of_group == 1 ? sparse_product_kernel<1> : sparse_product_kernel<2>;  // 4 would spill
  cuda_launch("masked_linear", {grid_of(plan.n_blocks), plan.n_threads, stream, plan.shared_bytes}, kernel, p, plan);
}

OuterPlan make_outer_plan(const CudaMaskedOuter& p) {
  OuterPlan plan{};
  plan.padded = cuda_padded_batch(p.batch);
  plan.chunk = p.batch <= kQuad ? kQuad : 2 * kQuad;
  plan.n_segments = ceil_div(p.n_in, kCudaSegment);
  const int64_t wanted = ceil_div(kSms, plan.n_segments * p.n_networks);  // blocks of rows that fill the device
  plan.rows_of_block = std::max<int64_t>(ceil_div(p.n_out, wanted), kOuterWarps);
  plan.n_row_blocks = ceil_div(p.n_out, plan.rows_of_block);
  plan.n_blocks = plan.n_segments * plan.n_row_blocks * p.n_networks;
  plan.shared_bytes = (kSegment * (plan.chunk + 4) + kOuterWarps * kSegment) * sizeof(float);
  return plan;
}

void launch_outer_plan(const CudaMaskedOuter& p, const OuterPlan& plan, cudaStream_t stream) {
  const int64_t n_squares = p.n_networks * ceil_div(p.n_out, kWarpSize) * (plan.padded / kWarpSize);
  cuda_launch("masked_linear", {grid_of(n_squares), kTransposeThreads, stream}, transpose_grad_kernel, p, plan.padded);
  auto* kernel = plan.chunk == kQuad ? sparse_outer_kernel<1> : sparse_outer_kernel<2>;
  cuda_launch("masked_linear", {grid_of(plan.n_blocks), kOuterThreads, stream, plan.shared_bytes}, kernel, p, plan);
}

}  // namespace

int64_t cuda_padded_batch(int64_t batch) {
  const int64_t chunk = batch <= kQuad ? kQuad : 2 * kQuad;
  return ceil_div(batch, chunk) * chunk;
}

void launch_masked_product(const CudaMaskedProduct& p, const CudaQueue& queue) {
  if (p.n_networks == 0 || p.batch == 0 || p.n_rows == 0 || p.n_in == 0) return;
  const CudaDeviceGuard guard("masked_linear", queue.device);
  launch_product_plan(p, make_product_plan(p, kMaxPanel), queue.stream);
}

void launch_masked_outer(const CudaMaskedOuter& p, const CudaQueue& queue) {
  if (p.n_networks == 0 || p.batch == 0 || p.n_out == 0 || p.n_in == 0) return;
  const CudaDeviceGuard guard("masked_linear", queue.device);
  launch_outer_plan(p, make_outer_plan(p), queue.stream);
}

}  // namespace pns
