// topk_mask: the mask of the `keep` largest scores, over several arrays ranked together.
//
//   mask[i] = 1  for exactly `keep` entries: all above the keep-th largest score, and of those equal to it the ones
//                with the lowest index (arrays in the order given).
//   ties = kLegacy: mask[i] = score[i] > the (n - keep)-th smallest score, the rule of the SynFlow family: all ties
//                at the threshold are cut, so fewer than `keep` may remain. keep = n keeps all.
// -0 equals +0; infinities are ordinary; a NaN is found and reported, nothing is promised about the mask then.
// keep = 0 and empty arrays are fine. Reads the scores three times (histogram, collect, write), 64-bit indices.
#pragma once

#include <cstdint>

namespace pns {

enum class Ties { kIndex, kLegacy };

template <typename T>
struct TopkMaskParams {
  int64_t n_arrays;
  const T* const* scores;   // [n_arrays] -> [sizes[a]]
  uint8_t* const* masks;    // [n_arrays] -> [sizes[a]]
  const int64_t* sizes;     // [n_arrays]
  int64_t keep;             // 0 <= keep <= sum of sizes
  Ties ties;
  int n_threads;
};

// False: a score is NaN.
template <typename T> bool topk_mask(const TopkMaskParams<T>& p);
// The k-th largest of n scores, 1 <= k <= n. False: a score is NaN.
template <typename T> bool kth_largest(const T* scores, int64_t n, int64_t k, int n_threads, T* value);

// The three passes over one piece of an array, compiled per SIMD level.
constexpr int kHistogramBits = 11;  // 2,048 counters, 16 KB: they stay in L1
template <typename T>
struct TopkPasses {
  // Counts the top bits of each score's key; false: a score is NaN.
  bool (*histogram)(const T* scores, int64_t n, int64_t* counts);
  // Appends the scores whose top bits are `bin` to out (room for n); returns how many.
  int64_t (*collect)(const T* scores, int64_t n, uint32_t bin, T* out);
  // mask[i] = scores[i] > threshold, or >= with or_equal.
  void (*write)(const T* scores, int64_t n, T threshold, bool or_equal, uint8_t* mask);
};
template <typename T> TopkPasses<T> topk_passes_avx2();
template <typename T> TopkPasses<T> topk_passes_avx512();

}  // namespace pns
