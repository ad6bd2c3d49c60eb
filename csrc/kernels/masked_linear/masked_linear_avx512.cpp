#include "kernels/masked_linear/masked_linear_body.h"

namespace pns {

template <> MaskedTileFunctions<float> masked_tile_avx512<float>() { return masked_tile_functions<float, 16>(); }
template <> MaskedTileFunctions<double> masked_tile_avx512<double>() { return masked_tile_functions<double, 8>(); }

}  // namespace pns
