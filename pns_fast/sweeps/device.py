"""Where a sweep runs: a device by its name, and what is noted about it."""

from __future__ import annotations

import torch

from .. import _native


def check_device(device: str | torch.device) -> torch.device:
    """The device called ``device``.

    Args:
        device: "cpu", "cuda" (the current GPU), "cuda:N", or "auto": a GPU where there is one that this build of
            pns_fast has kernels for, else the CPU.

    Raises:
        ValueError: another name, no such GPU, or a build without CUDA kernels.

    Example:
        >>> check_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and _native.backends()["cuda"] else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {str(device)!r}")
    if found.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"device: {device} needs a GPU and a torch with CUDA, torch {torch.__version__} sees none")
    if not _native.has_cuda_kernels():
        raise ValueError(
            f"device: {device} needs the CUDA kernels, and this build of pns_fast has none; with nvcc on PATH install "
            "it again with `CMAKE_ARGS=-DPNS_CUDA=ON pip install .`"
        )
    if _native.backends()["cuda"] is None:
        raise ValueError(f"device: {device}: the CUDA kernels of pns_fast see no GPU: is the driver too old?")
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device: expected one of {torch.cuda.device_count()} GPUs, cuda:0 on, got {device}")
    return torch.device("cuda", index)


def describe(device: torch.device) -> str:
    """The device's name, as the store notes it."""
    if device.type == "cpu":
        return "cpu"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor}, CUDA {torch.version.cuda})"
