// topk_mask on CUDA, of float32, float16 and bfloat16 (contract: topk_mask.h). One difference: nothing looks for NaN,
// which would mean waiting for the device; a NaN ranks below -infinity. Only enqueues on `stream`: no allocation, no
// synchronisation, so it can be captured into a graph (which then keeps the addresses given here).
#pragma once

#include <cstdint>

#include "kernels/topk_mask/topk_mask.h"

struct CUstream_st;  // *cudaStream_t, without the CUDA headers

namespace pns {

enum class ScoreType { kFloat32, kFloat16, kBFloat16 };

struct CudaTensor {
  const void* scores;  // [size]
  uint8_t* mask;       // [size]
  int64_t size;
};

struct CudaTopkMaskParams {
  ScoreType type;
  const void* scores;         // [n_rows, n]; null: a list
  uint8_t* mask;              // [n_rows, n]; null: a list, or only the thresholds are wanted
  const CudaTensor* tensors;  // [n_tensors], on the host: ranked together, n_rows = 1 and n their total
  int64_t n_tensors;          // 0: no list
  const void* hints;          // [n_rows] or null; where the mask is cut before the threshold is known
  void* thresholds;           // [n_rows] or null
  void* workspace;            // topk_mask_workspace(...) bytes, 16-byte aligned, contents irrelevant
  int64_t n_rows, n;          // each row is ranked on its own
  int64_t keep;               // 0 <= keep <= n
  Ties ties;
  int device;           // where the pointers live
  CUstream_st* stream;  // of that device
};

// Bytes; depends on the sizes alone, so it can be asked before a device is. About n_rows n / 16 and a few MB.
int64_t topk_mask_workspace(int64_t n_rows, int64_t n, int64_t n_tensors);
// Throws std::runtime_error("topk_mask: ...") with CUDA's message.
void launch_topk_mask(const CudaTopkMaskParams& p);

}  // namespace pns
