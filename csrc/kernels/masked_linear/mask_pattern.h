// Where the kept weights of a mask are: what masked_linear's sparse products walk. Built once a mask and kept, since a
// training loop shows the same mask thousands of times.
//
// A kept pattern is found by the mask's address and shape and then compared with the mask bit by bit, so a mask
// changed by whatever means (in place, through .data, a new one in the old one's memory) is always noticed. The
// comparison reads N*O*I bytes at the speed of memory; building costs about ten to twenty times that, and at density 0.1
// half as much again for the first backward.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace pns {

// A sparse network's entries once more, for the backward: by columns, in blocks of a panel's rows, so that a block's part of
// a gradient tile lies in a near cache.
struct MaskColumns {
  // 128 rows in L1, 256 or 512 in L2 where a column would have too few entries in fewer to be worth its turn.
  static int64_t block_rows_for(double density) { return density < 0.03 ? 512 : density < 0.07 ? 256 : 128; }
  // A block takes a multiple of so many places: those left over are entries of row 0 behind the last column's end.
  static constexpr int64_t kGroup = 16;
  static constexpr uint16_t kEnd = 1 << 15;  // beside the row of a column's last entry

  struct Block {
    int64_t row, n_rows;      // of the mask
    int64_t first, n_places;
    int64_t kept_column;      // where its columns begin
  };

  int64_t n_blocks;                   // of each panel
  std::vector<Block> blocks;          // [n_panels * n_blocks], their places one after another
  std::vector<uint16_t> row;          // [places], from the block's first on; with kEnd
  std::vector<uint16_t> kept_column;  // those of each block that have entries, from the panel's first on, and one more
  std::vector<uint32_t> place;        // [n_entries], in the order by rows
};

struct MaskPattern {
  // The entries are cut into panels of columns, so that a panel's part of a batch tile lies in a near cache: 128 columns
  // in L1, 256 or 512 in L2, where a row would have too few entries in fewer columns to be worth its turn. Many columns
  // leave panels enough for many threads: 4,096 x 4,096 at density 0.05 take a tenth less in 512 than in 256.
  static constexpr int64_t kWidest = 512;
  static int64_t width_for(double density, int64_t n_in) {
    if (density < 0.03 || (density < 0.07 && n_in >= 8 * kWidest)) return kWidest;
    return density < 0.25 ? kWidest / 2 : kWidest / 4;
  }
  // From here on kept weights are picked by looking at all of a row, W at a time, where an instruction does; below one by
  // one.
  static constexpr double kManyKept = 0.15;

  struct Network {
    mutable std::once_flag is_sorted;
    mutable MaskColumns columns;

    int64_t n_entries;             // kept weights
    bool is_dense;                 // then there are no panels: the products run over all weights
    bool has_many;                 // a density of kManyKept or more
    int64_t panel_width, n_panels;
    std::vector<uint32_t> begin;   // [n_panels * n_out + 1]: row o of panel p is [begin[p * n_out + o], next)
    std::vector<uint16_t> column;  // [n_entries], from the panel's first on
  };

  int64_t n_out, n_in;
  std::vector<uint64_t> bits;  // the mask, 64 entries a word, and a word more
  std::vector<Network> networks;

  // Of networks[n], sparse. Made when first asked for: convolutions, and forwards alone, need none.
  const MaskColumns& columns(int64_t n, int n_threads) const;
  size_t bytes() const;  // with all columns, made or not
};

// The density from which the dense products are faster: forward and backward together cross between 0.6 and 0.7 for
// widths of 128, 1,024 and 4,096 and a batch of 256, at 0.6 and 0.49 for widths of 100 and 256 and a batch of 32, with the
// weight's gradient alone between 0.4 and 0.5 (AVX-512, one thread).
constexpr double kMaskedDenseFrom = 0.45;

// The pattern of mask [n_networks, n_out, n_in], any non-zero byte is kept. Safe to call from several threads.
std::shared_ptr<const MaskPattern> mask_pattern(const uint8_t* mask, int64_t n_networks, int64_t n_out, int64_t n_in,
                                                int n_threads);
// Patterns kept at present, in bytes; and none any more.
size_t mask_pattern_cache_bytes();
void clear_mask_pattern_cache();

// words[j] = bits of mask[64 j, 64 j + 64), 0 behind n. Compiled per SIMD level.
using MaskBits = void (*)(const uint8_t* mask, int64_t n, uint64_t* words);
// Whether that is what words holds.
using MaskEquals = bool (*)(const uint8_t* mask, int64_t n, const uint64_t* words);
struct MaskBitFunctions {
  MaskBits pack;
  MaskEquals equals;
};
MaskBitFunctions mask_bits_avx2();
MaskBitFunctions mask_bits_avx512();

namespace {

// f(j) for the kept entries j of the n from bit `first` on.
template <typename F>
void for_kept(const uint64_t* bits, int64_t first, int64_t n, F&& f) {
  const int64_t last = first + n;
  for (int64_t word = first / 64; word * 64 < last; ++word) {
    uint64_t left = bits[word];
    if (word * 64 < first) left &= ~uint64_t{0} << (first - word * 64);
    if (last - word * 64 < 64) left &= ~(~uint64_t{0} << (last - word * 64));
    for (; left != 0; left &= left - 1) f(word * 64 + __builtin_ctzll(left) - first);
  }
}

}  // namespace
}  // namespace pns
