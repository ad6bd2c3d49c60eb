// Edge-popup's selection: the `keep` largest |score| of a part are put in force, in one pass over the scores.
//
// Scores move little from step to step, so the last threshold brackets the next one: what lies above the bracket is in
// force, what lies below is not, and the few candidates inside are ranked exactly. A bracket that missed is widened.
#pragma once

#include <algorithm>

#include "core/vec.h"
#include "kernels/mlp_trainer/network.h"

namespace pns {
namespace {

template <int W>
struct Selection {
  using Vector = Vec<float, W>;
  using Int = typename Vector::IntLanes;

  static void run(ScorePart& part, int64_t keep) {
    int64_t half_width = part.half_width;
    while (!within(part, keep, part.threshold - half_width, part.threshold + half_width)) half_width *= 16;
  }

  // The order of |score| as integers; NaN ranks lowest.
  static Int keys(const float* score) {
    Int bits;
    std::memcpy(&bits, score, sizeof(bits));
    bits &= 0x7fffffff;
    return bits > kInfinityKey ? Int{} - 1 : bits;
  }

  static bool within(ScorePart& part, int64_t keep, int64_t low, int64_t high) {
    const int32_t lowest = static_cast<int32_t>(std::max<int64_t>(low, -1));
    const int32_t highest = static_cast<int32_t>(std::min<int64_t>(high, kInfinityKey));
    std::vector<ScorePart::Candidate>& inside = part.candidates;
    inside.clear();
    int64_t n_above = 0;
    auto visit = [&](int64_t at, Int key) {
      const Int is_above = key > highest;
      n_above += __builtin_popcount(lane_bits<W>(is_above));
      select(is_above, Vector::load(part.frozen + at), Vector::zero()).store(part.in_force + at);
      for (uint32_t rest = lane_bits<W>((key >= lowest) & ~is_above); rest != 0; rest &= rest - 1) {
        const int j = __builtin_ctz(rest);
        inside.push_back({key[j], static_cast<int32_t>(at + j)});
      }
    };
    Int lane;
    for (int j = 0; j < W; ++j) lane[j] = j;
    for (int64_t r = 0; r < part.n_rows; ++r) {
      const int64_t begin = r * part.stride, end = begin + part.n_columns;
      int64_t at = begin;
      for (; at + W <= end; at += W) visit(at, keys(part.score + at));
      // lanes behind the row rank below everything
      if (at < end) visit(at, lane < static_cast<int32_t>(end - at) ? keys(part.score + at) : Int{} - 2);
    }
    return part.finish(keep - n_above, highest);
  }
};

}  // namespace
}  // namespace pns
