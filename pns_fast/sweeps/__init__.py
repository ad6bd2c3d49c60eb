"""Sweeps: grids of networks, planted, pruned and trained into a SQLite store that a run can always resume.

Names are imported on first use, so that the command line can parse its arguments without torch.
"""

from __future__ import annotations

import importlib

_NAMES = {
    "Cell": "grid",
    "DaskExecutor": "dask_executor",
    "Executor": "executors",
    "LocalExecutor": "local_executor",
    "Outcome": "store",
    "Panel": "summary",
    "Report": "runner",
    "SerialExecutor": "executors",
    "Store": "store",
    "StoreAccessError": "store",
    "StoreError": "store",
    "WorkerError": "work",
    "expand": "grid",
    "figure": "figures",
    "histories": "store",
    "layers_figure": "truth_figures",
    "load_plugins": "plugins",
    "merge": "merging",
    "panels": "summary",
    "read": "store",
    "recovery_figure": "truth_figures",
    "run": "runner",
    "runs": "store",
    "save_figure": "figures",
    "save_layers_figure": "truth_figures",
    "save_recovery_figure": "truth_figures",
    "save_report": "report",
    "shard": "parts",
    "statuses": "store",
    "tables": "table",
    "write_csv": "table",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
