#include "kernels/best_match/best_match_body.h"

namespace pns {

MatchFunctions match_functions_avx2() { return match_functions<8>(); }

}  // namespace pns
