// topk_mask: the mask of the `keep` largest scores, over several arrays ranked together; kth_largest: its threshold.
//
//   mask[i] = 1  for exactly `keep` entries: all above the keep-th largest score, and of those equal to it the ones
//                with the lowest index (arrays in the order given).
//   ties = kLegacy: mask[i] = score[i] > the (n - keep)-th smallest score, the rule of the SynFlow family: all ties
//                at the threshold are cut, so fewer than `keep` may remain. keep = n keeps all.
//   threshold  = the keep-th largest score; kLegacy: the (n - keep)-th smallest, that is the largest one cut. NaN where
//                there is none (keep = 0; kLegacy: keep = n; no scores). Never -0.
// -0 equals +0; infinities are ordinary; a NaN is found and reported, nothing is promised about the mask then.
// keep = 0 and empty arrays are fine. 64-bit indices. A hint changes how long it takes, never the result.
//
// One pass over the scores (read once, mask written once) compares them with a bracket [lo, hi] of the threshold,
// guessed from a sample: at hi and above the mask is 1, what lies strictly inside is listed and ranked afterwards, ties
// with lo and hi are only counted, so that heavy ties, which a sample shows, fill no list. A bracket that misses the
// threshold costs another pass, and so do ties that the sample did not show.
#pragma once

#include <cstdint>

#include "kernels/topk_mask/score_key.h"

namespace pns {

enum class Ties { kIndex, kLegacy };

// T: float, double, Float16, BFloat16.
template <typename T>
struct TopkMaskParams {
  int64_t n_arrays;
  const T* const* scores;    // [n_arrays] -> [sizes[a]]
  uint8_t* const* masks;     // [n_arrays] -> [sizes[a]]
  const int64_t* sizes;      // [n_arrays]
  int64_t keep;              // 0 <= keep <= sum of sizes
  Ties ties;
  int n_threads;
  const T* hint = nullptr;   // where the threshold is thought to be, such as the last one; NaN is none
  T* threshold = nullptr;
};

// Rows of one tensor, each ranked on its own.
template <typename T>
struct TopkMaskRows {
  const T* scores;  // [n_rows, n]
  uint8_t* masks;   // [n_rows, n]
  int64_t n_rows, n;
  int64_t keep;  // 0 <= keep <= n
  Ties ties;
  int n_threads;
  const T* hints;  // [n_rows] or null
  T* thresholds;   // [n_rows] or null
};

// False: a score is NaN.
template <typename T> bool topk_mask(const TopkMaskParams<T>& p);
template <typename T> bool topk_mask_rows(const TopkMaskRows<T>& p);
// values[r] = the k-th largest of scores[r, 0..n), 1 <= k <= n. False: a score is NaN.
template <typename T>
bool kth_largest_rows(const T* scores, int64_t n_rows, int64_t n, int64_t k, int n_threads, const T* hints, T* values);

// How one piece of the scores lies to a bracket; NaN among them spoils the counts, not the lists.
struct BracketCounts {
  int64_t above_hi, from_hi, above_lo, from_lo;  // scores > hi, >= hi, > lo, >= lo; the first and last if asked for
  int64_t inside;                                // lo < score < hi: the length of the lists
  bool has_nan;
};

// The loops over one piece of an array, compiled per SIMD level.
constexpr int64_t kListSlack = 4;  // entries behind the lists that may be overwritten
template <typename T>
struct TopkLoops {
  using K = Key<T>;
  // Writes mask[i] = scores[i] >= hi (unless mask is null), and score and position of what lies inside, in order, to
  // lists with room for n + kListSlack. Counting what ties with a bound takes a quarter of the time. past_caches: the mask
  // is stored so if it lies at a multiple of 64 bytes, and scores are prefetched so.
  BracketCounts (*split)(const T* scores, int64_t n, K lo, K hi, bool counts_ties, uint8_t* mask, bool past_caches,
                         T* inside, uint32_t* position);
  // mask[i] = scores[i] > threshold, or >= with or_equal.
  void (*write)(const T* scores, int64_t n, K threshold, bool or_equal, uint8_t* mask);
  // Keys of n scores; false: one is NaN.
  bool (*keys)(const T* scores, int64_t n, K* keys);
  // The k-th largest of n keys.
  K (*select)(const K* keys, int64_t n, int64_t k);
};
template <typename T> TopkLoops<T> topk_loops_avx2();
template <typename T> TopkLoops<T> topk_loops_avx512();

}  // namespace pns
