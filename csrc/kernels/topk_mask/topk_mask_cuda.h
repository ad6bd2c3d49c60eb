// topk_mask on CUDA, rows of float32 (contract: topk_mask.h). One difference: nothing looks for NaN, which would mean
// waiting for the device; a NaN ranks below -infinity. Only enqueues on `stream`: no allocation, no synchronisation,
// so it can be captured into a graph (which then keeps the addresses given here).
#pragma once

#include <cstdint>

#include "kernels/topk_mask/topk_mask.h"

struct CUstream_st;  // *cudaStream_t, without the CUDA headers

namespace pns {

struct CudaTopkMaskParams {
  const float* scores;  // [n_rows, n], 4-byte aligned
  uint8_t* mask;        // [n_rows, n]
  void* workspace;      // topk_mask_workspace(n_rows, n) bytes, 8-byte aligned, contents irrelevant
  int64_t n_rows, n;    // each row is ranked on its own
  int64_t keep;         // 0 <= keep <= n
  Ties ties;
  int device;           // where the three pointers live
  CUstream_st* stream;  // of that device
};

// Bytes; depends on the sizes alone, so it can be asked before a device is.
int64_t topk_mask_workspace(int64_t n_rows, int64_t n);
// Throws std::runtime_error("topk_mask: ...") with CUDA's message.
void launch_topk_mask(const CudaTopkMaskParams& p);

}  // namespace pns
