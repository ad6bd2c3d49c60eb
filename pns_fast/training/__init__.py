"""Training of whole populations: fixed masks, edge-popup scores, multi-shot pruning."""

from .edge_popup import EdgePopupResult, edge_popup
from .multishot import MultishotResult, multishot
from .optimizers import SGD, Adam
from .train import TrainResult, train

__all__ = [
    "SGD",
    "Adam",
    "EdgePopupResult",
    "MultishotResult",
    "TrainResult",
    "edge_popup",
    "multishot",
    "train",
]
