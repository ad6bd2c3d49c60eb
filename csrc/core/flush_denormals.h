// Denormals cost a hundred cycles each on x86 and appear as Adam's moments fade: threads of the trainer flush them to
// zero while this lives. (torch's default keeps them; below 1.2e-38 the results differ.) KeepDenormals is the opposite,
// for comparisons that must agree with integer keys even after torch.set_flush_denormal(True). The threads of a team do
// as its caller does (thread_team.h).
#pragma once

#ifdef PNS_X86
#include <xmmintrin.h>
#endif

namespace pns {

class DenormalMode {
 protected:
#ifdef PNS_X86
  static constexpr unsigned kFlush = 0x8040;  // FTZ | DAZ
  DenormalMode(unsigned set, unsigned clear) : saved_(_mm_getcsr()) { _mm_setcsr((saved_ | set) & ~clear); }
  ~DenormalMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  static constexpr unsigned kFlush = 0;
  DenormalMode(unsigned, unsigned) {}
#endif
  DenormalMode(const DenormalMode&) = delete;
  DenormalMode& operator=(const DenormalMode&) = delete;
};

struct FlushDenormals : DenormalMode {
  FlushDenormals() : DenormalMode(kFlush, 0) {}
};

struct KeepDenormals : DenormalMode {
  KeepDenormals() : DenormalMode(0, kFlush) {}
};

// What another thread, that said mode(), does.
struct DenormalsAs : DenormalMode {
  explicit DenormalsAs(unsigned mode) : DenormalMode(mode, kFlush & ~mode) {}
  static unsigned mode() {
#ifdef PNS_X86
    return _mm_getcsr() & kFlush;
#else
    return 0;
#endif
  }
};

}  // namespace pns
