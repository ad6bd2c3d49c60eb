"""The compiled modules: what they link, and that CUDA was built where it can be."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def binary(module: str) -> str | None:
    spec = importlib.util.find_spec(f"pns_fast.{module}")
    return None if spec is None else spec.origin


def run_python(code: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *(["-S"] if sys.flags.no_site else []), "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cuda_module_was_built_where_nvcc_is():
    if os.environ.get("PNS_CUDA", "").upper() == "OFF":
        return
    assert shutil.which("nvcc") is None or binary("_cuda") is not None, (
        "nvcc is on PATH, but pns_fast was installed without its CUDA module; install it again, or set PNS_CUDA=OFF"
    )


@pytest.mark.parametrize("module", ["_cpu", "_cuda"])
def test_binary_links_neither_torch_nor_a_shared_cuda_runtime(module):
    path = binary(module)
    if path is None:
        assert module == "_cuda"  # test_cuda_module_was_built_where_nvcc_is says whether it may be missing
        return
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    assert "libstdc++" in linked or "libc++" in linked  # ldd did read it
    foreign = re.findall(r"\S*lib(?:torch|c10|cudart|cuda\.)\S*", linked)
    assert foreign == []


def test_without_a_device_everything_imports_and_cuda_is_none(tmp_path):
    code = "import pns_fast as pns; import torch; print(pns.backends()['cuda'], pns.ops.topk_mask(torch.ones(3), 1))"
    printed = run_python(code, tmp_path, CUDA_VISIBLE_DEVICES="")
    assert printed == "None tensor([ True, False, False])\n"


def test_without_a_device_the_cuda_kernel_says_so(tmp_path):
    if binary("_cuda") is None:
        return  # then the op itself says that the build has no CUDA
    code = """
from pns_fast import _cuda
for _ in range(2):
    try:
        _cuda.topk_mask(_cuda.ScoreType.f32, 0, 0, 0, 0, 0, 1, 10, 5, False, 0, 0)
    except RuntimeError as error:
        print(error)
"""
    first, second = run_python(code, tmp_path, CUDA_VISIBLE_DEVICES="").splitlines()
    assert re.fullmatch(r"topk_mask: .*(driver|device).*", first)
    assert first == second
