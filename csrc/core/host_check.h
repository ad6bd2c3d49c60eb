// What the programs that run CUDA sources under the emulator share (<kernel>_host_check.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

// The first condition that is false ends the program with status 1.
#define REQUIRE(condition, ...)                               \
  do {                                                        \
    if (!(condition)) {                                       \
      std::fprintf(stderr, "%s is false: ", #condition);      \
      std::fprintf(stderr, __VA_ARGS__);                      \
      std::fprintf(stderr, "\n");                             \
      std::exit(1);                                           \
    }                                                         \
  } while (0)

namespace pns {
namespace {

constexpr size_t kGuard = 64;  // bytes around a buffer that must stay as they were
constexpr uint8_t kPoison = 0xA5;

int n_cases = 0;

// Memory for a kernel that starts poisoned and shows writes beyond it.
struct Guarded {
  Guarded(size_t n_bytes, size_t offset) : bytes(n_bytes + 2 * kGuard, kPoison), at(kGuard + offset), size(n_bytes) {}
  uint8_t* data() { return bytes.data() + at; }
  bool is_intact() const {
    for (size_t i = 0; i < bytes.size(); ++i) {
      if ((i < at || i >= at + size) && bytes[i] != kPoison) return false;
    }
    return true;
  }
  std::vector<uint8_t> bytes;
  size_t at, size;
};

}  // namespace
}  // namespace pns
