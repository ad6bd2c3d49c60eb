#include "kernels/existence_search/existence_search_body.h"

namespace pns {

DrawTile draw_tile_avx512() { return draw_tile<16>; }

}  // namespace pns
