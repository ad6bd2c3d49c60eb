#include "kernels/masked_linear/masked_linear_body.h"

namespace pns {

template <> MaskedTileFunction<float> masked_tile_avx2<float>() { return masked_tile<float, 8>; }
template <> MaskedTileFunction<double> masked_tile_avx2<double>() { return masked_tile<double, 4>; }

}  // namespace pns
