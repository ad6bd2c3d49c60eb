// The passes of topk_mask in blocks whose inner loops the compiler turns into vectors (keys, comparisons); the
// counting itself is scalar: a conflict-free gather-scatter of counters was no faster at 2,048 bins.
#pragma once

#include "kernels/topk_mask/score_key.h"
#include "kernels/topk_mask/topk_mask.h"

namespace pns {
namespace {

constexpr int kBlock = 256;

template <typename T>
bool histogram_pass(const T* scores, int64_t n, int64_t* counts) {
  // Two sets of counters: equal neighbours would otherwise wait for each other's store.
  uint32_t odd[1 << kHistogramBits] = {};
  uint32_t bins[kBlock];
  bool is_clean = true;
  for (int64_t at = 0; at < n; at += kBlock) {
    const int size = static_cast<int>(n - at < kBlock ? n - at : kBlock);
    int n_nan = 0;
    for (int i = 0; i < size; ++i) {
      const T x = scores[at + i];
      n_nan += x != x;
      bins[i] = top_bits<T, kHistogramBits>(x);
    }
    is_clean &= n_nan == 0;
    int i = 0;
    for (; i + 1 < size; i += 2) {
      ++counts[bins[i]];
      ++odd[bins[i + 1]];
    }
    if (i < size) ++counts[bins[i]];
  }
  for (int b = 0; b < (1 << kHistogramBits); ++b) counts[b] += odd[b];
  return is_clean;
}

template <typename T>
int64_t collect_pass(const T* scores, int64_t n, uint32_t bin, T* out) {
  int64_t n_out = 0;
  uint8_t is_in[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int size = static_cast<int>(n - at < kBlock ? n - at : kBlock);
    for (int i = 0; i < size; ++i) is_in[i] = top_bits<T, kHistogramBits>(scores[at + i]) == bin;
    for (int i = 0; i < size; ++i) {
      out[n_out] = scores[at + i];
      n_out += is_in[i];
    }
  }
  return n_out;
}

template <typename T>
void write_pass(const T* scores, int64_t n, T threshold, bool or_equal, uint8_t* mask) {
  if (or_equal) {
    for (int64_t i = 0; i < n; ++i) mask[i] = scores[i] >= threshold;
  } else {
    for (int64_t i = 0; i < n; ++i) mask[i] = scores[i] > threshold;
  }
}

}  // namespace
}  // namespace pns
