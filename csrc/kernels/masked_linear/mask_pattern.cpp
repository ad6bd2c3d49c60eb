#include "kernels/masked_linear/mask_pattern.h"

#include <algorithm>
#include <atomic>
#include <list>
#include <mutex>

#include "core/parallel.h"
#include "core/simd_level.h"
#include "kernels/masked_linear/mask_bits_body.h"

namespace pns {
namespace {

MaskBitFunctions bit_functions() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return mask_bits_avx512();
    case SimdLevel::kAvx2: return mask_bits_avx2();
    default: break;
  }
#endif
  return mask_bit_functions();
}

// f(begin, end) over whole words of a mask, on several threads where it is large.
template <typename F>
void for_pieces(int64_t n, int n_threads, F&& f) {
  constexpr int64_t kPiece = int64_t{1} << 19;  // a multiple of 64; half a megabyte is about 20 us of reading
  const int64_t n_pieces = (n + kPiece - 1) / kPiece;
  parallel_items(n_pieces, n_threads, [&](int64_t i, int) { f(i * kPiece, std::min(n, (i + 1) * kPiece)); });
}

int64_t count_kept(const uint64_t* bits, int64_t first, int64_t n) {
  int64_t count = 0;
  const int64_t last = first + n;
  for (int64_t word = first / 64; word * 64 < last; ++word) {
    uint64_t left = bits[word];
    if (word * 64 < first) left &= ~uint64_t{0} << (first - word * 64);
    if (last - word * 64 < 64) left &= ~(~uint64_t{0} << (last - word * 64));
    count += __builtin_popcountll(left);
  }
  return count;
}

void find_entries(const MaskPattern& pattern, int64_t network, int n_threads, MaskPattern::Network* found) {
  const int64_t n_out = pattern.n_out, n_in = pattern.n_in, n = n_out * n_in, first = network * n;
  const uint64_t* bits = pattern.bits.data();
  found->n_entries = count_kept(bits, first, n);
  constexpr int64_t kMostIndexed = int64_t{1} << 31;
  found->is_dense = (n > 0 && found->n_entries >= kMaskedDenseFrom * n) || n >= kMostIndexed;
  if (found->is_dense) return;

  const double density = n > 0 ? double(found->n_entries) / n : 0;
  found->has_many = density >= MaskPattern::kManyKept;
  const int64_t width = found->panel_width = MaskPattern::width_for(density, n_in);
  found->n_panels = (n_in + width - 1) / width;
  found->begin.resize(found->n_panels * n_out + 1);
  found->column.resize(found->n_entries);
  // Counts first, shifted by one so that their sums become beginnings.
  const int n_workers = n > (1 << 20) && pattern.networks.size() == 1 ? n_threads : 1;
  auto for_rows = [&](auto&& f) {
    parallel_items(found->n_panels, n_workers, [&](int64_t panel, int) {
      const int64_t column = panel * width, n_columns = std::min(width, n_in - column);
      for (int64_t o = 0; o < n_out; ++o) f(panel * n_out + o, first + o * n_in + column, n_columns);
    });
  };
  for_rows([&](int64_t row, int64_t bit, int64_t n_columns) {
    found->begin[row + 1] = static_cast<uint32_t>(count_kept(bits, bit, n_columns));
  });
  for (int64_t row = 0; row < found->n_panels * n_out; ++row) found->begin[row + 1] += found->begin[row];
  for_rows([&](int64_t row, int64_t bit, int64_t n_columns) {
    uint32_t k = found->begin[row];
    for_kept(bits, bit, n_columns, [&](int64_t column) { found->column[k++] = static_cast<uint16_t>(column); });
  });
}

// A block's entries by columns: a sort by counting. begin: of the block's rows.
void sort_by_columns(const MaskPattern::Network& network, const MaskColumns::Block& block, const uint32_t* begin,
                     int64_t n_columns, MaskColumns* sorted) {
  const uint16_t* column = network.column.data();
  uint32_t count[MaskPattern::kWidest], next[MaskPattern::kWidest];
  std::fill_n(count, n_columns, 0);
  for (uint32_t k = begin[0]; k < begin[block.n_rows]; ++k) ++count[column[k]];
  uint16_t* kept_column = sorted->kept_column.data() + block.kept_column;
  auto at = static_cast<uint32_t>(block.first);
  for (int64_t c = 0; c < n_columns; at += count[c++]) {
    next[c] = at;
    if (count[c] > 0) *kept_column++ = static_cast<uint16_t>(c);
  }
  for (int64_t r = 0; r < block.n_rows; ++r) {
    for (uint32_t k = begin[r]; k < begin[r + 1]; ++k) {
      const uint32_t place = sorted->place[k] = next[column[k]]++;
      sorted->row[place] = static_cast<uint16_t>(r);
    }
  }
  for (int64_t c = 0; c < n_columns; ++c) {
    if (count[c] > 0) sorted->row[next[c] - 1] |= MaskColumns::kEnd;
  }
}

MaskColumns find_columns(const MaskPattern::Network& network, int64_t n_out, int64_t n_in, int n_threads) {
  constexpr int64_t kGroup = MaskColumns::kGroup;
  const int64_t block_rows = MaskColumns::block_rows_for(double(network.n_entries) / std::max<int64_t>(1, n_out * n_in));
  const int64_t n_blocks = std::max<int64_t>(1, (n_out + block_rows - 1) / block_rows);
  const int64_t n_all = network.n_panels * n_blocks;
  const int64_t width = network.panel_width, n_kept = std::min(width, n_in) + 1;
  const auto rows_of = [&](int64_t i) { return network.begin.data() + i / n_blocks * n_out + i % n_blocks * block_rows; };
  MaskColumns sorted;
  sorted.n_blocks = n_blocks;
  sorted.blocks.resize(n_all);
  int64_t n_places = 0;
  for (int64_t i = 0; i < n_all; ++i) {
    const int64_t row = i % n_blocks * block_rows, n_rows = std::min(block_rows, n_out - row);
    const int64_t n_entries = rows_of(i)[n_rows] - rows_of(i)[0];
    sorted.blocks[i] = {row, n_rows, n_places, (n_entries + kGroup - 1) / kGroup * kGroup, i * n_kept};
    n_places += sorted.blocks[i].n_places;
  }
  sorted.row.resize(n_places);
  sorted.kept_column.resize(n_all * n_kept);
  sorted.place.resize(network.n_entries);
  parallel_items(n_all, network.n_entries > 20'000 ? n_threads : 1, [&](int64_t i, int) {
    sort_by_columns(network, sorted.blocks[i], rows_of(i), std::min(width, n_in - i / n_blocks * width), &sorted);
  });
  return sorted;
}

std::shared_ptr<const MaskPattern> build(const uint8_t* mask, int64_t n_networks, int64_t n_out, int64_t n_in,
                                         int n_threads) {
  auto pattern = std::make_shared<MaskPattern>();
  const int64_t n = n_networks * n_out * n_in;
  pattern->n_out = n_out, pattern->n_in = n_in;
  pattern->bits.resize((n + 63) / 64 + 1);
  const MaskBitFunctions run = bit_functions();
  for_pieces(n, n_threads, [&](int64_t begin, int64_t end) {
    run.pack(mask + begin, end - begin, pattern->bits.data() + begin / 64);
  });
  pattern->networks = std::vector<MaskPattern::Network>(n_networks);
  parallel_items(n_networks, n_networks * n_out * n_in > (1 << 20) ? n_threads : 1, [&](int64_t i, int) {
    find_entries(*pattern, i, n_threads, &pattern->networks[i]);
  });
  return pattern;
}

struct Kept {
  const uint8_t* mask;
  std::shared_ptr<const MaskPattern> pattern;

  bool is_of(const uint8_t* address, int64_t n_networks, int64_t n_out, int64_t n_in) const {
    return mask == address && static_cast<int64_t>(pattern->networks.size()) == n_networks &&
           pattern->n_out == n_out && pattern->n_in == n_in;
  }
};

// The latest first; what was not asked for longest goes when there is too much.
constexpr size_t kMostBytes = size_t{1} << 29, kMostPatterns = 256;
std::mutex kept_mutex;
std::list<Kept> kept;
size_t kept_bytes = 0;

std::shared_ptr<const MaskPattern> take(const uint8_t* mask, int64_t n_networks, int64_t n_out, int64_t n_in) {
  std::lock_guard<std::mutex> lock(kept_mutex);
  for (auto at = kept.begin(); at != kept.end(); ++at) {
    if (!at->is_of(mask, n_networks, n_out, n_in)) continue;
    kept.splice(kept.begin(), kept, at);
    return at->pattern;
  }
  return nullptr;
}

void keep(const uint8_t* mask, std::shared_ptr<const MaskPattern> pattern) {
  std::lock_guard<std::mutex> lock(kept_mutex);
  kept.remove_if([&](const Kept& old) {
    const bool is_same = old.is_of(mask, pattern->networks.size(), pattern->n_out, pattern->n_in);
    if (is_same) kept_bytes -= old.pattern->bytes();
    return is_same;
  });
  kept_bytes += pattern->bytes();
  kept.push_front({mask, std::move(pattern)});
  while (kept_bytes > kMostBytes || kept.size() > kMostPatterns) {
    kept_bytes -= kept.back().pattern->bytes();
    kept.pop_back();
  }
}

}  // namespace

const MaskColumns& MaskPattern::columns(int64_t n, int n_threads) const {
  const Network& network = networks[n];
  std::call_once(network.is_sorted, [&] { network.columns = find_columns(network, n_out, n_in, n_threads); });
  return network.columns;
}

size_t MaskPattern::bytes() const {
  size_t n = sizeof(*this) + bits.size() * sizeof(bits[0]);
  for (const Network& network : networks) {
    n += sizeof(network) + network.begin.size() * sizeof(uint32_t) +
         network.column.size() * (2 * sizeof(uint16_t) + sizeof(uint32_t));
  }
  return n;
}

std::shared_ptr<const MaskPattern> mask_pattern(const uint8_t* mask, int64_t n_networks, int64_t n_out, int64_t n_in,
                                                int n_threads) {
  if (auto known = take(mask, n_networks, n_out, n_in)) {
    const MaskBitFunctions run = bit_functions();
    std::atomic<bool> is_same{true};
    for_pieces(n_networks * n_out * n_in, n_threads, [&](int64_t begin, int64_t end) {
      if (!run.equals(mask + begin, end - begin, known->bits.data() + begin / 64)) is_same = false;
    });
    if (is_same) return known;
  }
  auto pattern = build(mask, n_networks, n_out, n_in, n_threads);
  keep(mask, pattern);
  return pattern;
}

size_t mask_pattern_cache_bytes() {
  std::lock_guard<std::mutex> lock(kept_mutex);
  return kept_bytes;
}

void clear_mask_pattern_cache() {
  std::lock_guard<std::mutex> lock(kept_mutex);
  kept.clear();
  kept_bytes = 0;
}

}  // namespace pns
