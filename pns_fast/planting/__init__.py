"""Planting known tickets into mother networks, and what a pruner recovers of them."""

from .plant import Planted, plant
from .recovery import Recovery, recovery

__all__ = ["Planted", "Recovery", "plant", "recovery"]
