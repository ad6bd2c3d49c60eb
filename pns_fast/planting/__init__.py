"""Planting known tickets into mother networks, and what a pruner recovers of them."""

from .plant import Planted, plant
from .plant_module import PlantedModule, plant_module
from .recovery import Recovery, recovery
from .recovery_module import Found, ModuleRecovery, recovery_module

__all__ = [
    "Found",
    "ModuleRecovery",
    "Planted",
    "PlantedModule",
    "Recovery",
    "plant",
    "plant_module",
    "recovery",
    "recovery_module",
]
