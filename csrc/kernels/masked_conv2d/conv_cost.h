// Whether kept weights one by one take less time than a dense convolution of torch (oneDNN): both estimated, in ns of
// one core. The constants are fits on an EPYC of Zen 5 with AVX-512 (float32, batches of 128, eight layers from 3 x 64
// channels at 32 x 32 pixels to 512 x 512 at 2 x 2, densities 0.01 to 0.7), the dense side's rather too small than too
// large: where the two are close, dense is taken. Other processors are taken to differ on both sides alike.
#pragma once

#include "core/simd_level.h"
#include "kernels/masked_conv2d/masked_conv2d.h"

namespace pns {
namespace {

struct ConvCost {
  double entry;      // of a kept weight and a tile of samples, whatever the image
  double dense_macs; // multiply-adds of float32 a ns of the dense convolution
};
constexpr ConvCost kForwardCost{0.6, 120}, kBackwardCost{1.2, 110};  // the latter of each of two products
constexpr double kPixelCost = 0.35;                                  // of a kept weight and a pixel of 64 bytes
constexpr double kLayoutCost = 0.45;                                 // of a number of x or y, on both sides

// oneDNN computes with channels in blocks of 16.
inline double whole_blocks(int64_t channels) { return double((channels + 15) / 16 * 16); }

// Times the vectors of a narrower level: dense convolutions choose their own.
inline double level_cost() {
  switch (simd_level()) {
    case SimdLevel::kAvx512: return 1;
    case SimdLevel::kAvx2: return 2;
    default: return 8;
  }
}

// Time of the kept weights / time of the dense convolution, for n_kept of them.
inline double sparse_to_dense(const ConvShape& s, int64_t n_kept, int64_t lanes, const ConvCost& cost) {
  const double pixels = double(s.out_height()) * s.out_width(), n_tiles = double((s.batch + lanes - 1) / lanes);
  const double numbers = double(s.n_in) * s.height * s.width + s.n_out * pixels;  // of a sample
  const double sparse = level_cost() * n_kept * n_tiles * (pixels * kPixelCost + cost.entry) +
                        kLayoutCost * numbers * (s.batch + n_tiles * lanes) / 2;  // what is not there is written only
  const double n_weights = whole_blocks(s.n_out) * whole_blocks(s.n_in) * s.kernel_h * s.kernel_w;
  const double macs = cost.dense_macs * lanes / kTileSamples<float>;
  return sparse / (s.batch * (n_weights * pixels / macs + kLayoutCost * numbers));
}

}  // namespace
}  // namespace pns
