"""Populations of networks, their masks, and random mother networks."""

from .init import init_population
from .masks import Masks, cat_masks
from .population import Population, cat_populations

__all__ = ["Masks", "Population", "cat_masks", "cat_populations", "init_population"]
