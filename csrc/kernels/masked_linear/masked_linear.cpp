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
MaskedTileFunction<T> tile_function() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return masked_tile_avx512<T>();
    case SimdLevel::kAvx2: return masked_tile_avx2<T>();
    default: break;
  }
#endif
  return masked_tile_baseline<T>;
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

// [n_batch, features] -> [features][kBatchTile], zeros behind the last sample.
template <typename T>
void gather_tile(const T* x, int64_t n_batch, int64_t n_features, T* tile) {
  if (n_batch < kBatchTile) std::fill(tile, tile + n_features * kBatchTile, T{0});
  for (int64_t f0 = 0; f0 < n_features; f0 += 16) {
    const int64_t f1 = std::min(f0 + 16, n_features);
    for (int64_t b = 0; b < n_batch; ++b) {
      for (int64_t f = f0; f < f1; ++f) tile[f * kBatchTile + b] = x[b * n_features + f];
    }
  }
}

template <typename T>
void scatter_tile(const T* tile, int64_t n_batch, int64_t n_features, T* y) {
  for (int64_t f0 = 0; f0 < n_features; f0 += 16) {
    const int64_t f1 = std::min(f0 + 16, n_features);
    for (int64_t b = 0; b < n_batch; ++b) {
      for (int64_t f = f0; f < f1; ++f) y[b * n_features + f] = tile[f * kBatchTile + b];
    }
  }
}

template <typename T>
void one_network(MaskedProduct product, const MaskedLinearParams<T>& p, int64_t n, int n_threads) {
  const bool outer = product == MaskedProduct::kOuter, transposed = product == MaskedProduct::kTransposed;
  Entries<T> entries;
  const int64_t plane = p.n_out * p.n_in;
  entries.compress(p.mask + n * plane, outer ? nullptr : p.weight + n * plane, p.n_out, p.n_in);
  if (transposed) entries = entries.transposed(p.n_in);
  const int64_t n_rows = transposed ? p.n_in : p.n_out, n_columns = transposed ? p.n_out : p.n_in;
  const int64_t n_entries = static_cast<int64_t>(entries.column.size());

  AlignedBuffer<T> x_tile(n_columns * kBatchTile), grad_tile(outer ? n_rows * kBatchTile : 0), out;
  out.assign_zero(outer ? n_entries : n_rows * kBatchTile);
  const MaskedTileFunction<T> run = tile_function<T>();
  const int64_t n_blocks = n_threads == 1 ? 1 : std::min<int64_t>(n_rows, 8 * n_threads);
  for (int64_t b = 0; b < p.batch; b += kBatchTile) {
    const int64_t n_batch = std::min(kBatchTile, p.batch - b);
    gather_tile(p.x + (n * p.batch + b) * n_columns, n_batch, n_columns, x_tile.data());
    if (outer) gather_tile(p.grad + (n * p.batch + b) * n_rows, n_batch, n_rows, grad_tile.data());
    const MaskedTile<T> tile{n_rows, n_entries, entries.begin.data(), entries.row.data(), entries.column.data(),
                             entries.value.data(), p.bias == nullptr ? nullptr : p.bias + n * p.n_out,
                             x_tile.data(), grad_tile.data(), out.data()};
    parallel_items(n_blocks, n_threads, [&](int64_t block, int) {
      run(product, tile, n_rows * block / n_blocks, n_rows * (block + 1) / n_blocks);
    });
    if (!outer) scatter_tile(out.data(), n_batch, n_rows, p.y + (n * p.batch + b) * n_rows);
  }
  if (outer) {
    T* y = p.y + n * plane;
    std::fill(y, y + plane, T{0});
    for (int64_t k = 0; k < n_entries; ++k) y[entries.row[k] * p.n_in + entries.column[k]] = out[k];
  }
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
