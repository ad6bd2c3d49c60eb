// Selection: the threshold of the k largest scores, and the mask. A bracket of the threshold is guessed, one pass over
// the scores compares them with it and lists what lies inside, and the list is ranked. A pass whose bracket misses the
// threshold is wasted, never wrong: it counts, and so shows on which side the threshold lies. Who wrote what does not
// depend on the threads: each piece of the scores has lists and counts of its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/parallel.h"
#include "kernels/topk_mask/topk_mask.h"

namespace pns {
namespace {

template <typename T>
struct Bracket {
  Key<T> lo = -KeyOf<T>::kInfinity, hi = KeyOf<T>::kInfinity;
  bool counts_ties = true;  // with lo and hi
};

// Scores that one thread takes at a time, with the part of the lists that belongs to them: 256 KB of float, so that a
// piece that is read again lies in L2, but about 128 pieces at most, since each costs cache misses of its own: with 1,526
// pieces scouting, ranking and finishing 10^8 scores took 1.4 instead of 0.8 ms, beside a pass of 5.5 to 9.
constexpr int64_t kPieceSize = int64_t{1} << 16;
inline int64_t piece_size(int64_t n) {
  constexpr int64_t kMostPieces = 128;
  return std::max<int64_t>(kPieceSize, (n / kMostPieces + kPieceSize - 1) / kPieceSize * kPieceSize);
}
template <typename T>
struct Piece {
  const T* scores;
  uint8_t* mask;
  int64_t size;
  BracketCounts counts;
  std::vector<T> inside;
  std::vector<uint32_t> position;
};

constexpr int64_t kAtOnce = 2048;  // so few scores are ranked as a whole, in 1 us

constexpr int64_t kScoutFrom = 500'000;  // from so many on scouts pay: at 10^6 12% of the time, at 10^8 20%

// Large masks are stored past the caches where that is known to pay, since it spares reading what they replace. Both cores
// of a Zen 5 take 7.3 instead of 10.3 ms for a pass over 10^8 scores, as long as before (11.4) while other guests of the
// machine use its memory, and 0.82 instead of 1.02 ms for 10^7; 2.17 instead of 2.32 with a sum over the mask behind it. A
// Xeon with AMX took 13% longer at 10^8 and 27% at 10^7.
inline bool goes_past_caches(int64_t n) {
#ifdef PNS_X86
  return n >= int64_t{1} << 23 && __builtin_cpu_is("amd");
#else
  return false;
#endif
}

enum class At { kHi, kInside, kLo };  // of the bracket

template <typename T>
struct Threshold {
  Key<T> key;
  int64_t n_equal_kept;  // how many of the scores equal to it belong to the k largest
  At at;
};

template <typename T>
class Selection {
 public:
  // masks may be null: then only find has a meaning.
  Selection(const TopkLoops<T>& loops, int64_t n_arrays, const T* const* scores, uint8_t* const* masks,
            const int64_t* sizes, int n_threads);
  // The k-th largest of all scores, 1 <= k <= n, which then lies in the bracket. False: a score is NaN.
  bool find(int64_t k, const T* hint, Threshold<T>* threshold);
  // Completes the masks that the pass of find has left.
  void finish(Threshold<T> threshold);

  const int64_t n;

 private:
  bool everything(std::vector<Key<T>>& keys) const;
  bool sample(int64_t k, int size_bits, Bracket<T>* bracket) const;
  bool scout(int64_t k, Bracket<T>* bracket) const;
  bool guess(int64_t k, const T* hint, int attempt, Bracket<T>* bracket) const;
  bool pass(Bracket<T> bracket);
  Key<T> select_inside(int64_t k) const;
  int64_t count_above(Key<T> key) const;
  void finish_inside(Piece<T>& piece, Threshold<T> threshold, int64_t n_kept) const;

  const TopkLoops<T> loops_;
  const int n_threads_;
  std::vector<Piece<T>> pieces_;
  Bracket<T> known_;  // the threshold lies in it for certain
  BracketCounts total_{};
};

int threads_for(int64_t n, int n_threads) {
  constexpr int64_t kPerThread = 200'000;  // some 40 us of work, twice what it takes to start a thread
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(n_threads, n / kPerThread)));
}

int64_t sum(const int64_t* sizes, int64_t n_arrays) {
  int64_t n = 0;
  for (int64_t a = 0; a < n_arrays; ++a) n += sizes[a];
  return n;
}

template <typename T>
Selection<T>::Selection(const TopkLoops<T>& loops, int64_t n_arrays, const T* const* scores, uint8_t* const* masks,
                        const int64_t* sizes, int n_threads)
    : n(sum(sizes, n_arrays)), loops_(loops), n_threads_(threads_for(n, n_threads)) {
  const int64_t size = piece_size(n);
  for (int64_t a = 0; a < n_arrays; ++a) {
    for (int64_t at = 0; at < sizes[a]; at += size) {
      uint8_t* const mask = masks == nullptr ? nullptr : masks[a] + at;
      pieces_.push_back({scores[a] + at, mask, std::min(size, sizes[a] - at), {}, {}, {}});
    }
  }
}

template <typename T>
bool Selection<T>::find(int64_t k, const T* hint, Threshold<T>* threshold) {
  const bool has_hint = hint != nullptr && !is_nan_key<T>(score_key(*hint));
  for (int attempt = has_hint ? 0 : 1;; ++attempt) {
    Bracket<T> bracket;
    if (!guess(k, hint, attempt, &bracket) || !pass(bracket)) return false;
    if (!bracket.counts_ties && (k <= total_.from_hi || k > total_.above_lo)) {
      bracket.counts_ties = true;
      if (!pass(bracket)) return false;
    }
    if (k <= total_.above_hi) {
      known_.lo = bracket.hi;
    } else if (k <= total_.from_hi) {
      *threshold = {bracket.hi, k - total_.above_hi, At::kHi};
      return true;
    } else if (k <= total_.above_lo) {
      const Key<T> key = select_inside(k - total_.from_hi);
      *threshold = {key, k - total_.from_hi - count_above(key), At::kInside};
      return true;
    } else if (k <= total_.from_lo) {
      *threshold = {bracket.lo, k - total_.above_lo, At::kLo};
      return true;
    } else {
      known_.hi = bracket.lo;
    }
  }
}

// Attempt 0 believes the hint, 1 a sample, and 2 nothing but what the passes before have shown, which ends it.
template <typename T>
bool Selection<T>::guess(int64_t k, const T* hint, int attempt, Bracket<T>* bracket) const {
  if (n <= kAtOnce) {
    std::vector<Key<T>> keys;
    if (!everything(keys)) return false;
    bracket->lo = bracket->hi = loops_.select(keys.data(), n, k);
    return true;
  }
  if (attempt == 2) {
    *bracket = known_;
    return true;
  }
  // A score sampled costs up to a cache miss, one listed 2 ns: level, within 10%, at about 4 sqrt(n) samples.
  int size_bits = 9;
  while (size_bits < 15 && int64_t{1} << 2 * size_bits < 16 * n) ++size_bits;
  if (attempt == 1) return n < kScoutFrom ? sample(k, size_bits, bracket) : sample(k, 11, bracket) && scout(k, bracket);
  // A hint earns its narrow bracket, an eighth of what the sample says, only where the sample finds it likely. The
  // width follows the scores' density and so needs no scale: at k = 10% of a normal distribution it is +-1% of the
  // threshold, and 0.8% of the scores lie inside.
  if (!sample(k, std::max(9, size_bits - 2), bracket)) return false;
  const Key<T> at = score_key(*hint), reach = bracket->hi / 16 - bracket->lo / 16;
  if (bracket->lo <= at && at <= bracket->hi) {
    const Bracket<T> wide = *bracket;  // at +- reach may overflow outside of it
    if (at > wide.lo + reach) bracket->lo = at - reach;
    if (at < wide.hi - reach) bracket->hi = at + reach;
  }
  return true;
}

template <typename T>
bool Selection<T>::everything(std::vector<Key<T>>& keys) const {
  bool is_clean = true;
  keys.resize(n);
  Key<T>* next = keys.data();
  for (const auto& piece : pieces_) {
    is_clean &= loops_.keys(piece.scores, piece.size, next);
    next += piece.size;
  }
  return is_clean;
}

// The bracket that a sample of 2^m scores says holds the k-th largest, wrong in one of 400 cases. The scores are cut
// into as many strata and one is taken out of each, at a hashed place: sorted scores are sampled better than shuffled
// ones, periodic ones no worse.
template <typename T>
bool Selection<T>::sample(int64_t k, int size_bits, Bracket<T>* bracket) const {
  constexpr int kHashBits = 20;  // n < 2^43
  const int64_t size = int64_t{1} << size_bits;
  std::vector<Key<T>> keys(size);
  const Piece<T>* piece = pieces_.data();
  int64_t begin = 0;  // of the piece
  bool is_clean = true;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t hash = static_cast<uint32_t>(i * 2654435761u) >> (32 - kHashBits);
    const int64_t at = (i * n + (hash * n >> kHashBits)) >> size_bits;
    while (at >= begin + piece->size) begin += piece++->size;
    keys[i] = score_key(piece->scores[at - begin]);
    is_clean &= !is_nan_key<T>(keys[i]);
  }
  if (!is_clean) return false;
  const double share = static_cast<double>(k) / n, middle = share * size;
  const double deviation = 3.0 * std::sqrt(middle * (1 - share)) + 1;
  const auto from_top = static_cast<int64_t>(middle - deviation), to_top = static_cast<int64_t>(middle + deviation) + 1;
  if (from_top >= 1) bracket->hi = loops_.select(keys.data(), size, from_top);
  if (to_top <= size) bracket->lo = loops_.select(keys.data(), size, to_top);
  const auto ties = [&](Key<T> key) { return std::count(keys.begin(), keys.end(), key) > 1; };
  bracket->counts_ties = ties(bracket->lo) || ties(bracket->hi);
  return true;
}

// Narrows the bracket by a run of scores out of every piece, at a hashed place: one score in 32, which cost next to
// nothing, since they lie side by side. How far their counts may be off is seen from how much those of neighbouring runs
// differ: scores of one layer are alike, those of a sorted array or of unlike layers are not.
template <typename T>
bool Selection<T>::scout(int64_t k, Bracket<T>* bracket) const {
  constexpr int64_t kOneIn = 32;
  std::vector<const T*> runs;
  std::vector<int64_t> sizes;
  for (const auto& piece : pieces_) {
    const int64_t size = (piece.size + kOneIn - 1) / kOneIn, hash = static_cast<uint32_t>(runs.size() * 2654435761u);
    runs.push_back(piece.scores + (hash * (piece.size - size) >> 32));
    sizes.push_back(size);
  }
  Selection<T> scouts(loops_, runs.size(), runs.data(), nullptr, sizes.data(), n_threads_);
  if (!scouts.pass(*bracket)) return false;
  const double share = static_cast<double>(k) / n, middle = share * scouts.n;
  const auto surplus = [&](size_t run) { return scouts.pieces_[run].counts.from_hi - share * sizes[run]; };
  double between = 0;
  for (size_t i = 1; i < sizes.size(); ++i) between += std::pow(surplus(i) - surplus(i - 1), 2) / 2;
  const double deviation = 3.0 * std::sqrt(std::max(middle * (1 - share), between)) + 1;
  const BracketCounts& counts = scouts.total_;
  const auto from_top = static_cast<int64_t>(middle - deviation) - counts.from_hi;
  const auto to_top = static_cast<int64_t>(middle + deviation) + 1 - counts.from_hi;
  if (1 <= from_top && from_top <= counts.inside) bracket->hi = scouts.select_inside(from_top);
  if (1 <= to_top && to_top <= counts.inside) bracket->lo = scouts.select_inside(to_top);
  bracket->counts_ties |= bracket->lo == bracket->hi;
  return true;
}

// False: a score is NaN.
template <typename T>
bool Selection<T>::pass(Bracket<T> bracket) {
  struct Lists {
    AlignedBuffer<T> inside;
    AlignedBuffer<uint32_t> position;
  };
  std::vector<Lists> lists(n_threads_);
  const int64_t longest = std::min(n, piece_size(n)) + kListSlack;
  parallel_items(pieces_.size(), n_threads_, [&](int64_t i, int worker) {
    Piece<T>& piece = pieces_[i];
    Lists& list = lists[worker];
    list.inside.resize(longest);
    list.position.resize(longest);
    T* const inside = list.inside.data();
    uint32_t* const position = list.position.data();
    piece.counts = loops_.split(piece.scores, piece.size, bracket.lo, bracket.hi, bracket.counts_ties, piece.mask,
                                goes_past_caches(n), inside, position);
    piece.inside.assign(inside, inside + piece.counts.inside);
    if (piece.mask != nullptr) piece.position.assign(position, position + piece.counts.inside);
  });
  total_ = {};
  for (const auto& piece : pieces_) {
    total_.above_hi += piece.counts.above_hi;
    total_.from_hi += piece.counts.from_hi;
    total_.above_lo += piece.counts.above_lo;
    total_.from_lo += piece.counts.from_lo;
    total_.inside += piece.counts.inside;
    total_.has_nan |= piece.counts.has_nan;
  }
  return !total_.has_nan;
}

// The k-th largest inside the bracket: the same problem again on what is left of it.
template <typename T>
Key<T> Selection<T>::select_inside(int64_t k) const {
  std::vector<const T*> lists;
  std::vector<int64_t> sizes;
  for (const auto& piece : pieces_) {
    lists.push_back(piece.inside.data());
    sizes.push_back(piece.counts.inside);
  }
  // Very many lists, each of a few scores, are joined first: with 1,000 arrays of 10^5 scores 0.1 instead of 0.6 ms.
  constexpr size_t kMostLists = 256;
  std::vector<T> joined;
  if (lists.size() > kMostLists) {
    joined.reserve(total_.inside);
    for (const auto& piece : pieces_) joined.insert(joined.end(), piece.inside.begin(), piece.inside.end());
    lists = {joined.data()}, sizes = {total_.inside};
  }
  Selection<T> rest(loops_, lists.size(), lists.data(), nullptr, sizes.data(), 1);
  // Of scores that a bracket has hardly thinned out, a sample shows nothing; counting ends after 64 rounds at most.
  if (rest.n <= kAtOnce || rest.n > n / 2) {
    std::vector<Key<T>> keys;
    rest.everything(keys);
    return loops_.select(keys.data(), rest.n, k);
  }
  Threshold<T> threshold;
  rest.find(k, nullptr, &threshold);
  return threshold.key;
}

// How many scores inside the bracket are above the key.
template <typename T>
int64_t Selection<T>::count_above(Key<T> key) const {
  int64_t n_above = 0;
  for (const auto& piece : pieces_) {
    for (T x : piece.inside) n_above += score_key(x) > key;
  }
  return n_above;
}

template <typename T>
int64_t count_equal(const Piece<T>& piece, Threshold<T> threshold) {
  if (threshold.at == At::kHi) return piece.counts.from_hi - piece.counts.above_hi;
  if (threshold.at == At::kLo) return piece.counts.from_lo - piece.counts.above_lo;
  int64_t n_equal = 0;
  for (T x : piece.inside) n_equal += score_key(x) == threshold.key;
  return n_equal;
}

template <typename T>
void Selection<T>::finish(Threshold<T> threshold) {
  std::vector<int64_t> n_kept(pieces_.size());
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const int64_t n_equal = count_equal(pieces_[i], threshold);
    n_kept[i] = std::min(n_equal, threshold.n_equal_kept);
    threshold.n_equal_kept -= n_kept[i];
    if (n_kept[i] == n_equal) n_kept[i] = -1;  // all of them
  }
  // A list's entries are stored far apart: 2.5 ns each, where a score that is read costs 0.3 ns.
  const int64_t work = threshold.at == At::kInside ? 8 * total_.inside : n;
  parallel_items(pieces_.size(), threads_for(work, n_threads_), [&](int64_t i, int) {
    Piece<T>& piece = pieces_[i];
    if (threshold.at == At::kInside) {
      finish_inside(piece, threshold, n_kept[i] < 0 ? piece.size : n_kept[i]);
      return;
    }
    const bool all = n_kept[i] < 0;
    if (all && threshold.at == At::kHi) return;  // as the pass has left it
    loops_.write(piece.scores, piece.size, threshold.key, all, piece.mask);
    for (int64_t j = 0; n_kept[i] > 0; ++j) {
      if (score_key(piece.scores[j]) != threshold.key) continue;
      piece.mask[j] = 1;
      --n_kept[i];
    }
  });
}

template <typename T>
void Selection<T>::finish_inside(Piece<T>& piece, Threshold<T> threshold, int64_t n_kept) const {
  for (size_t j = 0; j < piece.inside.size(); ++j) {
    const Key<T> key = score_key(piece.inside[j]);
    bool is_kept = key > threshold.key;  // as likely as not: stored without a branch
    if (key == threshold.key) is_kept = n_kept-- > 0;
    piece.mask[piece.position[j]] = is_kept;
  }
}

}  // namespace
}  // namespace pns
