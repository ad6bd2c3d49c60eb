// masked_linear on CUDA, float32, the sparse path (contract: masked_linear.h; the dense one is torch's own product).
//
// A mask is indexed once: the kept positions by row, and those of its transpose. Everything only enqueues on `stream`:
// no allocation, no synchronisation. Every sum has one order, given by the mask and, over samples, by the batch alone.
#pragma once

#include <cstdint>

struct CUstream_st;  // *cudaStream_t, without the CUDA headers

namespace pns {

// An index's rows are cut into segments of so many columns: what a block of the outer product holds of x.
constexpr int64_t kCudaSegment = 192;

// Where work is enqueued: the device of all pointers, a stream of it.
struct CudaQueue {
  int device;
  CUstream_st* stream;
};

// The first half of an index: bits of mask and transpose, kept counts a row, and where each row begins.
struct CudaMaskCount {
  int64_t n_networks, n_out, n_in;
  const uint8_t* mask;             // [N, O, I]
  uint32_t *bits, *bits_t;         // [N, O, ceil(I / 32)], [N, I, ceil(O / 32)]
  int32_t *row_begin, *row_begin_t;  // [N * O + 1], [N * I + 1]; the last one is the number of kept weights
};

// The second half, for the mask or its transpose. Fewer than 2^31 kept weights, at most 65,536 columns.
struct CudaMaskFill {
  int64_t n_rows, n_columns;  // N * O and I, or N * I and O
  const uint32_t* bits;       // [n_rows, ceil(n_columns / 32)]
  const int32_t* row_begin;   // [n_rows + 1]
  int32_t* starts;            // [n_rows * ceil(n_columns / kCudaSegment) + 1]: of each segment
  uint16_t* columns;          // [kept], ascending in a row
};

// y[n,b,r] = sum over row r's entries of w * x[n,b,column] + bias[n,r]
struct CudaMaskedProduct {
  int64_t n_networks, batch, n_in, n_rows;
  const float* x;           // [N, B, n_in]
  const int32_t* starts;    // of an index with rows [N * n_rows] and n_in columns
  const uint16_t* columns;  // [kept]
  const float* weight;      // [N, n_rows, n_in], or where the index is of the transpose [N, n_in, n_rows]; below 2^31
  bool is_transposed;
  float* packed;      // [kept], scratch: the kept weights are first gathered there; null: gathered at each use
  const float* bias;  // [N, n_rows] or null
  float* y;           // [N, B, n_rows]
};

// grad_weight[n,o,i] = m[n,o,i] sum_b grad[n,b,o] x[n,b,i]
struct CudaMaskedOuter {
  int64_t n_networks, batch, n_in, n_out;
  const float* grad;        // [N, B, O]
  const float* x;           // [N, B, I]
  const int32_t* starts;    // of the mask's index
  const uint16_t* columns;  // [kept]
  float* grad_columns;      // scratch, 16-byte aligned: cuda_padded_batch(batch) * N * O
  float* grad_weight;       // [N, O, I]
};

int64_t cuda_padded_batch(int64_t batch);
// Each throws std::runtime_error("masked_linear: ...") with CUDA's message.
void launch_mask_count(const CudaMaskCount& p, const CudaQueue& queue);
void launch_mask_fill(const CudaMaskFill& p, const CudaQueue& queue);
void launch_masked_product(const CudaMaskedProduct& p, const CudaQueue& queue);
void launch_masked_outer(const CudaMaskedOuter& p, const CudaQueue& queue);

// out[i] = mask[i] ? in[i] : 0 for elements of 2, 4 or 8 bytes; `out` may be `in`.
struct CudaSelect {
  int64_t n, element_bytes;
  const void* in;
  const uint8_t* mask;
  void* out;
};
void launch_select(const CudaSelect& p, const CudaQueue& queue);

}  // namespace pns
