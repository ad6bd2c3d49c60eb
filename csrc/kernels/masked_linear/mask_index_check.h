// For the programs that check the CUDA sources: a random mask, and its index as the device builds it. Needs
// mask_index.cu before it.
#pragma once

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "core/host_check.h"

namespace pns {
namespace {

struct Index {
  std::vector<int32_t> starts;
  std::vector<uint16_t> columns;
};

std::vector<uint8_t> random_mask(int64_t n, double density, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform;
  std::vector<uint8_t> mask(n);
  for (uint8_t& kept : mask) kept = uniform(random) < density ? static_cast<uint8_t>(1 + random() % 3) : 0;
  return mask;
}

Index fill(int64_t n_rows, int64_t n_columns, const Guarded& bits, const std::vector<int32_t>& begin) {
  Index index{std::vector<int32_t>(n_rows * ((n_columns + kCudaSegment - 1) / kCudaSegment) + 1),
              std::vector<uint16_t>(begin.back())};
  auto* words = reinterpret_cast<const uint32_t*>(const_cast<Guarded&>(bits).data());
  launch_mask_fill({n_rows, n_columns, words, begin.data(), index.starts.data(), index.columns.data()}, {0, nullptr});
  return index;
}

std::pair<Index, Index> index_of(const std::vector<uint8_t>& mask, int64_t n, int64_t n_out, int64_t n_in) {
  Guarded bits(n * n_out * ((n_in + 31) / 32) * 4, 0), bits_t(n * n_in * ((n_out + 31) / 32) * 4, 0);
  std::vector<int32_t> begin(n * n_out + 1, -1), begin_t(n * n_in + 1, -1);
  launch_mask_count({n, n_out, n_in, mask.data(), reinterpret_cast<uint32_t*>(bits.data()),
                     reinterpret_cast<uint32_t*>(bits_t.data()), begin.data(), begin_t.data()},
                    {0, nullptr});
  REQUIRE(begin.back() == begin_t.back(), "%d and %d kept", begin.back(), begin_t.back());
  std::pair<Index, Index> both{fill(n * n_out, n_in, bits, begin), fill(n * n_in, n_out, bits_t, begin_t)};
  REQUIRE(bits.is_intact() && bits_t.is_intact(), "wrote outside");
  return both;
}

}  // namespace
}  // namespace pns
