"""``pns-fast info``: versions and what the kernels run on."""

from __future__ import annotations

import argparse
import os

from .. import __version__
from .options import COMMON


def add(commands) -> None:
    commands.add_parser("info", help="versions and what the kernels run on", **COMMON).set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import platform

    import torch

    from .. import _native

    found = _native.backends()
    without_device = "built, no device found" if _native.has_cuda_kernels() else "not built"
    rows = {
        "pns_fast": __version__,
        "kernels, cpu": found["cpu"],
        "kernels, cuda": found["cuda"] or without_device,
        "torch": torch.__version__,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }
    for name, value in rows.items():
        print(f"{name:14}{value}")
    return 0
