#include "kernels/best_match/best_match_body.h"

namespace pns {

MatchFunctions match_functions_avx512() { return match_functions<16>(); }

}  // namespace pns
