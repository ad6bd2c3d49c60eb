// The plain loop over one tile (the truth, and the baseline level), and what surrounds every level: compressing the
// mask, transposing batch tiles, sharing rows among threads.
#include "kernels/masked_linear/masked_linear.h"

#include <algorithm>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/parallel.h"
#include "core/simd_level.h"

namespace pns {
namespace {

template <typename T>
void masked_tile_baseline(MaskedProduct product, const MaskedTile<T>& t, int64_t row_begin, int64_t row_end) {
  for (int64_t r = row_begin; r < row_end; ++r) {
    T* y = t.y + r * kBatchTile;
    if (product != MaskedProduct::kOuter) std::fill(y, y + kBatchTile, t.bias == nullptr ? T{0} : t.bias[r]);
    for (int64_t k = t.begin[r]; k < t.begin[r + 1]; ++k) {
      const T* x = t.x + t.column[k] * kBatchTile;
      if (product == MaskedProduct::kOuter) {
        for (int64_t b = 0; b < kBatchTile; ++b) t.y[k] += t.grad[r * kBatchTile + b] * x[b];
      } else {
        for (int64_t b = 0; b < kBatchTile; ++b) y[b] += t.value[k] * x[b];
      }
    }
  }
}

template <typename T>
void gather_baseline(const T* x, int64_t n_batch, int64_t n_features, T* tile) {
  for (int64_t f = 0; f < n_features; ++f) {
    for (int64_t b = 0; b < kBatchTile; ++b) tile[f * kBatchTile + b] = b < n_batch ? x[b * n_features + f] : T{0};
  }
}

template <typename T>
void scatter_baseline(const T* tile, int64_t n_batch, int64_t n_features, T* y) {
  for (int64_t b = 0; b < n_batch; ++b) {
    for (int64_t f = 0; f < n_features; ++f) y[b * n_features + f] = tile[f * kBatchTile + b];
  }
}

template <typename T>
MaskedTileFunctions<T> tile_functions() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return masked_tile_avx512<T>();
    case SimdLevel::kAvx2: return masked_tile_avx2<T>();
    default: break;
  }
#endif
  return {masked_tile_baseline<T>, gather_baseline<T>, scatter_baseline<T>};
}

// The kept entries of one network in row order; for the transposed product, in column order.
template <typename T>
struct Entries {
  std::vector<int64_t> begin;
  std::vector<int32_t> row, column;
  std::vector<T> value;

  void compress(const uint8_t* mask, const T* weight, int64_t n_out, int64_t n_in) {
    begin.assign(1, 0);
    row.clear(), column.clear(), value.clear();
    for (int64_t o = 0; o < n_out; ++o) {
      const uint8_t* line = mask + o * n_in;
      for (int64_t i = 0; i < n_in; ++i) {
        // eight pruned entries at a time: at low density most of the mask is zeros
        uint64_t eight = 1;
        if (i + 8 <= n_in) std::memcpy(&eight, line + i, 8);
        if (eight == 0) {
          i += 7;
        } else if (line[i] != 0) {
          row.push_back(static_cast<int32_t>(o));
          column.push_back(static_cast<int32_t>(i));
          if (weight != nullptr) value.push_back(weight[o * n_in + i]);
        }
      }
      begin.push_back(static_cast<int64_t>(column.size()));
    }
  }

  // A counting sort by column: entries of one column stay in row order.
  Entries transposed(int64_t n_columns) const {
    Entries t;
    t.begin.assign(n_columns + 1, 0);
    for (int32_t c : column) ++t.begin[c + 1];
    for (int64_t c = 0; c < n_columns; ++c) t.begin[c + 1] += t.begin[c];
    std::vector<int64_t> at(t.begin.begin(), t.begin.end() - 1);
    t.row.resize(column.size()), t.column.resize(column.size()), t.value.resize(column.size());
    for (size_t k = 0; k < column.size(); ++k) {
      const int64_t to = at[column[k]]++;
      t.row[to] = column[k], t.column[to] = row[k], t.value[to] = value[k];
    }
    return t;
  }
};

template <typename T>
void one_network(MaskedProduct product, const MaskedLinearParams<T>& p, int64_t n, int n_threads) {
  const bool outer = product == MaskedProduct::kOuter, transposed = product == MaskedProduct::kTransposed;
  Entries<T> entries;
  const int64_t plane = p.n_out * p.n_in;
  entries.compress(p.mask + n * plane, outer ? nullptr : p.weight + n * plane, p.n_out, p.n_in);
  if (transposed) entries = entries.transposed(p.n_in);
  const int64_t n_rows = transposed ? p.n_in : p.n_out, n_columns = transposed ? p.n_out : p.n_in;
  const int64_t n_entries = static_cast<int64_t>(entries.column.size());

  const MaskedTileFunctions<T> run = tile_functions<T>();
  const int64_t n_tiles = (p.batch + kBatchTile - 1) / kBatchTile;
  auto batch_of = [&](int64_t tile) { return std::min(kBatchTile, p.batch - tile * kBatchTile); };
  auto x_of = [&](int64_t tile) { return p.x + (n * p.batch + tile * kBatchTile) * n_columns; };
  MaskedTile<T> shared{n_rows, n_entries, entries.begin.data(), entries.row.data(), entries.column.data(),
                       entries.value.data(), p.bias == nullptr ? nullptr : p.bias + n * p.n_out,
                       nullptr, nullptr, nullptr};
  if (!outer) {
    // A tile of the batch is one thread's from its gathering to its scattering.
    std::vector<AlignedBuffer<T>> x_tile(n_threads), y_tile(n_threads);
    parallel_items(n_tiles, n_threads, [&](int64_t tile, int worker) {
      x_tile[worker].resize(n_columns * kBatchTile), y_tile[worker].resize(n_rows * kBatchTile);
      run.gather(x_of(tile), batch_of(tile), n_columns, x_tile[worker].data());
      MaskedTile<T> mine = shared;
      mine.x = x_tile[worker].data(), mine.y = y_tile[worker].data();
      run.product(product, mine, 0, n_rows);
      run.scatter(mine.y, batch_of(tile), n_rows, p.y + (n * p.batch + tile * kBatchTile) * n_rows);
    });
    return;
  }
  // The outer product sums over the batch: all tiles are gathered, then each thread walks them in order for its rows.
  AlignedBuffer<T> x_tiles(n_tiles * n_columns * kBatchTile), grad_tiles(n_tiles * n_rows * kBatchTile), sums;
  sums.assign_zero(n_entries);
  parallel_items(n_tiles, n_threads, [&](int64_t tile, int) {
    run.gather(x_of(tile), batch_of(tile), n_columns, x_tiles.data() + tile * n_columns * kBatchTile);
    run.gather(p.grad + (n * p.batch + tile * kBatchTile) * n_rows, batch_of(tile), n_rows,
               grad_tiles.data() + tile * n_rows * kBatchTile);
  });
  T* y = p.y + n * plane;
  const int64_t n_blocks = n_threads == 1 ? 1 : std::min<int64_t>(n_rows, 8 * n_threads);
  parallel_items(n_blocks, n_threads, [&](int64_t block, int) {
    const int64_t begin = n_rows * block / n_blocks, end = n_rows * (block + 1) / n_blocks;
    for (int64_t tile = 0; tile < n_tiles; ++tile) {
      MaskedTile<T> mine = shared;
      mine.x = x_tiles.data() + tile * n_columns * kBatchTile;
      mine.grad = grad_tiles.data() + tile * n_rows * kBatchTile;
      mine.y = sums.data();
      run.product(product, mine, begin, end);
    }
    std::fill(y + begin * p.n_in, y + end * p.n_in, T{0});
    for (int64_t k = entries.begin[begin]; k < entries.begin[end]; ++k) {
      y[entries.row[k] * p.n_in + entries.column[k]] = sums[k];
    }
  });
}

}  // namespace

template <typename T>
void masked_linear(MaskedProduct product, const MaskedLinearParams<T>& p) {
  // Below this many multiply-adds (were all kept) a thread costs more than it saves.
  constexpr double kWorkPerThread = 2e6;
  const double work = double(p.n_networks) * p.batch * p.n_in * p.n_out;
  const int n_threads = std::max(1, static_cast<int>(std::min<double>(p.n_threads, work / kWorkPerThread)));
  const bool by_network = p.n_networks >= n_threads;
  parallel_items(p.n_networks, by_network ? n_threads : 1,
                 [&](int64_t n, int) { one_network(product, p, n, by_network ? 1 : n_threads); });
}

template void masked_linear<float>(MaskedProduct, const MaskedLinearParams<float>&);
template void masked_linear<double>(MaskedProduct, const MaskedLinearParams<double>&);

}  // namespace pns
