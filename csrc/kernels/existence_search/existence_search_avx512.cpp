#include "kernels/existence_search/existence_search_body.h"

namespace pns {

DrawFunctions draw_functions_avx512() { return {draw_integers<16>, to_normal<16>}; }

}  // namespace pns
