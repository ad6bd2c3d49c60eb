#include "kernels/masked_linear/masked_linear_body.h"

namespace pns {

template <> MaskedTileFunction<float> masked_tile_avx512<float>() { return masked_tile<float, 16>; }
template <> MaskedTileFunction<double> masked_tile_avx512<double>() { return masked_tile<double, 8>; }

}  // namespace pns
