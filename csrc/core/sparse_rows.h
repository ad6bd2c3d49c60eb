// The sum over a compressed row (CSR) that every sparse path is made of.
//
// Activations are feature-major, [feature][batch], batch innermost: one kept weight then feeds whole vectors of
// the batch, whatever the pattern. Per entry and V vectors: 1 broadcast, V loads, V FMAs.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "core/vec.h"

namespace pns {
namespace {

// p[0] and p[1]. Of places in 32 bits by one load: loads are what bounds the sums.
template <typename T>
inline std::pair<T, T> load_two(const T* p) {
  return {p[0], p[1]};
}
inline std::pair<int32_t, int32_t> load_two(const int32_t* p) {
  uint64_t both;
  std::memcpy(&both, p, sizeof(both));
  return {static_cast<int32_t>(both), static_cast<int32_t>(both >> 32)};  // in either order of bytes: the sum's two chains
}

// acc[v] += sum over entries k in [k, end) of value[k] * x[column[k]][v], in entry order. Two chains of V accumulators:
// an FMA takes 4 cycles and two start each cycle, so fewer than 8 independent sums leave the units idle. With kHasEntry
// the k-th value is value[entry[k]].
template <int V, bool kHasEntry, typename Vector, typename T, typename Column, typename Entry>
[[gnu::always_inline]] inline void sparse_sum(const Column* column, const T* value, const Entry* entry, int64_t k,
                                              int64_t end, const T* x, int64_t stride, Vector* acc) {
  Vector second[V];
  for (int v = 0; v < V; ++v) second[v] = Vector::zero();
  auto add = [&](int64_t at, Column place, Vector* sum) {
    const Vector w = Vector::broadcast(value[at]);
    const T* row = x + place * stride;
    for (int v = 0; v < V; ++v) sum[v] = fma(w, Vector::load(row + v * Vector::kLanes), sum[v]);
  };
  const int64_t last = end - ((end - k) & 1);
  for (; k < last; k += 2) {
    const auto place = load_two(column + k);
    if constexpr (kHasEntry) {
      const auto at = load_two(entry + k);
      add(at.first, place.first, acc);
      add(at.second, place.second, second);
    } else {
      add(k, place.first, acc);
      add(k + 1, place.second, second);
    }
  }
  if (last < end) add(kHasEntry ? entry[last] : last, column[last], acc);
  for (int v = 0; v < V; ++v) acc[v] = acc[v] + second[v];
}

}  // namespace
}  // namespace pns
