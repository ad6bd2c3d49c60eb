"""Masked layers for torch models, mask files, an optimiser hook, and the pruners for any module."""

from . import prune
from .fused_sequential import FusedSequential
from .keep_pruned import KeepPruned, keep_pruned
from .mask_file import load_masks, save_masks
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear
from .model import finalize, get_masks, mask_model, masked_parameters, set_masks, supermask_model
from .prune_module import prune_module, score_module
from .supermask_conv2d import SupermaskConv2d
from .supermask_linear import GetSubnet, SupermaskLinear

__all__ = [
    "FusedSequential",
    "GetSubnet",
    "KeepPruned",
    "MaskedConv2d",
    "MaskedLinear",
    "SupermaskConv2d",
    "SupermaskLinear",
    "finalize",
    "get_masks",
    "keep_pruned",
    "load_masks",
    "mask_model",
    "masked_parameters",
    "prune",
    "prune_module",
    "save_masks",
    "score_module",
    "set_masks",
    "supermask_model",
]
