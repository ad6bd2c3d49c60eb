#include "kernels/existence_search/existence_search_body.h"

namespace pns {

DrawTile draw_tile_avx2() { return draw_tile<8>; }

}  // namespace pns
