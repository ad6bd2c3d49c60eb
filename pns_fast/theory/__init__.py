"""What the paper proves: how far parameters may be off (Lemma 1), and whether a ticket exists by chance (Theorem 2)."""

from .bound import existence_probability, layer_widths, required_width
from .errors import LayerTerms, assumption_holds, layer_errors, layer_terms
from .simulate import Simulation, simulate

__all__ = [
    "LayerTerms",
    "Simulation",
    "assumption_holds",
    "existence_probability",
    "layer_errors",
    "layer_terms",
    "layer_widths",
    "required_width",
    "simulate",
]
