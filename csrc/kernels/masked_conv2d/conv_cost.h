// Whether kept weights one by one take less time than a dense convolution.
#pragma once

#include "kernels/masked_conv2d/masked_conv2d.h"
#include "kernels/masked_linear/mask_pattern.h"

namespace pns {
namespace {

inline bool is_sparse_faster(const ConvShape&, int64_t) { return true; }

}  // namespace
}  // namespace pns
