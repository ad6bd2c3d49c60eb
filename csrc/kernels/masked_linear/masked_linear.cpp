// The plain loops (the truth, and the baseline level), and what surrounds every level: the choice of path, the batch in
// tiles, and what is shared among threads.
#include "kernels/masked_linear/masked_linear.h"

#include <algorithm>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/huge_pages.h"
#include "core/parallel.h"
#include "core/simd_level.h"
#include "kernels/masked_linear/mask_pattern.h"

namespace pns {
namespace {

template <typename T>
void gather_baseline(const T* x, int64_t x_stride, int64_t n_batch, int64_t n_features, T* tile, int64_t width) {
  for (int64_t f = 0; f < n_features; ++f) {
    for (int64_t b = 0; b < width; ++b) tile[f * width + b] = b < n_batch ? x[b * x_stride + f] : T{0};
  }
}

template <typename T>
void scatter_baseline(const T* tile, int64_t width, int64_t n_batch, int64_t n_features, T* y, int64_t y_stride) {
  for (int64_t b = 0; b < n_batch; ++b) {
    for (int64_t f = 0; f < n_features; ++f) y[b * y_stride + f] = tile[f * width + b];
  }
}

template <typename T>
void sparse_forward_baseline(const SparsePanel<T>& a, const T* x, int64_t width, T* y) {
  for (int64_t r = 0; r < a.n_rows; ++r) {
    for (int64_t k = a.begin[r]; k < a.begin[r + 1]; ++k) {
      for (int64_t b = 0; b < width; ++b) y[r * width + b] += a.value[k] * x[a.column[k] * width + b];
    }
  }
}

template <typename T>
void sparse_backward_baseline(const SparsePanel<T>& a, const T* grad, const T* x, int64_t width, T* grad_x, T* dots,
                              bool is_first) {
  for (int64_t r = 0; r < a.n_rows; ++r) {
    const T* g = grad + r * width;
    for (int64_t k = a.begin[r]; k < a.begin[r + 1]; ++k) {
      const int64_t at = a.column[k] * width;
      if (grad_x != nullptr) {
        for (int64_t b = 0; b < width; ++b) grad_x[at + b] += a.value[k] * g[b];
      }
      if (dots == nullptr) continue;
      if (is_first) dots[k] = 0;
      for (int64_t b = 0; b < width; ++b) dots[k] += g[b] * x[at + b];
    }
  }
}

template <typename T>
void dense_baseline(const T* a, int64_t row_step, int64_t k_step, int64_t n_rows, int64_t n_k, const T* x,
                    int64_t width, T* y, bool is_first) {
  for (int64_t r = 0; r < n_rows; ++r) {
    if (is_first) std::fill_n(y + r * width, width, T{0});
    for (int64_t k = 0; k < n_k; ++k) {
      for (int64_t b = 0; b < width; ++b) y[r * width + b] += a[r * row_step + k * k_step] * x[k * width + b];
    }
  }
}

inline bool has_bit(const uint64_t* bits, int64_t bit) { return (bits[bit / 64] >> bit % 64 & 1) != 0; }

template <typename T>
void compress_baseline(const uint64_t* bits, int64_t bit, int64_t n, const T* row, T* kept) {
  for (int64_t j = 0; j < n; ++j) {
    if (has_bit(bits, bit + j)) *kept++ = row[j];
  }
}

template <typename T>
void expand_baseline(const uint64_t* bits, int64_t bit, int64_t n, const T* kept, T* row) {
  for (int64_t j = 0; j < n; ++j) row[j] = has_bit(bits, bit + j) ? *kept++ : T{0};
}

template <typename T>
void select_baseline(const uint8_t* mask, const T* in, int64_t n, T* out) {
  for (int64_t j = 0; j < n; ++j) out[j] = mask[j] != 0 ? in[j] : T{0};
}

template <typename T>
MaskedLinearFunctions<T> level_functions() {
#ifdef PNS_X86
  switch (simd_level()) {
    case SimdLevel::kAvx512: return masked_linear_avx512<T>();
    case SimdLevel::kAvx2: return masked_linear_avx2<T>();
    default: break;
  }
#endif
  return {gather_baseline<T>, scatter_baseline<T>,  sparse_forward_baseline<T>, sparse_backward_baseline<T>,
          dense_baseline<T>,  compress_baseline<T>, expand_baseline<T>,         select_baseline<T>};
}

// Kept between calls: fresh memory costs more than many a product. Two of them a thread, for what all threads of a call
// share and what each works in.
template <typename T>
struct Scratch {
  AlignedBuffer<T> x, y, weight, packed, block;

  size_t bytes() const { return (x.size() + y.size() + weight.size() + packed.size() + block.size()) * sizeof(T); }
};
template <typename T>
struct BothScratch {
  Scratch<T> shared, own;
};
template <typename T>
BothScratch<T>& scratch() {
  static thread_local BothScratch<T> kept;
  return kept;
}
constexpr size_t kMostScratch = size_t{1} << 26;

// The batch cut into tiles.
template <typename T>
struct Tiles {
  static constexpr int64_t kLargest = kTileBytes / sizeof(T);
  int64_t batch, width = kLargest, count;

  explicit Tiles(int64_t n_batch) : batch(n_batch) {
    while (width > kLargest / 4 && width / 2 >= batch) width /= 2;
    count = (batch + width - 1) / width;
  }
  int64_t size(int64_t tile) const { return std::min(width, batch - tile * width); }
};

// Dense blocks: a weight block of kDenseRows x kDenseDepth is 96 KB of float and stays in L2 with a tile of x.
constexpr int64_t kDenseRows = 96, kDenseDepth = 256;
// The sparse forward's share of rows, and the tiles it walks at a time: sums of 512 KB stay in L2.
constexpr int64_t kSparseRows = 512, kSparseTiles = 4;
constexpr int64_t kGatherFeatures = 512;

template <typename T>
class Network {
 public:
  Network(const MaskPattern& pattern, int64_t n, int64_t batch, int n_threads)
      : run_(level_functions<T>()), network_(pattern.networks[n]), n_out_(pattern.n_out), n_in_(pattern.n_in),
        bits_(pattern.bits.data()), first_bit_(n * n_out_ * n_in_), tiles_(batch), n_threads_(n_threads), shared_(scratch<T>().shared) {}

  void forward(const T* x, const T* weight, const uint8_t* mask, const T* bias, T* y) {
    network_.is_dense ? forward_dense(x, weight, mask, bias, y) : forward_sparse(x, weight, bias, y);
  }

  void backward(const T* grad, const T* x, const T* weight, const uint8_t* mask, T* grad_x, T* grad_weight,
                T* grad_bias) {
    if (grad_bias != nullptr) {
      std::fill_n(grad_bias, n_out_, T{0});
      for (int64_t b = 0; b < tiles_.batch; ++b) {
        for (int64_t o = 0; o < n_out_; ++o) grad_bias[o] += grad[b * n_out_ + o];
      }
    }
    if (tiles_.batch == 0 && grad_weight != nullptr) std::fill_n(grad_weight, n_out_ * n_in_, T{0});
    if (tiles_.batch == 0 || (grad_x == nullptr && grad_weight == nullptr)) return;
    gather_all(grad, n_out_, &shared_.x);
    if (network_.is_dense) {
      backward_dense(x, weight, mask, grad_x, grad_weight);
    } else {
      backward_sparse(x, weight, grad_x, grad_weight);
    }
  }

 private:
  const T* tile_of(const AlignedBuffer<T>& tiles, int64_t tile, int64_t n_features) const {
    return tiles.data() + tile * n_features * tiles_.width;
  }

  // All of a batch, tile by tile, where more than one thread reads each tile.
  void gather_all(const T* x, int64_t n_features, AlignedBuffer<T>* tiles) {
    tiles->resize(tiles_.count * n_features * tiles_.width);
    const int64_t n_parts = (n_features + kGatherFeatures - 1) / kGatherFeatures;
    parallel_items(tiles_.count * n_parts, n_threads_, [&](int64_t item, int) {
      const int64_t tile = item / n_parts, f = item % n_parts * kGatherFeatures;
      run_.gather(x + tile * tiles_.width * n_features + f, n_features, tiles_.size(tile),
                  std::min(kGatherFeatures, n_features - f),
                  tiles->data() + (tile * n_features + f) * tiles_.width, tiles_.width);
    });
  }

  // f(row) for every row of the weight, which lies there row by row: panel by panel would miss the TLB all the time.
  template <typename F>
  void for_weight_rows(F&& f) const {
    constexpr int64_t kRows = 32;
    parallel_items((n_out_ + kRows - 1) / kRows, network_.n_entries > 20'000 ? n_threads_ : 1, [&](int64_t i, int) {
      for (int64_t o = i * kRows; o < std::min(n_out_, (i + 1) * kRows); ++o) f(o);
    });
  }

  // The kept weights in the entries' order: every tile of the batch reads them.
  void compress(const T* weight) {
    shared_.weight.resize(network_.n_entries);
    for_weight_rows([&](int64_t o) {
      for (int64_t panel = 0; panel < network_.n_panels; ++panel) {
        const uint32_t* begin = network_.begin.data() + panel * n_out_ + o;
        const int64_t at = o * n_in_ + panel * network_.panel_width;
        if (network_.is_wide()) {
          for (uint32_t k = begin[0]; k < begin[1]; ++k) shared_.weight[k] = weight[at + network_.column[k]];
        } else {
          run_.compress(bits_, first_bit_ + at, columns_of(panel), weight + at, shared_.weight.data() + begin[0]);
        }
      }
    });
  }

  // The reverse for `dots`, which lie in the same order; 0 where pruned.
  void expand(const T* dots, T* grad_weight) const {
    for_weight_rows([&](int64_t o) {
      if (network_.is_wide()) std::fill_n(grad_weight + o * n_in_, n_in_, T{0});
      for (int64_t panel = 0; panel < network_.n_panels; ++panel) {
        const uint32_t* begin = network_.begin.data() + panel * n_out_ + o;
        const int64_t at = o * n_in_ + panel * network_.panel_width;
        if (network_.is_wide()) {
          for (uint32_t k = begin[0]; k < begin[1]; ++k) grad_weight[at + network_.column[k]] = dots[k];
        } else {
          run_.expand(bits_, first_bit_ + at, columns_of(panel), dots + begin[0], grad_weight + at);
        }
      }
    });
  }

  int64_t columns_of(int64_t panel) const {
    return std::min(network_.panel_width, n_in_ - panel * network_.panel_width);
  }

  SparsePanel<T> panel_of(int64_t panel, int64_t row, int64_t n_rows) const {
    return {n_rows, network_.begin.data() + panel * n_out_ + row, network_.column.data(), shared_.weight.data()};
  }

  void fill_rows(const T* bias, int64_t n_rows, T* sums) const {
    for (int64_t r = 0; r < n_rows; ++r) {
      std::fill_n(sums + r * tiles_.width, tiles_.width, bias == nullptr ? T{0} : bias[r]);
    }
  }

  // Each thread takes rows, and walks the panels for them: what it sums belongs to it.
  void forward_sparse(const T* x, const T* weight, const T* bias, T* y) {
    gather_all(x, n_in_, &shared_.x);
    compress(weight);
    const int64_t n_each = std::clamp<int64_t>((n_out_ + n_threads_ - 1) / n_threads_, 1, kSparseRows);
    parallel_items((n_out_ + n_each - 1) / n_each, n_threads_, [&](int64_t item, int) {
      Scratch<T>& own = scratch<T>().own;
      const int64_t row = item * n_each, n_rows = std::min(n_each, n_out_ - row), width = tiles_.width;
      own.y.resize(kSparseTiles * n_rows * width);
      for (int64_t first = 0; first < tiles_.count; first += kSparseTiles) {
        const int64_t n_tiles = std::min(kSparseTiles, tiles_.count - first);
        for (int64_t t = 0; t < n_tiles; ++t) {
          fill_rows(bias == nullptr ? nullptr : bias + row, n_rows, own.y.data() + t * n_rows * width);
        }
        for (int64_t panel = 0; panel < network_.n_panels; ++panel) {
          const SparsePanel<T> rows = panel_of(panel, row, n_rows);
          for (int64_t t = 0; t < n_tiles; ++t) {
            run_.sparse_forward(rows, tile_of(shared_.x, first + t, n_in_) + panel * network_.panel_width * width, width,
                                own.y.data() + t * n_rows * width);
          }
        }
        for (int64_t t = 0; t < n_tiles; ++t) {
          run_.scatter(own.y.data() + t * n_rows * width, width, tiles_.size(first + t), n_rows,
                       y + (first + t) * width * n_out_ + row, n_out_);
        }
      }
    });
  }

  // Each thread takes panels of columns, and walks all rows for them.
  void backward_sparse(const T* x, const T* weight, T* grad_x, T* grad_weight) {
    if (grad_x != nullptr) compress(weight);
    if (grad_weight != nullptr) shared_.y.resize(network_.n_entries);
    T* dots = grad_weight == nullptr ? nullptr : shared_.y.data();
    parallel_items(network_.n_panels, n_threads_, [&](int64_t panel, int) {
      Scratch<T>& own = scratch<T>().own;
      const int64_t column = panel * network_.panel_width, width = tiles_.width;
      const int64_t n_columns = columns_of(panel);
      own.x.resize(n_columns * width), own.y.resize(n_columns * width);
      for (int64_t tile = 0; tile < tiles_.count; ++tile) {
        const int64_t sample = tile * width * n_in_ + column;
        if (grad_weight != nullptr) run_.gather(x + sample, n_in_, tiles_.size(tile), n_columns, own.x.data(), width);
        if (grad_x != nullptr) own.y.assign_zero(n_columns * width);
        run_.sparse_backward(panel_of(panel, 0, n_out_), tile_of(shared_.x, tile, n_out_), own.x.data(), width,
                             grad_x == nullptr ? nullptr : own.y.data(), dots, tile == 0);
        if (grad_x != nullptr) run_.scatter(own.y.data(), width, tiles_.size(tile), n_columns, grad_x + sample, n_in_);
      }
    });
    if (grad_weight != nullptr) expand(dots, grad_weight);
  }

  // out[r][j] = the kept weights of rows [row, row + n_rows) and columns [column, column + n_columns), 0 elsewhere.
  void select_block(const T* weight, const uint8_t* mask, int64_t row, int64_t n_rows, int64_t column,
                    int64_t n_columns, T* out) const {
    for (int64_t r = 0; r < n_rows; ++r) {
      const int64_t at = (row + r) * n_in_ + column;
      run_.select(mask + at, weight + at, n_columns, out + r * n_columns);
    }
  }

  static int64_t rows_each(int64_t n, int n_threads) {
    return std::min(kDenseRows, ((n + n_threads - 1) / n_threads + 5) / 6 * 6);
  }

  void forward_dense(const T* x, const T* weight, const uint8_t* mask, const T* bias, T* y) {
    gather_all(x, n_in_, &shared_.x);
    const int64_t n_each = rows_each(n_out_, n_threads_), width = tiles_.width;
    parallel_items((n_out_ + n_each - 1) / n_each, n_threads_, [&](int64_t item, int) {
      Scratch<T>& own = scratch<T>().own;
      const int64_t row = item * n_each, n_rows = std::min(n_each, n_out_ - row), n_sums = n_rows * width;
      own.weight.resize(n_rows * kDenseDepth), own.y.resize(tiles_.count * n_sums);
      for (int64_t tile = 0; tile < tiles_.count; ++tile) {
        fill_rows(bias == nullptr ? nullptr : bias + row, n_rows, own.y.data() + tile * n_sums);
      }
      for (int64_t i = 0; i < n_in_; i += kDenseDepth) {
        const int64_t depth = std::min(kDenseDepth, n_in_ - i);
        select_block(weight, mask, row, n_rows, i, depth, own.weight.data());
        for (int64_t tile = 0; tile < tiles_.count; ++tile) {
          run_.dense(own.weight.data(), depth, 1, n_rows, depth, tile_of(shared_.x, tile, n_in_) + i * width, width,
                     own.y.data() + tile * n_sums, false);
        }
      }
      for (int64_t tile = 0; tile < tiles_.count; ++tile) {
        run_.scatter(own.y.data() + tile * n_sums, width, tiles_.size(tile), n_rows, y + tile * width * n_out_ + row, n_out_);
      }
    });
  }

  void backward_dense(const T* x, const T* weight, const uint8_t* mask, T* grad_x, T* grad_weight) {
    const int64_t n_each = rows_each(n_in_, n_threads_);
    parallel_items((n_in_ + n_each - 1) / n_each, n_threads_, [&](int64_t item, int) {
      const int64_t column = item * n_each, n_columns = std::min(n_each, n_in_ - column);
      if (grad_x != nullptr) dense_grad_x(weight, mask, column, n_columns, grad_x);
      if (grad_weight != nullptr) dense_grad_weight(x, mask, column, n_columns, grad_weight);
    });
  }

  void dense_grad_x(const T* weight, const uint8_t* mask, int64_t column, int64_t n_columns, T* grad_x) {
    Scratch<T>& own = scratch<T>().own;
    const int64_t width = tiles_.width, n_sums = n_columns * width;
    own.weight.resize(kDenseDepth * n_columns), own.y.resize(tiles_.count * n_sums);
    for (int64_t o = 0; o < n_out_; o += kDenseDepth) {
      const int64_t depth = std::min(kDenseDepth, n_out_ - o);
      select_block(weight, mask, o, depth, column, n_columns, own.weight.data());
      for (int64_t tile = 0; tile < tiles_.count; ++tile) {
        run_.dense(own.weight.data(), 1, n_columns, n_columns, depth, tile_of(shared_.x, tile, n_out_) + o * width,
                   width, own.y.data() + tile * n_sums, o == 0);
      }
    }
    for (int64_t tile = 0; tile < tiles_.count; ++tile) {
      run_.scatter(own.y.data() + tile * n_sums, width, tiles_.size(tile), n_columns,
                   grad_x + tile * width * n_in_ + column, n_in_);
    }
  }

  // Lanes are columns here, the sum runs over the batch: x is packed as it lies, kLargest columns at a time, and grad
  // with all samples of an output in a row.
  void dense_grad_weight(const T* x, const uint8_t* mask, int64_t column, int64_t n_columns, T* grad_weight) {
    constexpr int64_t kLanes = Tiles<T>::kLargest;
    Scratch<T>& own = scratch<T>().own;
    const int64_t width = tiles_.width, n_samples = tiles_.count * width, n_packs = (n_columns + kLanes - 1) / kLanes;
    own.packed.resize(n_packs * n_samples * kLanes), own.block.resize(kDenseRows * kLanes);
    own.weight.resize(kDenseRows * n_samples);
    for (int64_t pack = 0; pack < n_packs; ++pack) {
      const int64_t i = column + pack * kLanes, n_lanes = std::min(kLanes, column + n_columns - i);
      for (int64_t b = 0; b < n_samples; ++b) {
        T* lanes = own.packed.data() + (pack * n_samples + b) * kLanes;
        const int64_t n = b < tiles_.batch ? n_lanes : 0;
        std::copy_n(x + b * n_in_ + i, n, lanes);
        std::fill(lanes + n, lanes + kLanes, T{0});
      }
    }
    for (int64_t o = 0; o < n_out_; o += kDenseRows) {
      const int64_t n_rows = std::min(kDenseRows, n_out_ - o);
      for (int64_t tile = 0; tile < tiles_.count; ++tile) {
        const T* grad = tile_of(shared_.x, tile, n_out_) + o * width;
        for (int64_t r = 0; r < n_rows; ++r) {
          std::copy_n(grad + r * width, width, own.weight.data() + r * n_samples + tile * width);
        }
      }
      for (int64_t pack = 0; pack < n_packs; ++pack) {
        const int64_t i = column + pack * kLanes, n_lanes = std::min(kLanes, column + n_columns - i);
        for (int64_t b = 0; b < n_samples; b += kDenseDepth) {
          run_.dense(own.weight.data() + b, n_samples, 1, n_rows, std::min(kDenseDepth, n_samples - b),
                     own.packed.data() + (pack * n_samples + b) * kLanes, kLanes, own.block.data(), b == 0);
        }
        for (int64_t r = 0; r < n_rows; ++r) {
          const int64_t at = (o + r) * n_in_ + i;
          run_.select(mask + at, own.block.data() + r * kLanes, n_lanes, grad_weight + at);
        }
      }
    }
  }

  const MaskedLinearFunctions<T> run_;
  const MaskPattern::Network& network_;
  const int64_t n_out_, n_in_;
  const uint64_t* bits_;
  const int64_t first_bit_;
  const Tiles<T> tiles_;
  const int n_threads_;
  Scratch<T>& shared_;
};

// f(n, n_threads) for every network, by threads over networks or within them.
template <typename T, typename F>
void for_networks(const MaskPattern& pattern, int64_t batch, int n_threads, F&& f) {
  double work = 0;
  for (const auto& network : pattern.networks) work += double(network.n_entries) * batch;
  constexpr double kWorkPerThread = 3e5;  // multiply-adds: some 5 us
  n_threads = std::max(1, static_cast<int>(std::min<double>(n_threads, work / kWorkPerThread)));
  const int64_t n = pattern.networks.size();
  const bool by_network = n >= n_threads;
  parallel_items(n, by_network ? n_threads : 1, [&](int64_t i, int) { f(i, by_network ? 1 : n_threads); });
  auto& kept = scratch<T>();
  if (kept.shared.bytes() + kept.own.bytes() > kMostScratch) kept = {};
}

}  // namespace

template <typename T>
void masked_linear_forward(const MaskedForward<T>& p) {
  if (p.n_networks * p.batch * p.n_out == 0) return;
  advise_huge_pages(p.y, p.n_networks * p.batch * p.n_out * sizeof(T));
  const auto pattern = mask_pattern(p.mask, p.n_networks, p.n_out, p.n_in, p.n_threads);
  const int64_t plane = p.n_out * p.n_in;
  for_networks<T>(*pattern, p.batch, p.n_threads, [&](int64_t n, int n_threads) {
    Network<T>(*pattern, n, p.batch, n_threads)
        .forward(p.x + n * p.batch * p.n_in, p.weight + n * plane, p.mask + n * plane,
                 p.bias == nullptr ? nullptr : p.bias + n * p.n_out, p.y + n * p.batch * p.n_out);
  });
}

template <typename T>
void masked_linear_backward(const MaskedBackward<T>& p) {
  const int64_t plane = p.n_out * p.n_in;
  if (p.grad_weight != nullptr) advise_huge_pages(p.grad_weight, p.n_networks * plane * sizeof(T));
  const auto pattern = mask_pattern(p.mask, p.n_networks, p.n_out, p.n_in, p.n_threads);
  auto at = [](auto* pointer, int64_t offset) { return pointer == nullptr ? nullptr : pointer + offset; };
  for_networks<T>(*pattern, p.batch, p.n_threads, [&](int64_t n, int n_threads) {
    Network<T>(*pattern, n, p.batch, n_threads)
        .backward(p.grad + n * p.batch * p.n_out, at(p.x, n * p.batch * p.n_in), at(p.weight, n * plane),
                  p.mask + n * plane, at(p.grad_x, n * p.batch * p.n_in), at(p.grad_weight, n * plane),
                  at(p.grad_bias, n * p.n_out));
  });
}

template void masked_linear_forward<float>(const MaskedForward<float>&);
template void masked_linear_forward<double>(const MaskedForward<double>&);
template void masked_linear_backward<float>(const MaskedBackward<float>&);
template void masked_linear_backward<double>(const MaskedBackward<double>&);

}  // namespace pns
