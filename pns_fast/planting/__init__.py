"""Planting known tickets into mother networks, and what a pruner recovers of them."""

from .plant import Planted, plant
from .plant_module import PlantedModule, plant_module
from .recovery import Recovery, recovery

__all__ = ["Planted", "PlantedModule", "Recovery", "plant", "plant_module", "recovery"]
