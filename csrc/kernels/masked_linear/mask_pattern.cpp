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
  const int64_t width = found->panel_width = MaskPattern::width_for(density);
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
  pattern->networks.resize(n_networks);
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
constexpr size_t kMostBytes = size_t{1} << 28, kMostPatterns = 256;
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

size_t MaskPattern::bytes() const {
  size_t n = sizeof(*this) + bits.size() * sizeof(bits[0]);
  for (const Network& network : networks) {
    n += sizeof(network) + network.begin.size() * sizeof(network.begin[0]) + network.column.size() * sizeof(network.column[0]);
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
