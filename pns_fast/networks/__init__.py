"""Populations of networks, their masks, random mother networks; convolutional networks by name."""

from .image_networks import image_network, image_network_names, least_side
from .init import init_population
from .masks import Masks, cat_masks
from .population import Population, cat_populations

__all__ = [
    "Masks",
    "Population",
    "cat_masks",
    "cat_populations",
    "image_network",
    "image_network_names",
    "init_population",
    "least_side",
]
