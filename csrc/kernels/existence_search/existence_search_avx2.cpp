#include "kernels/existence_search/existence_search_body.h"

namespace pns {

DrawFunctions draw_functions_avx2() { return {draw_integers<8>, to_normal<8>}; }

}  // namespace pns
