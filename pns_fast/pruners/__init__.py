"""Pruners: one small file each, a registry, and prune() for whole populations."""

# importing a pruner registers it; names() keeps this order
from . import random, magnitude, snip, grasp, synflow, force, phew  # isort: skip  # noqa: F401
from .allocate import SCOPES, allocate
from .batch import pruning_batch
from .prune import prune, round_density, score, threshold, thresholds
from .registry import PAPER, names, register

__all__ = [
    "PAPER",
    "SCOPES",
    "allocate",
    "names",
    "prune",
    "pruning_batch",
    "register",
    "round_density",
    "score",
    "threshold",
    "thresholds",
]
