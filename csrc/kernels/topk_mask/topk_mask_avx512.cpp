#include "kernels/topk_mask/topk_mask_body.h"

namespace pns {

template <> TopkLoops<float> topk_loops_avx512<float>() { return loops_of_this_level<float>(); }
template <> TopkLoops<double> topk_loops_avx512<double>() { return loops_of_this_level<double>(); }
template <> TopkLoops<Float16> topk_loops_avx512<Float16>() { return loops_of_this_level<Float16>(); }
template <> TopkLoops<BFloat16> topk_loops_avx512<BFloat16>() { return loops_of_this_level<BFloat16>(); }

}  // namespace pns
