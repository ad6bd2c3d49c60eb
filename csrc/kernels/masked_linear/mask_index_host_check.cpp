// The CUDA source of the mask index, run on the CPU by the emulator and compared with loops over the mask. See
// test_cuda_sources.py.
#define PNS_EMULATE_CUDA 1
#include "kernels/masked_linear/mask_index.cu"

#include <random>

#include "core/host_check.h"
#include "kernels/masked_linear/mask_index_check.h"

namespace pns {
namespace {

void check_index_of(const Index& index, const std::vector<uint8_t>& mask, int64_t n_networks, int64_t n_rows,
                    int64_t n_columns, bool is_transposed) {
  const int64_t n_segments = (n_columns + kCudaSegment - 1) / kCudaSegment;
  int32_t at = 0;
  for (int64_t row = 0; row < n_networks * n_rows; ++row) {
    for (int64_t c = 0; c < n_columns; ++c) {
      if (c % kCudaSegment == 0) {
        REQUIRE(index.starts[row * n_segments + c / kCudaSegment] == at, "start of row %lld, column %lld",
                (long long)row, (long long)c);
      }
      const int64_t network = row / n_rows, r = row % n_rows;
      const int64_t entry = network * n_rows * n_columns + (is_transposed ? c * n_rows + r : r * n_columns + c);
      if (mask[entry] == 0) continue;
      REQUIRE(index.columns[at] == c, "entry %d is column %d", at, index.columns[at]);
      ++at;
    }
  }
  if (n_columns > 0) REQUIRE(index.starts.back() == at, "%d entries instead of %d", index.starts.back(), at);
}

void check_masks() {
  const int64_t sizes[][3] = {{1, 1, 1},   {1, 33, 70},  {3, 17, 193}, {2, 64, 400},
                              {1, 700, 5}, {1, 2100, 3}, {2, 5, 1300}, {1, 40, 64}};
  for (const auto& [n, out, in] : sizes) {
    for (double density : {0.0, 0.02, 0.5, 1.0}) {
      const std::vector<uint8_t> mask = random_mask(n * out * in, density, n_cases);
      simt::machine().order = static_cast<simt::Order>(n_cases % 3);
      const auto [index, transposed] = index_of(mask, n, out, in);
      check_index_of(index, mask, n, out, in, false);
      check_index_of(transposed, mask, n, in, out, true);
      ++n_cases;
    }
  }
}

template <typename T>
void check_select(int64_t n, int64_t in_offset, int64_t mask_offset, int64_t out_offset) {
  const std::vector<uint8_t> mask = random_mask(n, 0.4, n_cases);
  Guarded in(n * sizeof(T), in_offset * sizeof(T)), kept(n, mask_offset), out(n * sizeof(T), out_offset * sizeof(T));
  std::mt19937 random(3);
  for (int64_t i = 0; i < n; ++i) {
    reinterpret_cast<T*>(in.data())[i] = static_cast<T>(random());
    kept.data()[i] = mask[i];
  }
  simt::machine().order = static_cast<simt::Order>(n_cases % 3);
  launch_select({n, sizeof(T), in.data(), kept.data(), out.data()}, {0, nullptr});
  for (int64_t i = 0; i < n; ++i) {
    const T expected = mask[i] != 0 ? reinterpret_cast<const T*>(in.data())[i] : T{0};
    REQUIRE(reinterpret_cast<const T*>(out.data())[i] == expected, "element %lld of %lld", (long long)i, (long long)n);
  }
  REQUIRE(in.is_intact() && kept.is_intact() && out.is_intact(), "wrote outside, %lld elements", (long long)n);
  ++n_cases;
}

void check_selections() {
  for (int64_t n : {1, 3, 15, 16, 17, 1000, 5003}) {
    for (int64_t offset : {0, 1, 3}) {
      check_select<uint16_t>(n, offset, offset, offset);
      check_select<uint32_t>(n, offset, offset, offset);
      check_select<uint64_t>(n, offset, offset, offset);
      check_select<uint32_t>(n, offset, 0, 0);
      check_select<uint32_t>(n, 0, offset, 0);
      check_select<uint32_t>(n, 0, 0, offset);
    }
  }
}

void check_host_side() {
  simt::Machine& m = simt::machine();
  const int before = m.n_launches;
  launch_select({0, 4, nullptr, nullptr, nullptr}, {1, nullptr});
  launch_mask_fill({0, 5, nullptr, nullptr, nullptr, nullptr}, {1, nullptr});
  REQUIRE(m.n_launches == before, "launched for an empty tensor");
  uint32_t value = 7;
  const uint8_t kept = 0;
  m.next_launch = cudaErrorInvalidConfiguration;
  std::string message;
  try {
    launch_select({1, 4, &value, &kept, &value}, {1, nullptr});
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  REQUIRE(message == "masked_linear: invalid configuration argument", "'%s'", message.c_str());
  launch_select({1, 4, &value, &kept, &value}, {1, nullptr});  // in place
  REQUIRE(value == 0 && m.device == 0, "device %d", m.device);
  bool is_refused = false;
  try {
    launch_select({1, 16, &value, &kept, &value}, {1, nullptr});
  } catch (const std::invalid_argument&) {
    is_refused = true;
  }
  REQUIRE(is_refused && m.device == 0, "elements of 16 bytes, device %d", m.device);
  ++n_cases;
}

}  // namespace
}  // namespace pns

int main() {
  pns::check_host_side();
  pns::check_masks();
  pns::check_selections();
  std::printf("%d cases agree\n", pns::n_cases);
}
