// masked_conv2d: convolutions with a masked weight, at the cost of the kept weights.
//
//   forward   y[b,o,h,w] = bias[o] + sum_{i,k,l} x[b,i, h sh + k dh - ph, w sw + l dw - pw] W[o,i,k,l] m[o,i,k,l]
//   backward  grad_x[b,i,.,.] = the same sum over (o,k,l), of grad
//             grad_weight[o,i,k,l] = m[o,i,k,l] sum_{b,h,w} grad[b,o,h,w] x[b,i, h sh + k dh - ph, w sw + l dw - pw]
//             grad_bias[o] = sum_{b,h,w} grad[b,o,h,w]                        (grad_weight is 0 where pruned)
//
// A tail may follow in the same call, so that y never goes through memory: y <- max(y, 0), then the largest of each square
// of window x window pixels, of which the last rows and columns are in none where they do not fill one. Backward, grad
// then is that of the tail's result, and goes where `passes` say: bit j of passes[tile][o][square][pixel of the square] is
// set where sample j of a tile has its largest there, the first of equal ones, and above 0 if there is a ReLU. A NaN is
// larger than any number.
//
// Stride (sh, sw), padding (ph, pw) with zeros, dilation (dh, dw). x [B, I, H, W], weight and mask [O, I, KH, KW],
// y [B, O, OH, OW]; all contiguous, row-major; mask one byte an entry. Each of the backward's outputs is formed if its
// pointer is given. A pruned weight is not read: a NaN or inf there does not spread.
//
// No im2col: samples go in tiles of kTileSamples, innermost, [channel][row][column][sample], padded with zeros once as
// they are laid out. A kept weight then is one offset into a tile (conv_plan.h) and feeds whole vectors whatever the
// image's size: per weight and pixel one load and one FMA (SkimCaffe's direct sparse convolution, with the batch in the
// vectors). The input's gradient is that very product over the transposed pattern. Rows of the image are cut into
// blocks so that a tile's part of them stays in a near cache.
//
// The order of every sum depends on the sizes and the mask only: results are the same on any number of threads, and y
// and grad_x of a sample in every batch.
#pragma once

#include <cstdint>

namespace pns {

struct ConvShape {
  int64_t batch, n_in, height, width, n_out, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t window;  // 1: no pooling

  int64_t out_height() const { return (height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1; }
  int64_t out_width() const { return (width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
  int64_t n_weights() const { return n_out * n_in * kernel_h * kernel_w; }
};

template <typename T>
struct MaskedConv2dForward {
  ConvShape shape;
  const T* x;
  const T* weight;
  const uint8_t* mask;
  const T* bias;             // [O] or null
  const uint8_t* bias_mask;  // or null: all are kept
  T* y;
  bool has_relu;
  uint16_t* passes;  // of the tail, or null
  int n_threads;
};

template <typename T>
struct MaskedConv2dBackward {
  ConvShape shape;
  const T* grad;
  const T* x;       // unused without grad_weight
  const T* weight;  // unused without grad_x
  const uint8_t* mask;
  const uint8_t* bias_mask;  // or null: all are kept
  const uint16_t* passes;    // null without a tail
  T* grad_x;                 // or null
  T* grad_weight;            // or null
  T* grad_bias;              // or null, 0 where pruned
  int n_threads;
};

// Every size is at least 1, but the batch may be 0. False, and nothing of use written: a dense convolution is estimated to
// take less time (conv_cost.h), or a tile exceeds 2^31 numbers. The estimate is not asked with is_forced, nor in a backward
// with passes; a forward that is to write them asks for both directions.
template <typename T> bool masked_conv2d_forward(const MaskedConv2dForward<T>& p, bool is_forced);
template <typename T> bool masked_conv2d_backward(const MaskedConv2dBackward<T>& p, bool is_forced);

// 64 bytes a pixel at every SIMD level, so that none changes how a batch is cut.
template <typename T> constexpr int64_t kTileSamples = 64 / sizeof(T);

// One result channel's kept weights: x[offset] is what one multiplies at the first pixel of the first line.
template <typename T>
struct ConvEntries {
  int64_t count;
  const int32_t* offset;  // numbers, not pixels
  const T* value;         // unused by dots
};

// Lines of n_pixels of kTileSamples numbers, from line to line `x_step` numbers on in the tile, without a gap in the results.
struct ConvLines {
  int64_t n_lines, n_pixels, x_step;
};

// What each SIMD level provides. place[f] is where feature f (a pixel of a channel) is in the tile, in pixels; null: at f.
template <typename T>
struct MaskedConv2dFunctions {
  // tile[place[f]][b] = x[b][f] for n_batch samples, 0 behind them; x_stride from sample to sample. And back.
  void (*gather)(const T* x, int64_t x_stride, int64_t n_batch, int64_t n_features, const int32_t* place, T* tile);
  void (*scatter)(const T* tile, const int32_t* place, int64_t n_batch, int64_t n_features, T* y, int64_t y_stride);
  // y[l][n] = start + sum over entries of value * x[offset + l * x_step + n]
  void (*product)(const ConvEntries<T>& entries, const ConvLines& lines, const T* x, T start, T* y);
  // dots[entry] += sum over l and n of grad[l][n] * x[offset + l * x_step + n]
  void (*dots)(const ConvEntries<T>& entries, const ConvLines& lines, const T* grad, const T* x, T* dots);
  T (*sum)(const T* x, int64_t n);  // n a multiple of kTileSamples
  // The tail for n squares of n_each (1 or 4) pixels, place[q * n_each + p] that of square q's pixel p: kept[q] from the
  // tile, and passes[q * n_each + p] (or null). And back, into all of those places.
  void (*pool)(const T* tile, const int32_t* place, int64_t n, int64_t n_each, bool has_relu, T* kept, uint16_t* passes);
  void (*spread)(const T* kept, const uint16_t* passes, const int32_t* place, int64_t n, int64_t n_each, T* tile);
};
template <typename T> MaskedConv2dFunctions<T> masked_conv2d_avx2();
template <typename T> MaskedConv2dFunctions<T> masked_conv2d_avx512();

}  // namespace pns
