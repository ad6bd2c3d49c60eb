// existence_search: which of up to 2^40 random neurons, drawn on the fly and never stored, is closest to each target
// neuron up to a positive scale, and how many lie within eps (the event that Theorem 2 of the paper bounds).
//
//   m_i(c) ~ U[-1, 1] or N(0, 1), lambda(m) = theta.m / |m|^2 > 0, q(m) = |theta - lambda(m) m|_2; least q, the lowest c on ties;
//   n_matches = #{c: lambda(m) > 0, q(m) <= eps}
//
// Shapes: T targets of k parameters, none of them zero; candidates first <= c < first + n_candidates. index -1: no
// candidate has a positive scale. Parameter i of candidate c comes from word (c % 64) / 16 of Philox4x32-10 with the
// seed as key and (64-bit number 16 * (c / 64) + c % 16, i, 2) as counter: a vector of counters gives one parameter of
// 64 candidates in a row, for any k, and no word is wasted. Its upper 25 bits, made odd, are an integer below 2^24;
// times 2^-24 that is m_i, exact in float32, symmetric and never zero. normal.h makes it a normal number.
//
// Two stages, as in best_match, whose filter runs over the tile of 64 that was just drawn; q itself, in float64, decides
// wherever float32 cannot: about the best so far, and at eps. So results do not depend on the SIMD level or the threads.
#pragma once

#include <cstdint>
#include <functional>

namespace pns {

struct ExistenceSearchParams {
  int64_t n_targets, n_parameters;
  const double* theta;  // [T, k]
  int64_t first, n_candidates;
  uint64_t seed;
  bool is_normal;  // N(0, 1); otherwise U[-1, 1]
  double eps;          // negative: do not count
  int64_t* index;      // [T]
  double* scale;       // [T], 1 where index is -1
  double* distance;    // [T], NaN where index is -1
  double* candidate;   // [T, k], NaN where index is -1
  int64_t* n_matches;  // [T]
  int n_threads;
  std::function<bool(int64_t)> should_stop;  // asked with the number of candidates done, every 50 ms
};

// False: stopped, and nothing was written.
bool existence_search(const ExistenceSearchParams& p);

constexpr uint32_t kCandidateStream = 2;  // counter word 3; 1 is the batch order's
constexpr int kQuads = 16;                // Philox counters a parameter and tile
constexpr double kUniformUnit = 1.0 / (1 << 24);

struct DrawFunctions {
  // values[i][j] = the integer of m_i of candidate 64 * tile + j.
  void (*integers)(uint64_t seed, int64_t tile, int64_t n_parameters, float* values);
  void (*to_normal)(float* values, int64_t n);
};
DrawFunctions draw_functions_avx2();
DrawFunctions draw_functions_avx512();

}  // namespace pns
