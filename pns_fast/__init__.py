"""pns_fast: Plant 'n' Seek, fast. Plant known winning tickets, prune and train whole populations natively.

Everything here is imported on first use, so that ``pns-fast --help`` does not wait for torch.
"""

from __future__ import annotations

import importlib
import os
import sys

__version__ = "0.1.0"

_MODULES = (
    "existence",
    "networks",
    "nn",
    "ops",
    "planting",
    "pruners",
    "reference",
    "sweeps",
    "tasks",
    "theory",
    "training",
)
_NAMES = {
    "Adam": "training",
    "Masks": "networks",
    "Planted": "planting",
    "PlantedModule": "planting",
    "Population": "networks",
    "SGD": "training",
    "Ticket": "tasks",
    "backends": "_native",
    "edge_popup": "training",
    "edge_popup_module": "training",
    "init_population": "networks",
    "multishot": "training",
    "multishot_module": "training",
    "plant": "planting",
    "plant_module": "planting",
    "prune": "pruners",
    "prune_module": "nn",
    "recovery": "planting",
    "recovery_module": "planting",
    "train": "training",
    "train_module": "training",
}

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


# torch.ops.pns_fast.* exists after `import pns_fast`. Only the command line waits until it needs torch.
if os.path.basename(getattr(sys, "argv", [""])[0]) not in ("pns-fast", "-m"):
    from . import ops  # noqa: F401
