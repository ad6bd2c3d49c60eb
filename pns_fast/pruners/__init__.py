"""Pruners: one small file each, a registry, and prune() for whole populations."""

# importing a pruner registers it; names() keeps this order
from . import random, magnitude, snip, grasp, synflow  # isort: skip  # noqa: F401
from .batch import pruning_batch
from .prune import prune, round_density, score, threshold, thresholds
from .registry import names, register

__all__ = ["names", "prune", "pruning_batch", "register", "round_density", "score", "threshold", "thresholds"]
