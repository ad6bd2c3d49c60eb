// Large outputs are fresh memory: torch's allocator maps them anew in every call, and the kernel then zeroes them page
// by page as they are first written: 64 MB take two cores 15 ms in 4 KB pages and 2.4 ms in 2 MB pages. So the whole
// 2 MB pages inside an output are asked for as such. Only advice: the system may say no, and nothing else changes.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "core/parallel.h"

namespace pns {

struct HugePages {
  static constexpr uintptr_t kSize = uintptr_t{1} << 21;
  uintptr_t first, last;  // of the whole ones

  HugePages(void* begin, size_t bytes)
      : first((reinterpret_cast<uintptr_t>(begin) + kSize - 1) / kSize * kSize),
        last((reinterpret_cast<uintptr_t>(begin) + bytes) / kSize * kSize) {}
  int64_t count() const { return last > first ? static_cast<int64_t>((last - first) / kSize) : 0; }
};

inline void advise_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const HugePages pages(begin, bytes);
  if (pages.count() > 0) madvise(reinterpret_cast<void*>(pages.first), pages.last - pages.first, MADV_HUGEPAGE);
#endif
}

// The same, and each page is taken by one thread, before threads whose shares cross pages do: two that meet in a fresh
// page both zero one. What the memory held is lost.
inline void claim_huge_pages(void* begin, size_t bytes, int n_threads) {
  advise_huge_pages(begin, bytes);
  const HugePages pages(begin, bytes);
  parallel_items(pages.count(), n_threads, [&](int64_t page, int) {
    *reinterpret_cast<volatile char*>(pages.first + page * HugePages::kSize) = 0;
  });
}

}  // namespace pns
