"""The one import of the compiled modules: ``cpu`` always, ``cuda()`` where it was built and a driver is there."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

try:
    from . import _cpu as cpu
except ImportError as error:
    raise ImportError(
        "pns_fast is installed without its compiled module pns_fast._cpu. From a checkout: `make install`, or "
        f"`pip install --no-build-isolation -e .` with scikit-build-core and pybind11 installed. ({error})"
    ) from error


@functools.cache
def _load_cuda() -> ModuleType | ImportError:
    try:
        return importlib.import_module("pns_fast._cuda")
    except ImportError as error:
        return error


def cuda() -> ModuleType:
    """The CUDA module. Raises RuntimeError where pns_fast was built without CUDA, saying how to build with it."""
    module = _load_cuda()
    if isinstance(module, ImportError):
        raise RuntimeError(
            "this build of pns_fast has no CUDA kernels; with nvcc on PATH install it again with "
            f"`CMAKE_ARGS=-DPNS_CUDA=ON pip install .` ({module})"
        )
    return module


def has_cuda_kernels() -> bool:
    """Whether this build has the CUDA module, device or not."""
    return not isinstance(_load_cuda(), ImportError)


def backends() -> dict[str, str | None]:
    """What runs here: the CPU's SIMD level, and the CUDA device or None.

    Returns:
        ``{"cpu": "avx512" | "avx2" | "baseline", "cuda": None | "sm_90, driver 13.0, runtime 13.0"}``

    Example:
        >>> import pns_fast as pns
        >>> pns.backends()["cpu"] in ("avx512", "avx2", "baseline")
        True
    """
    return {"cpu": cpu.simd_level(), "cuda": cuda().describe_device() if has_cuda_kernels() else None}
