// best_match's passes over a tile, over Vec<float, W>. Lanes are candidates: a support is walked once for 64 of them
// and up to four targets, and no square root or division is needed to compare.
#pragma once

#include "core/vec.h"
#include "kernels/best_match/best_match.h"

namespace pns {
namespace {

// Accumulators stay in registers: 2 x 4 hide the latency of an FMA, 5 x 4 fit AVX-512's 32, 5 x 2 fit AVX2's 16. Unrolled
// for that, see core/dense_product.h.
template <int W, int kTargets>
void filter_group(const FilterGroup& group, uint64_t* pass, float (*score)[kCandidateTile]) {
  using Vector = Vec<float, W>;
  constexpr int kVectors = W == 16 || kTargets == 1 ? 4 : 2;
  for (int g = 0; g < kTargets; ++g) pass[g] = 0;
  for (int at = 0; at < kCandidateTile; at += kVectors * W) {
    Vector dot[kTargets][kVectors], norm[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      norm[v] = Vector::zero();
#pragma GCC unroll 4
      for (int g = 0; g < kTargets; ++g) dot[g][v] = Vector::zero();
    }
    for (int64_t k = 0; k < group.n_features; ++k) {
      const float* row = group.tile + int64_t{group.row[k]} * kCandidateTile + at;
      Vector m[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) m[v] = Vector::load(row + v * W);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) norm[v] = fma(m[v], m[v], norm[v]);
#pragma GCC unroll 4
      for (int g = 0; g < kTargets; ++g) {
        const Vector theta = Vector::broadcast(group.theta[g][k]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) dot[g][v] = fma(theta, m[v], dot[g][v]);
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < kTargets; ++g) {
      const Vector threshold = Vector::broadcast(group.threshold[g]), tiny = Vector::broadcast(kTiny);
      Vector lead[kVectors], largest = tiny;
      for (int v = 0; v < kVectors; ++v) {
        dot[g][v] = dot[g][v] * max(dot[g][v], -dot[g][v]);
        lead[v] = dot[g][v] - threshold * norm[v];
        largest = max(lead[v], largest);  // in this order a NaN in one vector does not hide another
      }
      if (lane_bits<W>(largest > tiny) == 0) continue;
      uint64_t bits = 0;
      for (int v = 0; v < kVectors; ++v) bits |= uint64_t{lane_bits<W>(lead[v] > tiny)} << (v * W);
      pass[g] |= bits << at;
      for (int v = 0; v < kVectors; ++v) {
        const auto is_small = norm[v] < Vector::broadcast(kSmallNorm);
        select(is_small, Vector::broadcast(__builtin_nanf("")), dot[g][v] / norm[v]).store(score[g] + at + v * W);
      }
    }
  }
}

template <int W>
void match_filter(const FilterGroup& group, uint64_t* pass, float (*score)[kCandidateTile]) {
  switch (group.n_targets) {
    case 1: return filter_group<W, 1>(group, pass, score);
    case 2: return filter_group<W, 2>(group, pass, score);
    case 3: return filter_group<W, 3>(group, pass, score);
    default: return filter_group<W, 4>(group, pass, score);
  }
}

template <int W, typename T>
Vec<float, W> load_as_float(const T* p) {
  return Vec<float, W>{__builtin_convertvector(Vec<T, W>::load(p).v, typename Vec<float, W>::Lanes)};
}

// W x W blocks are transposed in registers; a scalar transpose took longer than all the products of 128 targets.
template <int W, typename T>
uint64_t pack_tile(const T* const* rows, int64_t n_columns, float limit, float* tile) {
  using Vector = Vec<float, W>;
  uint64_t wild = 0;
  for (int at = 0; at < kCandidateTile; at += W) {
    typename Vector::IntLanes is_tame = ~typename Vector::IntLanes{};
    const Vector bound = Vector::broadcast(limit);
    int64_t i = 0;
    for (; i + W <= n_columns; i += W) {
      Vector block[W];
      for (int j = 0; j < W; ++j) block[j] = load_as_float<W>(rows[at + j] + i);
      transpose(block);
      for (int j = 0; j < W; ++j) {
        is_tame &= max(block[j], -block[j]) < bound;
        block[j].store(tile + (i + j) * kCandidateTile + at);
      }
    }
    for (; i < n_columns; ++i) {
      Vector column = Vector::zero();
      for (int j = 0; j < W; ++j) column.v[j] = static_cast<float>(rows[at + j][i]);
      is_tame &= max(column, -column) < bound;
      column.store(tile + i * kCandidateTile + at);
    }
    wild |= static_cast<uint64_t>(lane_bits<W>(~is_tame)) << at;
  }
  return wild;
}

template <int W>
MatchFunctions match_functions() {
  return {match_filter<W>, pack_tile<W, float>, pack_tile<W, double>};
}

}  // namespace
}  // namespace pns
