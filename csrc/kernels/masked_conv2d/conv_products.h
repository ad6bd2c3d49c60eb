// A call's work along its plans: tiles of the batch times blocks of the image, and what its threads share.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/aligned_buffer.h"
#include "core/parallel.h"
#include "kernels/masked_conv2d/conv_plan.h"
#include "kernels/masked_conv2d/masked_conv2d.h"

namespace pns {
namespace {

// Kept between calls: fresh memory costs more than many a product.
template <typename T>
struct ConvScratch {
  AlignedBuffer<T> source, results, kept;    // of each thread
  AlignedBuffer<T> values, dots, bias_dots;  // of a call
};

template <typename T>
struct ConvBias {
  const T* values;      // [n_result] or null
  const uint8_t* mask;  // or null: all are kept

  T at(int64_t o) const { return values == nullptr || (mask != nullptr && mask[o] == 0) ? T{0} : values[o]; }
};

// What follows the product.
struct ConvTail {
  bool is_there, has_relu;
  uint16_t* passes;  // or null
};
template <typename T>
ConvScratch<T>& conv_scratch() {
  static thread_local ConvScratch<T> kept;
  return kept;
}

template <typename T>
void release_large_conv_scratch() {
  constexpr size_t kMost = size_t{1} << 26;
  auto& kept = conv_scratch<T>();
  const size_t n = kept.source.size() + kept.results.size() + kept.values.size() + kept.dots.size();
  if (n * sizeof(T) > kMost) kept = {};
}

template <typename T>
class ConvProducts {
 public:
  ConvProducts(const MaskedConv2dFunctions<T>& run, const ConvPlan& plan, int64_t batch, int n_threads)
      : run_(run), plan_(plan), rows_(plan.rows), batch_(batch), n_tiles_((batch + kLanes - 1) / kLanes),
        n_blocks_(plan.blocks.size()), n_threads_(threads_for(n_threads)), shared_(conv_scratch<T>()) {}

  // result = the product of the plan with source, of which `passes` (or null) tell what passed a tail, and a tail over it.
  void product(const T* source, const uint16_t* passes, const T* weight, const ConvBias<T>& bias, const ConvTail& tail,
               T* result) {
    const T* values = kept_of(weight);
    const int64_t n_items = n_tiles_ * n_blocks_, n_splits = splits_of(n_items);
    parallel_items(n_items * n_splits, n_threads_, [&](int64_t job, int) {
      ConvScratch<T>& own = conv_scratch<T>();
      const int64_t item = job / n_splits;
      const ConvBlock& block = plan_.blocks[item % n_blocks_];
      gather_source(item, source, passes, &own);
      for_channels(block.result, job % n_splits, n_splits, [&](int64_t first, int64_t last) {
        const int64_t plane = block.result.plane, phase_size = plane / plan_.n_phases * kLanes;
        own.results.resize((last - first) * plane * kLanes);
        for (int64_t r = 0; r < (last - first) * plan_.n_phases; ++r) {
          const int64_t row = first * plan_.n_phases + r;
          run_.product(entries_of(row, values), lines_of(block), own.source.data(), bias.at(first + r / plan_.n_phases),
                       own.results.data() + r * phase_size);
        }
        scatter_results(item, first, last, tail, &own, result);
      });
    });
  }

  // The gradients of the kept weights and of the bias [n_result] (or null) along a forward plan.
  void weight_gradient(const T* grad, const uint16_t* passes, const T* x, int64_t n_weights, T* grad_weight, T* grad_bias,
                       const uint8_t* bias_mask) {
    const int64_t n_entries = rows_.offset.size(), n_items = n_tiles_ * n_blocks_;
    const int64_t n_parts = parts_of(n_items, n_entries), n_splits = splits_of(n_parts);
    shared_.dots.assign_zero(n_parts * n_entries), shared_.bias_dots.assign_zero(n_parts * plan_.n_result);
    T *dots = shared_.dots.data(), *bias_dots = shared_.bias_dots.data();
    parallel_items(n_parts * n_splits, n_threads_, [&](int64_t job, int) {
      const int64_t part = job / n_splits;
      for (int64_t item = n_items * part / n_parts; item < n_items * (part + 1) / n_parts; ++item) {
        add_dots(item, job % n_splits, n_splits, grad, passes, x, dots + part * n_entries,
                 grad_bias == nullptr ? nullptr : bias_dots + part * plan_.n_result);
      }
    });
    const int64_t n_columns = n_weights / plan_.n_result;
    parallel_items(plan_.n_result, n_weights > 100'000 ? n_threads_ : 1, [&](int64_t o, int) {
      std::fill_n(grad_weight + o * n_columns, n_columns, T{0});
      for (int64_t k = rows_.begin[o]; k < rows_.begin[o + 1]; ++k) {
        grad_weight[rows_.weight[k]] = sum_of_parts(dots + k, n_parts, n_entries);
      }
      if (grad_bias == nullptr) return;
      const bool is_kept = bias_mask == nullptr || bias_mask[o] != 0;
      grad_bias[o] = is_kept ? sum_of_parts(bias_dots + o, n_parts, plan_.n_result) : T{0};
    });
  }

 private:
  static constexpr int64_t kLanes = kTileSamples<T>;

  // A sum of kept weights and of numbers laid out, which take about four times as long.
  int threads_for(int n_threads) const {
    constexpr double kWorkPerThread = 3e5;  // some 20 us
    const double numbers = double(plan_.n_source) * plan_.source_features + double(plan_.n_result) * plan_.result_features;
    const double pixels = double(std::min(plan_.source_features, plan_.result_features));
    const double work = double(n_tiles_) * kLanes * (rows_.offset.size() * pixels + 4 * numbers);
    return std::max(1, static_cast<int>(std::min<double>(n_threads, work / kWorkPerThread)));
  }

  // The kept weights in the entries' order: every item reads them.
  const T* kept_of(const T* weight) const {
    constexpr int64_t kPiece = int64_t{1} << 16;
    const int64_t n = rows_.weight.size();
    shared_.values.resize(n);
    T* values = shared_.values.data();
    parallel_items((n + kPiece - 1) / kPiece, n_threads_, [&](int64_t i, int) {
      for (int64_t k = i * kPiece; k < std::min(n, (i + 1) * kPiece); ++k) values[k] = weight[rows_.weight[k]];
    });
    return values;
  }

  int64_t tile_of(int64_t item) const { return item / n_blocks_; }
  int64_t samples_of(int64_t item) const { return std::min(kLanes, batch_ - tile_of(item) * kLanes); }

  // Where there are fewer items than threads, those share an item's result channels, and each lays out the source.
  int64_t splits_of(int64_t n_items) const {
    return std::clamp<int64_t>((n_threads_ + n_items - 1) / n_items, 1, plan_.n_result);
  }

  // Sums of the weight's gradient are formed part by part: as many as a machine has threads, within reason, but not by
  // the number of threads.
  static int64_t parts_of(int64_t n_items, int64_t n_entries) {
    constexpr int64_t kMostParts = 64, kMostNumbers = int64_t{1} << 21;
    return std::clamp<int64_t>(kMostNumbers / std::max<int64_t>(1, n_entries), 1, std::min(n_items, kMostParts));
  }

  static T sum_of_parts(const T* first, int64_t n_parts, int64_t step) {
    T sum = first[0];
    for (int64_t part = 1; part < n_parts; ++part) sum += first[part * step];
    return sum;
  }

  // f(first, last) for the channels of one split, as many at once as a run has.
  template <typename F>
  void for_channels(const ConvRun& run, int64_t split, int64_t n_splits, F&& f) const {
    const int64_t end = plan_.n_result * (split + 1) / n_splits;
    for (int64_t c = plan_.n_result * split / n_splits; c < end; c += run.n_channels) {
      f(c, std::min(end, c + run.n_channels));
    }
  }

  ConvEntries<T> entries_of(int64_t row, const T* values) const {
    const int64_t k = rows_.begin[row];
    return {rows_.begin[row + 1] - k, rows_.offset.data() + k, values == nullptr ? nullptr : values + k};
  }
  ConvLines lines_of(const ConvBlock& block) const {
    return {block.n_lines, plan_.n_pixels, plan_.x_step * kLanes};
  }

  // Where the passes of a channel's run are, of n_channels with n_features each.
  template <typename P>
  static P* passes_of(P* passes, int64_t tile, int64_t n_channels, int64_t channel, int64_t n_features, const ConvRun& run) {
    return passes == nullptr ? nullptr : passes + ((tile * n_channels + channel) * n_features + run.first) * run.n_each;
  }

  // n features of a run into a tile; what did not pass a tail gets 0.
  void lay_out(const T* samples, int64_t stride, int64_t n_batch, int64_t n, const ConvRun& run, const uint16_t* passes,
               AlignedBuffer<T>* kept, T* tile) const {
    if (passes == nullptr) {
      run_.gather(samples, stride, n_batch, n, run.place.data(), tile);
      return;
    }
    kept->resize(n * kLanes);
    run_.gather(samples, stride, n_batch, n, nullptr, kept->data());
    run_.spread(kept->data(), passes, run.place.data(), n, run.n_each, tile);
  }

  static void fill_holes(const std::vector<int32_t>& holes, T* channel) {
    for (int32_t hole : holes) std::memset(channel + hole * kLanes, 0, kLanes * sizeof(T));
  }

  // Of channels [first, last), through the tail.
  void scatter_results(int64_t item, int64_t first, int64_t last, const ConvTail& tail, ConvScratch<T>* own, T* result) const {
    const ConvRun& run = plan_.blocks[item % n_blocks_].result;
    const int64_t n = (last - first) * run.n_features, n_features = plan_.result_features;
    const T* tile = own->results.data();
    const int32_t* place = run.place.data();
    if (tail.is_there) {
      own->kept.resize(n * kLanes);
      run_.pool(tile, place, n, run.n_each, tail.has_relu, own->kept.data(),
                passes_of(tail.passes, tile_of(item), plan_.n_result, first, n_features, run));
      tile = own->kept.data(), place = nullptr;
    }
    run_.scatter(tile, place, samples_of(item), n,
                 result + (tile_of(item) * kLanes * plan_.n_result + first) * n_features + run.first,
                 plan_.n_result * n_features);
  }

  // The item's tile of source, zeros around the image included.
  void gather_source(int64_t item, const T* source, const uint16_t* passes, ConvScratch<T>* own) const {
    const ConvBlock& block = plan_.blocks[item % n_blocks_];
    const ConvRun& run = block.source;
    own->source.resize(plan_.n_source * plan_.plane * kLanes);
    T* tile = own->source.data();
    const int64_t stride = plan_.n_source * plan_.source_features;
    const T* samples = source + tile_of(item) * kLanes * stride + run.first;
    for (int64_t c = 0; c < plan_.n_source; c += run.n_channels) {
      const int64_t n = std::min(run.n_channels, plan_.n_source - c);
      lay_out(samples + c * plan_.source_features, stride, samples_of(item), n * run.n_features, run,
              passes_of(passes, tile_of(item), plan_.n_source, c, plan_.source_features, run), &own->kept,
              tile + c * plan_.plane * kLanes);
    }
    for (int64_t c = 0; c < plan_.n_source; ++c) fill_holes(block.holes, tile + c * plan_.plane * kLanes);
  }

  void add_dots(int64_t item, int64_t split, int64_t n_splits, const T* grad, const uint16_t* passes, const T* x, T* dots,
                T* bias_dots) const {
    ConvScratch<T>& own = conv_scratch<T>();
    const ConvBlock& block = plan_.blocks[item % n_blocks_];
    const ConvRun& run = block.result;
    const ConvLines lines = lines_of(block);
    gather_source(item, x, nullptr, &own);
    const int64_t n_numbers = run.plane * kLanes;
    own.results.resize(run.n_channels * n_numbers);
    for_channels(run, split, n_splits, [&](int64_t first, int64_t last) {
      if (bias_dots == nullptr && rows_.begin[first] == rows_.begin[last]) return;
      lay_out(grad + (tile_of(item) * kLanes * plan_.n_result + first) * plan_.result_features + run.first,
              plan_.n_result * plan_.result_features, samples_of(item), (last - first) * run.n_features, run,
              passes_of(passes, tile_of(item), plan_.n_result, first, plan_.result_features, run), &own.kept,
              own.results.data());
      for (int64_t o = first; o < last; ++o) {
        T* channel = own.results.data() + (o - first) * n_numbers;
        fill_holes(block.result_holes, channel);
        run_.dots(entries_of(o, nullptr), lines, channel, own.source.data(), dots + rows_.begin[o]);
        if (bias_dots != nullptr) bias_dots[o] += run_.sum(channel, n_numbers);
      }
    });
  }

  const MaskedConv2dFunctions<T> run_;
  const ConvPlan& plan_;
  const ConvRows& rows_;
  const int64_t batch_, n_tiles_, n_blocks_;
  const int n_threads_;
  ConvScratch<T>& shared_;
};

}  // namespace
}  // namespace pns
