// The plain passes (the truth, and the baseline level) and the selection around them: a histogram of the scores' top
// bits finds the bin of the threshold, the scores in that bin are collected, and quickselect ends it.
#include "kernels/topk_mask/topk_mask.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "core/parallel.h"
#include "core/simd_level.h"
#include "kernels/topk_mask/score_key.h"

namespace pns {
namespace {

template <typename T>
bool histogram_baseline(const T* scores, int64_t n, int64_t* counts) {
  bool is_clean = true;
  for (int64_t i = 0; i < n; ++i) {
    is_clean &= scores[i] == scores[i];
    ++counts[top_bits<T, kHistogramBits>(scores[i])];
  }
  return is_clean;
}

template <typename T>
int64_t collect_baseline(const T* scores, int64_t n, uint32_t bin, T* out) {
  int64_t n_out = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (top_bits<T, kHistogramBits>(scores[i]) == bin) out[n_out++] = scores[i];
  }
  return n_out;
}

template <typename T>
void write_baseline(const T* scores, int64_t n, T threshold, bool or_equal, uint8_t* mask) {
  for (int64_t i = 0; i < n; ++i) mask[i] = scores[i] > threshold || (or_equal && scores[i] == threshold);
}

template <typename T>
TopkPasses<T> passes() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return topk_passes_avx512<T>();
    case SimdLevel::kAvx2: return topk_passes_avx2<T>();
    default: break;
  }
#endif
  return {histogram_baseline<T>, collect_baseline<T>, write_baseline<T>};
}

constexpr int64_t kPieceSize = int64_t{1} << 16;  // 256 KB of float: a piece stays in L2 between passes

template <typename T>
struct Piece {
  const T* scores;
  uint8_t* mask;
  int64_t size;
  std::vector<T> in_bin;
};

template <typename T>
struct Threshold {
  T value;
  int64_t n_equal_kept;  // how many of the scores equal to `value` belong to the k largest
};

// The k-th largest over all pieces; 1 <= k <= n. False: a score is NaN. Leaves each piece's scores of that bin.
template <typename T>
bool find_threshold(std::vector<Piece<T>>& pieces, int64_t k, int n_threads, const TopkPasses<T>& pass,
                    Threshold<T>* result) {
  constexpr int kBins = 1 << kHistogramBits;
  std::vector<int64_t> counts(static_cast<size_t>(n_threads) * kBins, 0);
  std::atomic<bool> is_clean{true};
  parallel_items(pieces.size(), n_threads, [&](int64_t i, int worker) {
    if (!pass.histogram(pieces[i].scores, pieces[i].size, counts.data() + worker * kBins)) is_clean = false;
  });
  if (!is_clean) return false;
  int bin = kBins;
  int64_t left = k;  // of the k largest, how many lie in the bin or below
  int64_t in_bin = 0;
  while (true) {
    --bin;
    in_bin = 0;
    for (int t = 0; t < n_threads; ++t) in_bin += counts[t * kBins + bin];
    if (in_bin >= left) break;
    left -= in_bin;
  }
  parallel_items(pieces.size(), n_threads, [&](int64_t i, int) {
    Piece<T>& piece = pieces[i];
    piece.in_bin.resize(piece.size);
    piece.in_bin.resize(pass.collect(piece.scores, piece.size, bin, piece.in_bin.data()));
  });
  std::vector<T> candidates;
  candidates.reserve(in_bin);
  for (const auto& piece : pieces) candidates.insert(candidates.end(), piece.in_bin.begin(), piece.in_bin.end());
  std::nth_element(candidates.begin(), candidates.begin() + (left - 1), candidates.end(), std::greater<T>());
  result->value = candidates[left - 1];
  const int64_t n_above = std::count_if(candidates.begin(), candidates.begin() + (left - 1),
                                        [&](T x) { return x > result->value; });
  result->n_equal_kept = left - n_above;
  return true;
}

template <typename T>
void append_pieces(const T* scores, uint8_t* mask, int64_t n, std::vector<Piece<T>>& pieces) {
  for (int64_t at = 0; at < n; at += kPieceSize) {
    pieces.push_back({scores + at, mask == nullptr ? nullptr : mask + at, std::min(kPieceSize, n - at), {}});
  }
}

int threads_for(int64_t n, int n_threads) {
  constexpr int64_t kPerThread = 200'000;  // about 0.2 ms of work: see parallel.h
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(n_threads, n / kPerThread)));
}

// Sets the first n_kept of the scores equal to `value`; the mask already holds those above it.
template <typename T>
void keep_first_equal(const Piece<T>& piece, T value, int64_t n_kept) {
  for (int64_t i = 0; n_kept > 0; ++i) {
    if (piece.scores[i] == value) {
      piece.mask[i] = 1;
      --n_kept;
    }
  }
}

}  // namespace

template <typename T>
bool topk_mask(const TopkMaskParams<T>& p) {
  std::vector<Piece<T>> pieces;
  int64_t n = 0;
  for (int64_t a = 0; a < p.n_arrays; ++a) {
    append_pieces(p.scores[a], p.masks[a], p.sizes[a], pieces);
    n += p.sizes[a];
  }
  if (n == 0) return true;
  const TopkPasses<T> pass = passes<T>();
  const int n_threads = threads_for(n, p.n_threads);
  const bool legacy = p.ties == Ties::kLegacy;
  // Legacy cuts at the (n - keep)-th smallest, which is the (keep + 1)-th largest.
  const int64_t k = std::max<int64_t>(1, legacy ? std::min(p.keep + 1, n) : p.keep);
  Threshold<T> threshold;
  if (!find_threshold(pieces, k, n_threads, pass, &threshold)) return false;
  const bool all = p.keep == n, none = p.keep == 0 && !legacy;

  std::vector<int64_t> n_equal_kept(pieces.size(), 0);
  for (size_t i = 0; i < pieces.size() && !legacy; ++i) {
    const auto& in_bin = pieces[i].in_bin;
    const int64_t n_equal = std::count(in_bin.begin(), in_bin.end(), threshold.value);
    n_equal_kept[i] = std::min(n_equal, threshold.n_equal_kept);
    threshold.n_equal_kept -= n_equal_kept[i];
    if (n_equal_kept[i] == n_equal) n_equal_kept[i] = -1;  // all of them: one comparison does it
  }
  parallel_items(pieces.size(), n_threads, [&](int64_t i, int) {
    const Piece<T>& piece = pieces[i];
    if (all || none) {
      std::fill(piece.mask, piece.mask + piece.size, static_cast<uint8_t>(all));
      return;
    }
    pass.write(piece.scores, piece.size, threshold.value, n_equal_kept[i] < 0, piece.mask);
    keep_first_equal(piece, threshold.value, n_equal_kept[i]);
  });
  return true;
}

template <typename T>
bool kth_largest(const T* scores, int64_t n, int64_t k, int n_threads, T* value) {
  std::vector<Piece<T>> pieces;
  append_pieces<T>(scores, nullptr, n, pieces);
  Threshold<T> threshold;
  if (!find_threshold(pieces, k, threads_for(n, n_threads), passes<T>(), &threshold)) return false;
  *value = threshold.value;
  return true;
}

template bool topk_mask<float>(const TopkMaskParams<float>&);
template bool topk_mask<double>(const TopkMaskParams<double>&);
template bool kth_largest<float>(const float*, int64_t, int64_t, int, float*);
template bool kth_largest<double>(const double*, int64_t, int64_t, int, double*);

}  // namespace pns
