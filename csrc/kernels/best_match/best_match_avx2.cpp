#include "kernels/best_match/best_match_body.h"

namespace pns {

MatchFilter match_filter_avx2() { return match_filter<8>; }

}  // namespace pns
