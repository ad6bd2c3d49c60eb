#include "kernels/masked_linear/mask_bits_body.h"
#include "kernels/masked_linear/masked_linear_body.h"

namespace pns {

template <> MaskedLinearFunctions<float> masked_linear_avx2<float>() { return masked_linear_functions<float, 8>(); }
template <> MaskedLinearFunctions<double> masked_linear_avx2<double>() { return masked_linear_functions<double, 4>(); }
MaskBitFunctions mask_bits_avx2() { return mask_bit_functions(); }

}  // namespace pns
