// best_match: for each target neuron, in order, the free candidate that it is closest to up to a positive scale
// (Algorithm 1 of the paper).
//
//   lambda(m) = theta.m / |m|^2,  q(m) = |theta - lambda(m) m|_2 over the target's support; least q with
//   theta.m > 0 wins, the lowest index on ties, and is then taken.
//
// Shapes: N problems, T targets, C candidates, P parameters. index -1: the support is empty or no free candidate has a
// positive scale. One supported parameter: every candidate of its sign fits exactly, so the first of them wins.
// A non-finite candidate never wins.
//
// Two stages. Least q is largest cosine, which float32 vectors compute fast but cannot tell apart near 1; so
// candidates within the rounding error of the best cosine go on to the residual itself in float64. The residual is
// never computed as |theta|^2 - (theta.m)^2 / |m|^2, which cancels. Memory O(C + T) and one tile of candidates.
#pragma once

#include <cstdint>

namespace pns {

template <typename T>
struct BestMatchParams {
  int64_t n_problems, n_targets, n_candidates, n_parameters;
  const double* target;      // [N, T, P]
  const uint8_t* support;    // [N, T, P]
  const T* candidates;       // [N, C, P]
  const uint8_t* available;  // [N, C] or null: all
  int64_t* index;            // [N, T]
  double* scale;             // [N, T], 1 where index is -1
  double* distance;          // [N, T], NaN where index is -1
  int n_threads;
};

template <typename T> void best_match(const BestMatchParams<T>& p);

constexpr int kCandidateTile = 64;  // candidates a tile, feature-major: [P][64] floats

// Bit j: candidate j of the tile may beat a signed cosine^2 of threshold: d |d| >= threshold * n, with
// d = sum_k theta[k] tile[feature[k]][j], n = sum_k tile[feature[k]][j]^2, or n is outside float32's safe range.
using MatchFilter = uint64_t (*)(const float* tile, const int32_t* feature, const float* theta, int64_t n_features,
                                 float threshold);
MatchFilter match_filter_avx2();
MatchFilter match_filter_avx512();

}  // namespace pns
