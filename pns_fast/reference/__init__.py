"""Pure-torch twins of the kernels: same names, same signatures, slow and obvious. The tests' truth."""

from .batch_order import batch_order
from .best_match import BestMatch, best_match
from .existence_search import ExistenceMatch, existence_search
from .masked_conv2d import masked_conv2d
from .masked_linear import masked_linear, supermask
from .mlp_trainer import mlp_gradients, mlp_trainer
from .topk_mask import kth_largest, topk_mask

__all__ = [
    "BestMatch",
    "ExistenceMatch",
    "batch_order",
    "best_match",
    "existence_search",
    "kth_largest",
    "masked_conv2d",
    "masked_linear",
    "mlp_gradients",
    "mlp_trainer",
    "supermask",
    "topk_mask",
]
