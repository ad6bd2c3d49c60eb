#include "kernels/masked_linear/mask_bits_body.h"
#include "kernels/masked_linear/masked_linear_body.h"

namespace pns {

template <> MaskedLinearFunctions<float> masked_linear_avx512<float>() { return masked_linear_functions<float, 16>(); }
template <> MaskedLinearFunctions<double> masked_linear_avx512<double>() { return masked_linear_functions<double, 8>(); }
MaskBitFunctions mask_bits_avx512() { return mask_bit_functions(); }

}  // namespace pns
