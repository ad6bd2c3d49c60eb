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
    without_device = "built, but no device found" if _native.has_cuda_kernels() else "not built"
    rows = {
        "pns_fast": __version__,
        "kernels, cpu": found["cpu"],
        "kernels, cuda": found["cuda"] or without_device,
        "torch": f"{torch.__version__}, {_torch_cuda(torch)}",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }
    for name, value in rows.items():
        print(f"{name:14}{value}")
    if missing := _missing(torch, _native.has_cuda_kernels(), found["cuda"]):
        print(f"{'missing':14}{missing}")
    return 0


def _torch_cuda(torch) -> str:
    if not torch.backends.cuda.is_built():
        return "without CUDA"
    if not torch.cuda.is_available():
        return f"CUDA {torch.version.cuda}, no GPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda}, {', '.join(names)}"


def _missing(torch, is_built: bool, device: str | None) -> str:
    """What `--device cuda` needs and does not find here, or ""."""
    if device:
        return ""
    missing = []
    if not is_built:
        missing.append("pns_fast was built without CUDA: with nvcc on PATH, CMAKE_ARGS=-DPNS_CUDA=ON pip install .")
    if not torch.backends.cuda.is_built():
        missing.append("torch was built without CUDA")
    elif not torch.cuda.is_available():
        missing.append("torch sees no GPU: nvidia-smi shows whether the driver does")
    return "; ".join(missing) or "the CUDA kernels see no GPU: the driver may be too old for them"
