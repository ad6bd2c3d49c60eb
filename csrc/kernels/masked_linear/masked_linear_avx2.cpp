#include "kernels/masked_linear/masked_linear_body.h"

namespace pns {

template <> MaskedTileFunctions<float> masked_tile_avx2<float>() { return masked_tile_functions<float, 8>(); }
template <> MaskedTileFunctions<double> masked_tile_avx2<double>() { return masked_tile_functions<double, 4>(); }

}  // namespace pns
