#include "kernels/masked_conv2d/masked_conv2d_body.h"

namespace pns {

template <> MaskedConv2dFunctions<float> masked_conv2d_avx512<float>() { return masked_conv2d_functions<float, 16>(); }
template <> MaskedConv2dFunctions<double> masked_conv2d_avx512<double>() { return masked_conv2d_functions<double, 8>(); }

}  // namespace pns
