#include "kernels/topk_mask/topk_mask_body.h"

namespace pns {

template <> TopkPasses<float> topk_passes_avx512<float>() {
  return {histogram_pass<float>, collect_pass<float>, write_pass<float>};
}
template <> TopkPasses<double> topk_passes_avx512<double>() {
  return {histogram_pass<double>, collect_pass<double>, write_pass<double>};
}

}  // namespace pns
