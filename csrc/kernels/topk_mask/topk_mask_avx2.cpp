#include "kernels/topk_mask/topk_mask_body.h"

namespace pns {

template <> TopkLoops<float> topk_loops_avx2<float>() { return loops_of_this_level<float>(); }
template <> TopkLoops<double> topk_loops_avx2<double>() { return loops_of_this_level<double>(); }
template <> TopkLoops<Float16> topk_loops_avx2<Float16>() { return loops_of_this_level<Float16>(); }
template <> TopkLoops<BFloat16> topk_loops_avx2<BFloat16>() { return loops_of_this_level<BFloat16>(); }

}  // namespace pns
