// Where everything is during a masked convolution: how images are cut into blocks and laid out in tiles, and for each
// result channel the kept weights as offsets into a tile. One plan describes the forward pass (from x to y) or the
// input's gradient (from grad to grad_x), as the same product:
//
//   result[channel, phase][line][pixel] += value * source[offset + line * x_step + pixel]
//
// A stride does not reach the product. Forward, a tile's rows hold every sw-th column one after another ("phases"), so
// that the pixels of a line read neighbours. Backward the results have phases: of the padded image's rows and columns,
// those with the same remainder by the stride meet the same weights, and neighbours among them read neighbours in grad.
//
// Behind a pooling a feature of y and of its gradient is a square of window x window pixels, which has as many places.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/masked_conv2d/masked_conv2d.h"
#include "kernels/masked_linear/mask_pattern.h"

namespace pns {

// One direction of the image.
struct ConvAxis {
  int64_t n_source, n_result;      // pixels of the images
  int64_t n_lines;                 // of results, a phase
  int64_t step, reach, shift;      // line l reads the tile's [l step, l step + reach]; source pixel j is at j + shift
  int64_t n_phases, result_shift;  // result pixel j is of line (j + result_shift) / n_phases, phase the remainder

  int64_t extent(int64_t n) const { return (n - 1) * step + reach + 1; }
};

// A run of features of one channel, or of several channels in one run, and where in a tile each goes.
struct ConvRun {
  int64_t first, n_features;   // of one channel
  int64_t n_channels, plane;   // in one run, and a channel's pixels in the tile
  int64_t n_each;              // places of a feature
  std::vector<int32_t> place;  // [n_channels * n_features * n_each]
};

struct ConvBlock {
  int64_t n_lines;
  ConvRun source, result;
  std::vector<int32_t> holes, result_holes;  // pixels of a channel's plane that no feature fills: zeros
};

// The kept weights by result channel and phase.
struct ConvRows {
  std::vector<uint32_t> begin;   // [n_result * n_phases + 1]
  std::vector<int32_t> offset;   // into a tile
  std::vector<uint32_t> weight;  // which one it is, flat
};

struct ConvPlan {
  int64_t n_source, source_features, n_result, result_features;  // channels, features of a channel
  int64_t n_phases;                                              // of the results, both directions
  int64_t n_pixels, x_step, plane;                               // of a line; from line to line; of a source channel
  std::vector<ConvBlock> blocks;
  ConvRows rows;

  // A tile beyond what an offset of 32 bits reaches has no plan: only the sizes above are there.
  bool is_made() const { return !blocks.empty(); }
  size_t bytes() const;
};

// The plan of the forward pass, or of the input's gradient, for tiles of `lanes` samples (kTileSamples). Kept as long as
// the pattern lives, since a training loop asks for the same ones in every step. Safe to call from several threads.
std::shared_ptr<const ConvPlan> conv_plan(const ConvShape& shape, const std::shared_ptr<const MaskPattern>& pattern,
                                          bool is_gradient, int64_t lanes);

}  // namespace pns
