// existence_search on CUDA (contract: existence_search.h; the same bits as the CPU). Waits for the device: candidates go
// in launches of some 50 ms, and between two of them `should_stop` is asked.
#pragma once

#include <cstdint>
#include <functional>

struct CUstream_st;  // *cudaStream_t, without the CUDA headers

namespace pns {

struct CudaExistenceSearchParams {
  int64_t n_targets, n_parameters;
  const double* theta;  // [T, k]
  int64_t first, n_candidates;
  uint64_t seed;
  bool is_normal;
  double eps;          // negative: do not count
  int64_t* index;      // [T]
  double* scale;       // [T]
  double* distance;    // [T]
  double* candidate;   // [T, k]
  int64_t* n_matches;  // [T]
  void* workspace;     // existence_search_workspace(T, k) bytes, 256-byte aligned, contents irrelevant
  int device;          // where all pointers live
  CUstream_st* stream;  // of that device
  std::function<bool(int64_t)> should_stop;  // asked with the number of candidates done
};

int64_t existence_search_workspace(int64_t n_targets, int64_t n_parameters);
// False: stopped, and nothing was written. Throws std::runtime_error("existence_search: ...") with CUDA's message.
bool run_existence_search(const CudaExistenceSearchParams& p);

}  // namespace pns
