// The plain loops (the truth, and the baseline level) and the entry points around selection.h.
#include "kernels/topk_mask/topk_mask.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "core/flush_denormals.h"
#include "core/huge_pages.h"
#include "core/parallel.h"
#include "core/simd_level.h"
#include "kernels/topk_mask/selection.h"

namespace pns {
namespace {

template <typename T>
BracketCounts split_baseline(const T* scores, int64_t n, Key<T> lo, Key<T> hi, bool counts_ties, uint8_t* mask,
                             bool /*past_caches*/, T* inside, uint32_t* position) {
  BracketCounts c{};
  for (int64_t i = 0; i < n; ++i) {
    const Key<T> key = score_key(scores[i]);
    c.has_nan |= is_nan_key<T>(key);
    c.above_hi += counts_ties && key > hi;
    c.from_hi += key >= hi;
    c.above_lo += key > lo;
    c.from_lo += counts_ties && key >= lo;
    if (mask != nullptr) mask[i] = key >= hi;
    if (lo < key && key < hi) {
      inside[c.inside] = scores[i];
      position[c.inside++] = static_cast<uint32_t>(i);
    }
  }
  return c;
}

template <typename T>
void write_baseline(const T* scores, int64_t n, Key<T> threshold, bool or_equal, uint8_t* mask) {
  for (int64_t i = 0; i < n; ++i) mask[i] = score_key(scores[i]) >= threshold + !or_equal;
}

template <typename T>
bool keys_baseline(const T* scores, int64_t n, Key<T>* keys) {
  bool has_nan = false;
  for (int64_t i = 0; i < n; ++i) {
    keys[i] = score_key(scores[i]);
    has_nan |= is_nan_key<T>(keys[i]);
  }
  return !has_nan;
}

template <typename K>
K select_baseline(const K* keys, int64_t n, int64_t k) {
  std::vector<K> sorted(keys, keys + n);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<K>());
  return sorted[k - 1];
}

template <typename T>
TopkLoops<T> loops() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return topk_loops_avx512<T>();
    case SimdLevel::kAvx2: return topk_loops_avx2<T>();
    default: break;
  }
#endif
  return {split_baseline<T>, write_baseline<T>, keys_baseline<T>, select_baseline<Key<T>>};
}

template <typename T>
T not_a_number() {
  return from_key<T>(KeyOf<T>::kInfinity | KeyOf<T>::kInfinity >> 1);  // the quiet one
}

template <typename T>
bool kth_largest(const T* scores, int64_t n, int64_t k, int n_threads, const T* hint, T* value) {
  const KeepDenormals keep_denormals;
  Selection<T> selection(loops<T>(), 1, &scores, nullptr, &n, n_threads);
  Threshold<T> threshold;
  if (!selection.find(k, hint, &threshold)) return false;
  *value = from_key<T>(threshold.key);
  return true;
}

void advise_if_large(uint8_t* mask, int64_t n) {
  constexpr int64_t kLarge = int64_t{4} << 20;  // bytes; less is likely to be memory in use already
  if (n >= kLarge) advise_huge_pages(mask, n);
}

// f(row, n_threads) for every row, in parallel where there are many; false once one of them returned it.
template <typename F>
bool for_each_row(int64_t n_rows, int64_t n, int n_threads, F&& f) {
  const int n_parallel = threads_for(n_rows * n, n_threads);
  if (n_rows < 4 * n_parallel) {  // few rows: the threads share each of them, or some would wait for the last
    int64_t r = 0;
    while (r < n_rows && f(r, n_threads)) ++r;
    return r == n_rows;
  }
  std::atomic<bool> is_clean{true};
  parallel_items(n_rows, n_parallel, [&](int64_t r, int) {
    if (is_clean && !f(r, 1)) is_clean = false;
  });
  return is_clean;
}

}  // namespace

template <typename T>
bool topk_mask(const TopkMaskParams<T>& p) {
  for (int64_t a = 0; a < p.n_arrays; ++a) advise_if_large(p.masks[a], p.sizes[a]);
  const KeepDenormals keep_denormals;
  Selection<T> selection(loops<T>(), p.n_arrays, p.scores, p.masks, p.sizes, p.n_threads);
  const int64_t n = selection.n;
  const bool legacy = p.ties == Ties::kLegacy, all = legacy && p.keep == n, none = !legacy && p.keep == 0;
  if (p.threshold != nullptr) *p.threshold = not_a_number<T>();
  if (n == 0) return true;
  // Legacy cuts at the (n - keep)-th smallest, which is the (keep + 1)-th largest.
  const int64_t k = std::max<int64_t>(1, legacy ? std::min(p.keep + 1, n) : p.keep);
  Threshold<T> threshold;
  if (!selection.find(k, p.hint, &threshold)) return false;
  if (all || none) {
    for (int64_t a = 0; a < p.n_arrays; ++a) std::fill_n(p.masks[a], p.sizes[a], static_cast<uint8_t>(all));
    return true;
  }
  if (legacy) threshold.n_equal_kept = 0;
  selection.finish(threshold);
  if (p.threshold != nullptr) *p.threshold = from_key<T>(threshold.key);
  return true;
}

template <typename T>
bool topk_mask_rows(const TopkMaskRows<T>& p) {
  advise_if_large(p.masks, p.n_rows * p.n);
  return for_each_row(p.n_rows, p.n, p.n_threads, [&](int64_t r, int n_threads) {
    const T* const scores = p.scores + r * p.n;
    uint8_t* const mask = p.masks + r * p.n;
    const T* const hint = p.hints == nullptr ? nullptr : p.hints + r;
    T* const threshold = p.thresholds == nullptr ? nullptr : p.thresholds + r;
    return topk_mask<T>({1, &scores, &mask, &p.n, p.keep, p.ties, n_threads, hint, threshold});
  });
}

template <typename T>
bool kth_largest_rows(const T* scores, int64_t n_rows, int64_t n, int64_t k, int n_threads, const T* hints,
                      T* values) {
  return for_each_row(n_rows, n, n_threads, [&](int64_t r, int n_row_threads) {
    return kth_largest(scores + r * n, n, k, n_row_threads, hints == nullptr ? nullptr : hints + r, values + r);
  });
}

#define PNS_INSTANTIATE(T)                                 \
  template bool topk_mask<T>(const TopkMaskParams<T>&);    \
  template bool topk_mask_rows<T>(const TopkMaskRows<T>&); \
  template bool kth_largest_rows<T>(const T*, int64_t, int64_t, int64_t, int, const T*, T*);
PNS_INSTANTIATE(float)
PNS_INSTANTIATE(double)
PNS_INSTANTIATE(Float16)
PNS_INSTANTIATE(BFloat16)
#undef PNS_INSTANTIATE

}  // namespace pns
