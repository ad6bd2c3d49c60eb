"""Training at fixed masks, edge-popup scores, multi-shot pruning: of whole populations and of single modules."""

from .edge_popup import EdgePopupResult, edge_popup
from .edge_popup_module import ModulePopupResult, edge_popup_module
from .multishot import MultishotResult, multishot
from .multishot_module import ModuleMultishotResult, multishot_module
from .optimizers import SGD, Adam
from .train import TrainResult, train
from .train_module import ModuleResult, train_module

__all__ = [
    "SGD",
    "Adam",
    "EdgePopupResult",
    "ModuleMultishotResult",
    "ModulePopupResult",
    "ModuleResult",
    "MultishotResult",
    "TrainResult",
    "edge_popup",
    "edge_popup_module",
    "multishot",
    "multishot_module",
    "train",
    "train_module",
]
