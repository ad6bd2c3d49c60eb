// One network's masked products: its batch in tiles, its path, and what its threads share.
#pragma once

#include <algorithm>

#include "core/aligned_buffer.h"
#include "core/parallel.h"
#include "kernels/masked_linear/mask_pattern.h"
#include "kernels/masked_linear/masked_linear.h"

namespace pns {
namespace {

// Null stays null.
template <typename T>
T* at(T* pointer, int64_t offset) {
  return pointer == nullptr ? nullptr : pointer + offset;
}

// Kept between calls: fresh memory costs more than many a product. Two of them a thread, for what all threads of a call
// share and what each works in.
template <typename T>
struct Scratch {
  AlignedBuffer<T> x, y, grad, weight, packed, block;

  size_t bytes() const {
    return (x.size() + y.size() + grad.size() + weight.size() + packed.size() + block.size()) * sizeof(T);
  }
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
template <typename T>
void release_large_scratch() {
  constexpr size_t kMost = size_t{1} << 26;
  auto& kept = scratch<T>();
  if (kept.shared.bytes() + kept.own.bytes() > kMost) kept = {};
}

// The batch cut into tiles.
template <typename T>
struct Tiles {
  int64_t batch, width, count;

  Tiles(int64_t n_batch, int64_t widest) : batch(n_batch), width(widest) {
    while (width > widest / 4 && width / 2 >= batch) width /= 2;
    count = (batch + width - 1) / width;
  }
  int64_t size(int64_t tile) const { return std::min(width, batch - tile * width); }
};

// Dense blocks: a weight block of kDenseRows x kDenseDepth is 96 KB of float and stays in L2 with a tile of x.
constexpr int64_t kDenseRows = 96, kDenseDepth = 256;
constexpr size_t kLargeBytes = size_t{1} << 24;  // of a weight matrix: no near cache holds it
constexpr int64_t kGatherFeatures = 512;

template <typename T>
class MaskedNetwork {
 public:
  MaskedNetwork(const MaskedLinearFunctions<T>& run, const MaskPattern& pattern, int64_t n, int64_t batch,
                int n_threads)
      : run_(run), pattern_(pattern), n_(n), network_(pattern.networks[n]), n_out_(pattern.n_out), n_in_(pattern.n_in),
        tiles_(batch, run.widest), n_threads_(n_threads), shared_(scratch<T>().shared) {}

  // p: of this network.
  void forward(const MaskedForward<T>& p) { network_.is_dense ? forward_dense(p) : forward_sparse(p); }

  void backward(const MaskedBackward<T>& p) {
    if (tiles_.batch == 0 && p.grad_weight != nullptr) std::fill_n(p.grad_weight, n_out_ * n_in_, T{0});
    const T* grad = p.y == nullptr ? p.grad : passed(p);
    if (p.grad_bias != nullptr) sum_bias(grad, p.bias_mask, p.grad_bias);
    if (tiles_.batch == 0 || (p.grad_x == nullptr && p.grad_weight == nullptr)) return;
    gather_all(grad, n_out_, &shared_.x);
    if (network_.is_dense) {
      backward_dense(p.x, p.weight, p.mask, p.grad_x, p.grad_weight);
    } else {
      backward_sparse(p);
    }
  }

 private:
  const T* tile_of(const AlignedBuffer<T>& tiles, int64_t tile, int64_t n_features) const {
    return tiles.data() + tile * n_features * tiles_.width;
  }

  // What a ReLU lets through of the gradient. (A NaN that it put out does.)
  const T* passed(const MaskedBackward<T>& p) {
    constexpr int64_t kPiece = 1 << 16;
    const int64_t n = tiles_.batch * n_out_;
    shared_.grad.resize(n);
    T* const out = shared_.grad.data();
    parallel_items((n + kPiece - 1) / kPiece, n_threads_, [&](int64_t piece, int) {
      const int64_t end = std::min(n, (piece + 1) * kPiece);
      for (int64_t i = piece * kPiece; i < end; ++i) out[i] = p.y[i] <= 0 ? T{0} : p.grad[i];
    });
    return out;
  }

  // In blocks: of samples added one by one a sum of equal numbers would lose 1% at a million of them.
  void sum_bias(const T* grad, const uint8_t* bias_mask, T* grad_bias) const {
    constexpr int64_t kBlock = 256;
    AlignedBuffer<T>& buffer = scratch<T>().own.block;
    buffer.resize(n_out_);
    T* const sums = buffer.data();
    std::fill_n(grad_bias, n_out_, T{0});
    for (int64_t first = 0; first < tiles_.batch; first += kBlock) {
      std::fill_n(sums, n_out_, T{0});
      for (int64_t b = first; b < std::min(tiles_.batch, first + kBlock); ++b) {
        for (int64_t o = 0; o < n_out_; ++o) sums[o] += grad[b * n_out_ + o];
      }
      for (int64_t o = 0; o < n_out_; ++o) grad_bias[o] += sums[o];
    }
    for (int64_t o = 0; o < n_out_ && bias_mask != nullptr; ++o) grad_bias[o] = bias_mask[o] != 0 ? grad_bias[o] : 0;
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
  void compress(const T* weight, AlignedBuffer<T>& into) {
    into.resize(network_.n_entries);
    T* const kept = into.data();
    compressed_ = kept;
    for_weight_rows([&](int64_t o) {
      for (int64_t panel = 0; panel < network_.n_panels; ++panel) {
        const uint32_t* begin = network_.begin.data() + panel * n_out_ + o;
        const int64_t at = o * n_in_ + panel * network_.panel_width;
        if (network_.has_many && run_.compress != nullptr) {
          run_.compress(pattern_.bits.data(), n_ * n_out_ * n_in_ + at, columns_of(panel), weight + at, kept + begin[0]);
          continue;
        }
        for (uint32_t k = begin[0]; k < begin[1]; ++k) kept[k] = weight[at + network_.column[k]];
      }
    });
  }

  // to(k) = from(k). Four at a time, all loaded before one is stored: a load that shares its low 12 address bits with a
  // store still under way would wait for it.
  template <typename From, typename To>
  static void move_entries(int64_t k, int64_t end, From&& from, To&& to) {
    for (; k + 4 <= end; k += 4) {
      const T moved[4] = {from(k), from(k + 1), from(k + 2), from(k + 3)};
      for (int j = 0; j < 4; ++j) to(k + j) = moved[j];
    }
    for (; k < end; ++k) to(k) = from(k);
  }

  // The dots of all kept weights to where these are, 0 where pruned. A gradient that no near cache can hold is
  // written past them, row by row: storing to it would fetch it first. 4,096 x 4,096 at density 0.01 then took 8.7 ms
  // forward and backward instead of 12.1; 1,024 x 1,024 would have taken 1.3 ms instead of 1.1.
  void expand(const T* dots, const MaskColumns& columns, T* grad_weight) const {
    const bool is_streamed = is_large();
    for_weight_rows([&](int64_t o) {
      T* const out = grad_weight + o * n_in_;
      AlignedBuffer<T>& buffer = scratch<T>().own.block;
      if (is_streamed) buffer.resize(n_in_);
      T* const row = is_streamed ? buffer.data() : out;
      std::fill_n(row, n_in_, T{0});
      for (int64_t panel = 0; panel < network_.n_panels; ++panel) {
        const uint32_t* begin = network_.begin.data() + panel * n_out_ + o;
        T* const of_panel = row + panel * network_.panel_width;
        move_entries(begin[0], begin[1], [&](int64_t k) { return dots[columns.place[k]]; },
                     [&](int64_t k) -> T& { return of_panel[network_.column[k]]; });
      }
      if (is_streamed) run_.stream(row, n_in_, out);
    });
  }

  int64_t columns_of(int64_t panel) const {
    return std::min(network_.panel_width, n_in_ - panel * network_.panel_width);
  }

  // A batch of one tile reads each weight once, and so where it lies; but panel by panel, for which a matrix that no near
  // cache holds has too many pages.
  bool is_compressed() const { return tiles_.count > 1 || is_large(); }
  bool is_large() const { return n_out_ * n_in_ * sizeof(T) >= kLargeBytes; }

  SparsePanel<T> panel_of(const T* weight, int64_t panel, int64_t row, int64_t n_rows) const {
    return {n_rows, network_.begin.data() + panel * n_out_ + row, network_.column.data(),
            compressed_,
            weight == nullptr ? nullptr : weight + row * n_in_ + panel * network_.panel_width, n_in_};
  }

  void start_rows(const MaskedForward<T>& p, int64_t row, int64_t n_rows, T* sums) const {
    for (int64_t r = 0; r < n_rows; ++r) {
      const bool has_bias = p.bias != nullptr && (p.bias_mask == nullptr || p.bias_mask[row + r] != 0);
      std::fill_n(sums + r * tiles_.width, tiles_.width, has_bias ? p.bias[row + r] : T{0});
    }
  }

  // Rows of sums over a tile, to where they belong.
  void finish_rows(const MaskedForward<T>& p, int64_t tile, int64_t row, int64_t n_rows, T* sums) const {
    for (int64_t i = 0; p.has_relu && i < n_rows * tiles_.width; ++i) sums[i] = sums[i] < 0 ? T{0} : sums[i];
    run_.scatter(sums, tiles_.width, tiles_.size(tile), n_rows, p.y + tile * tiles_.width * n_out_ + row, n_out_);
  }

  // A tile is one thread's from its gathering to its scattering; where there are fewer tiles than threads, they share
  // the rows of each.
  void forward_sparse(const MaskedForward<T>& p) {
    if (is_compressed()) compress(p.weight, p.keep != nullptr ? p.keep->weight : shared_.weight);
    const int64_t n_splits = (n_threads_ + tiles_.count - 1) / tiles_.count;
    if (n_splits > 1) gather_all(p.x, n_in_, &shared_.x);
    parallel_items(tiles_.count * n_splits, n_threads_, [&](int64_t item, int) {
      Scratch<T>& own = scratch<T>().own;
      const int64_t tile = item / n_splits, split = item % n_splits, width = tiles_.width;
      const int64_t row = n_out_ * split / n_splits, n_rows = n_out_ * (split + 1) / n_splits - row;
      const T* x_tile = tile_of(shared_.x, tile, n_in_);
      if (n_splits == 1) {
        own.x.resize(n_in_ * width);
        run_.gather(p.x + tile * width * n_in_, n_in_, tiles_.size(tile), n_in_, own.x.data(), width);
        x_tile = own.x.data();
      }
      own.y.resize(n_rows * width);
      start_rows(p, row, n_rows, own.y.data());
      for (int64_t panel = 0; panel < network_.n_panels; ++panel) {
        run_.sparse_forward(panel_of(p.weight, panel, row, n_rows), x_tile + panel * network_.panel_width * width, width,
                            own.y.data());
      }
      finish_rows(p, tile, row, n_rows, own.y.data());
    });
  }

  // Each thread takes panels of columns, and walks all rows for them, block by block.
  void backward_sparse(const MaskedBackward<T>& p) {
    const MaskColumns& columns = pattern_.columns(n_, n_threads_);
    if (p.kept != nullptr && p.kept->weight.size() > 0) {
      compressed_ = p.kept->weight.data();
    } else if (p.grad_x != nullptr && is_large()) {
      compress(p.weight, shared_.weight);
    }
    if (p.grad_weight != nullptr) shared_.y.resize(columns.row.size());
    T* const dots = p.grad_weight == nullptr ? nullptr : shared_.y.data();
    parallel_items(network_.n_panels, n_threads_, [&](int64_t panel, int) {
      const auto* blocks = columns.blocks.data() + panel * columns.n_blocks;
      const T* weight = p.grad_x == nullptr ? nullptr : weights_by_columns(p.weight, panel, columns, blocks);
      Scratch<T>& own = scratch<T>().own;
      const int64_t column = panel * network_.panel_width, n_columns = columns_of(panel), width = tiles_.width;
      own.x.resize(n_columns * width), own.y.resize(n_columns * width);
      T* const grad_x = p.grad_x == nullptr ? nullptr : own.y.data();
      for (int64_t tile = 0; tile < tiles_.count; ++tile) {
        const T* grad_tile = tile_of(shared_.x, tile, n_out_);
        const int64_t sample = tile * width * n_in_ + column;
        if (grad_x != nullptr) own.y.assign_zero(n_columns * width);
        if (dots != nullptr) run_.gather(p.x + sample, n_in_, tiles_.size(tile), n_columns, own.x.data(), width);
        for (const auto* block = blocks; block < blocks + columns.n_blocks; ++block) {
          if (block->n_places == 0) continue;
          const SparseColumns<T> a{block->n_places, columns.row.data() + block->first,
                                   columns.kept_column.data() + block->kept_column,
                                   at(weight, block->first - blocks->first)};
          run_.sparse_gradients(a, grad_tile + block->row * width, own.x.data(), width, grad_x, at(dots, block->first),
                                tile == 0);
        }
        if (grad_x != nullptr) run_.scatter(grad_x, width, tiles_.size(tile), n_columns, p.grad_x + sample, n_in_);
      }
    });
    if (p.grad_weight != nullptr) expand(dots, columns, p.grad_weight);
  }

  // The kept weights of a panel, at their places behind the panel's first; 0 at those left over.
  const T* weights_by_columns(const T* weight, int64_t panel, const MaskColumns& columns,
                              const MaskColumns::Block* blocks) const {
    const int64_t first = blocks->first;
    const MaskColumns::Block& last = blocks[columns.n_blocks - 1];
    AlignedBuffer<T>& buffer = scratch<T>().own.weight;
    buffer.assign_zero(last.first + last.n_places - first);
    T* const placed = buffer.data();
    const SparsePanel<T> rows = panel_of(weight, panel, 0, n_out_);
    for (int64_t r = 0; r < n_out_; ++r) {
      move_entries(rows.begin[r], rows.begin[r + 1], [&](int64_t k) { return rows.value_of(r, k); },
                   [&](int64_t k) -> T& { return placed[columns.place[k] - first]; });
    }
    return placed;
  }

  // out[r][j] = the kept weights of rows [row, row + n_rows) and columns [column, column + n_columns), 0 elsewhere.
  void select_block(const T* weight, const uint8_t* mask, int64_t row, int64_t n_rows, int64_t column,
                    int64_t n_columns, T* out) const {
    for (int64_t r = 0; r < n_rows; ++r) {
      const int64_t at = (row + r) * n_in_ + column, ahead = at + kRowsAhead * n_in_;
      if (r + kRowsAhead < n_rows) {
        fetch_ahead(mask + ahead, n_columns);
        fetch_ahead(weight + ahead, n_columns);
      }
      run_.select(mask + at, weight + at, n_columns, out + r * n_columns);
    }
  }

  // The next row of a block may be another page, and the processor fetches ahead within a page only: without this 1,024 x
  // 1,024 weights that lie in memory take 6.9 ms forward and backward, with it 6.3.
  static constexpr int64_t kRowsAhead = 6;
  template <typename U>
  static void fetch_ahead(const U* row, int64_t n) {
    for (int64_t j = 0; j < n; j += 64 / static_cast<int64_t>(sizeof(U))) __builtin_prefetch(row + j);
  }

  // At most kDenseRows, whole blocks of 6, and about the same for every thread.
  static int64_t rows_each(int64_t n, int n_threads) {
    const int64_t n_parts = ((n + kDenseRows - 1) / kDenseRows + n_threads - 1) / n_threads * n_threads;
    return std::max<int64_t>(6, n / n_parts / 6 * 6);
  }

  void forward_dense(const MaskedForward<T>& p) {
    gather_all(p.x, n_in_, &shared_.x);
    const int64_t n_each = rows_each(n_out_, n_threads_), width = tiles_.width;
    parallel_items((n_out_ + n_each - 1) / n_each, n_threads_, [&](int64_t item, int) {
      Scratch<T>& own = scratch<T>().own;
      const int64_t row = item * n_each, n_rows = std::min(n_each, n_out_ - row), n_sums = n_rows * width;
      own.weight.resize(n_rows * kDenseDepth), own.y.resize(tiles_.count * n_sums);
      for (int64_t tile = 0; tile < tiles_.count; ++tile) {
        start_rows(p, row, n_rows, own.y.data() + tile * n_sums);
      }
      for (int64_t i = 0; i < n_in_; i += kDenseDepth) {
        const int64_t depth = std::min(kDenseDepth, n_in_ - i);
        select_block(p.weight, p.mask, row, n_rows, i, depth, own.weight.data());
        for (int64_t tile = 0; tile < tiles_.count; ++tile) {
          run_.dense(own.weight.data(), depth, 1, n_rows, depth, tile_of(shared_.x, tile, n_in_) + i * width, width,
                     own.y.data() + tile * n_sums, false);
        }
      }
      for (int64_t tile = 0; tile < tiles_.count; ++tile) {
        finish_rows(p, tile, row, n_rows, own.y.data() + tile * n_sums);
      }
    });
  }

  void backward_dense(const T* x, const T* weight, const uint8_t* mask, T* grad_x, T* grad_weight) {
    if (grad_x != nullptr) {
      const int64_t n_each = rows_each(n_in_, n_threads_);
      parallel_items((n_in_ + n_each - 1) / n_each, n_threads_, [&](int64_t item, int) {
        dense_grad_x(weight, mask, item * n_each, std::min(n_each, n_in_ - item * n_each), grad_x);
      });
    }
    if (grad_weight != nullptr) {
      const int64_t n_each = run_.widest * std::clamp<int64_t>(n_in_ / run_.widest / n_threads_, 1, 4);
      parallel_items((n_in_ + n_each - 1) / n_each, n_threads_, [&](int64_t item, int) {
        dense_grad_weight(x, mask, item * n_each, std::min(n_each, n_in_ - item * n_each), grad_weight);
      });
    }
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

  // Lanes are columns here, the sum runs over the batch: x is packed as it lies, some columns at a time, and grad
  // with all samples of an output in a row.
  void dense_grad_weight(const T* x, const uint8_t* mask, int64_t column, int64_t n_columns, T* grad_weight) {
    const int64_t n_lanes = run_.widest;
    Scratch<T>& own = scratch<T>().own;
    const int64_t width = tiles_.width, n_samples = tiles_.count * width, n_packs = (n_columns + n_lanes - 1) / n_lanes;
    own.packed.resize(n_packs * n_samples * n_lanes), own.block.resize(n_packs * kDenseRows * n_lanes);
    own.weight.resize(kDenseRows * n_samples);
    for (int64_t pack = 0; pack < n_packs; ++pack) {
      const int64_t i = column + pack * n_lanes, n_taken = std::min(n_lanes, column + n_columns - i);
      for (int64_t b = 0; b < n_samples; ++b) {
        T* lanes = own.packed.data() + (pack * n_samples + b) * n_lanes;
        const int64_t n = b < tiles_.batch ? n_taken : 0;
        std::copy_n(x + b * n_in_ + i, n, lanes);
        std::fill(lanes + n, lanes + n_lanes, T{0});
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
        for (int64_t b = 0; b < n_samples; b += kDenseDepth) {
          run_.dense(own.weight.data() + b, n_samples, 1, n_rows, std::min(kDenseDepth, n_samples - b),
                     own.packed.data() + (pack * n_samples + b) * n_lanes, n_lanes,
                     own.block.data() + pack * kDenseRows * n_lanes, b == 0);
        }
      }
      for (int64_t r = 0; r < n_rows; ++r) {
        const int64_t at = (o + r) * n_in_ + column, ahead = at + kRowsAhead * n_in_;
        if (r + kRowsAhead < n_rows) {
          fetch_ahead(mask + ahead, n_columns);
          fetch_ahead(grad_weight + ahead, n_columns);
        }
        for (int64_t pack = 0; pack < n_packs; ++pack) {
          const int64_t i = pack * n_lanes;
          run_.select(mask + at + i, own.block.data() + (pack * kDenseRows + r) * n_lanes,
                      std::min(n_lanes, n_columns - i), grad_weight + at + i);
        }
      }
    }
  }

  const MaskedLinearFunctions<T> run_;
  const MaskPattern& pattern_;
  const int64_t n_;  // of the pattern's networks
  const MaskPattern::Network& network_;
  const int64_t n_out_, n_in_;
  const Tiles<T> tiles_;
  const int n_threads_;
  Scratch<T>& shared_;
  const T* compressed_ = nullptr;  // the kept weights, where they have been compressed
};

}  // namespace
}  // namespace pns
