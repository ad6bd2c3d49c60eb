// Denormals cost a hundred cycles each on x86 and appear as Adam's moments fade: threads of the trainer flush them to
// zero while this lives. (torch's default keeps them; below 1.2e-38 the results differ.)
#pragma once

#ifdef PNS_X86
#include <xmmintrin.h>
#endif

namespace pns {

class FlushDenormals {
 public:
#ifdef PNS_X86
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // FTZ | DAZ
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace pns
