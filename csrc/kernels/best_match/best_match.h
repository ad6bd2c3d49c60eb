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
// never computed as |theta|^2 - (theta.m)^2 / |m|^2, which cancels. Each target keeps its best few, so that the greedy
// order is settled from these; targets whose few are all taken are searched again together. Memory O(C + T), one tile
// of candidates a thread, and the supported parameters.
#pragma once

#include <cstdint>

namespace pns {

template <typename T>
struct BestMatchParams {
  int64_t n_problems, n_targets, n_candidates, n_parameters;
  const void* target;  // [N, T, P], double or float
  bool target_is_f64;
  const uint8_t* support;    // [N, T, P]
  const T* candidates;       // [N, C, P]
  const uint8_t* available;  // [N, C] or null: all
  int64_t* index;            // [N, T]
  double* scale;             // [N, T], 1 where index is -1
  double* distance;          // [N, T], NaN where index is -1
  int n_threads;
};

// False, and nothing is promised about the results: a target is not finite.
template <typename T> bool best_match(const BestMatchParams<T>& p);

constexpr int kCandidateTile = 64;  // candidates a tile, feature-major: [P][64] floats
constexpr int kTargetGroup = 4;     // targets of one support that share a walk over it, and the norms
constexpr float kSmallNorm = 1e-25f, kTiny = -3e-30f;

// Targets of one support against a tile: row[k] is the tile's row of its k-th feature, theta[g][k] target g there.
struct FilterGroup {
  const float* tile;
  const int32_t* row;
  int64_t n_features;
  int n_targets;
  const float* theta[kTargetGroup];
  float threshold[kTargetGroup];
};

// pass[g] bit j: candidate j may reach a signed cosine^2 of threshold[g], i.e. d |d| - threshold * n > kTiny, where
// d = sum_k theta[k] m[k], n = sum_k m[k]^2; what is so small that its squares vanish passes. Where any passes,
// score[g] holds d |d| / n, or NaN where n < kSmallNorm. Of a candidate that is not finite, or whose sums are not,
// nothing is promised.
using MatchFilter = void (*)(const FilterGroup& group, uint64_t* pass, float (*score)[kCandidateTile]);

// tile[i][j] = rows[j][i] in float32, i < n_columns. Bit j of the result: an |m| of candidate j is not below limit.
template <typename T> using PackTile = uint64_t (*)(const T* const* rows, int64_t n_columns, float limit, float* tile);

struct MatchFunctions {
  MatchFilter filter;
  PackTile<float> pack_f32;
  PackTile<double> pack_f64;
};
MatchFunctions match_functions();  // of the present SIMD level
MatchFunctions match_functions_avx2();
MatchFunctions match_functions_avx512();

}  // namespace pns
