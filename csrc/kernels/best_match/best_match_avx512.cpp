#include "kernels/best_match/best_match_body.h"

namespace pns {

MatchFilter match_filter_avx512() { return match_filter<16>; }

}  // namespace pns
