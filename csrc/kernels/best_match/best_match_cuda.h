// best_match on CUDA (contract: best_match.h; the same bits as the CPU). One difference: nothing waits to learn that a
// target is not finite; such a target gets index -1, scale 1, distance NaN. Only enqueues on `stream`: no allocation,
// no synchronisation, so it can be captured into a graph.
#pragma once

#include <cstdint>

struct CUstream_st;  // *cudaStream_t, without the CUDA headers

namespace pns {

struct CudaBestMatchParams {
  int64_t n_problems, n_targets, n_candidates, n_parameters;
  const void* target;  // [N, T, P], double or float
  bool target_is_f64;
  const uint8_t* support;  // [N, T, P]
  const void* candidates;  // [N, C, P], double or float
  bool candidates_are_f64;
  const uint8_t* available;  // [N, C] or null: all
  int64_t* index;            // [N, T]
  void *scale, *distance;    // [N, T], double or float
  bool results_are_f64;
  void* workspace;           // best_match_workspace(...) bytes, 256-byte aligned, contents irrelevant
  int device;
  CUstream_st* stream;  // of that device
};

// Bytes; depends on the sizes alone. 12 for each parameter of the targets, and a float for each target and tile of 4 to
// 128 candidates.
int64_t best_match_workspace(int64_t n_problems, int64_t n_targets, int64_t n_candidates, int64_t n_parameters);
// Throws std::runtime_error("best_match: ...") with CUDA's message.
void launch_best_match(const CudaBestMatchParams& p);

}  // namespace pns
