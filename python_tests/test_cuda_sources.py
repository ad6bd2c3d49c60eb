"""The CUDA kernels without a device: what ptxas says of them, and their sources run on the CPU by the emulator."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
KERNELS = sorted(CSRC.glob("kernels/*/*.cu"), key=lambda path: path.stem)
HOST_CHECKS = sorted(CSRC.glob("kernels/*/*_host_check.cpp"), key=lambda path: path.stem)


def stem(path: Path) -> str:
    return path.stem


def test_every_kernel_has_a_host_check():
    assert {p.stem.removesuffix("_host_check") for p in HOST_CHECKS} == {p.stem for p in KERNELS}


@pytest.mark.parametrize("source", HOST_CHECKS, ids=stem)
def test_source_is_right_under_the_emulator(source, tmp_path):
    candidates = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next(c for c in candidates if c is not None and shutil.which(c))
    program = tmp_path / "host_check"
    # undefined behaviour ends the program: misaligned 16-byte loads, shifts by 32, signed overflow
    checks = ["-ffp-contract=off", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    build = [compiler, "-std=c++17", "-O1", *checks, "-w", "-I", str(CSRC), str(source), "-o", str(program)]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    checked = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert checked.returncode == 0, checked.stderr
    assert re.fullmatch(r"\d+ cases agree\n", checked.stdout)


def compiled(source: Path, architecture: str, tmp_path: Path) -> str:
    """What nvcc says of a kernel file, in which no warning may be."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on PATH")
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    options = ["-cubin", target, "-DPNS_HAS_SM90A", "-std=c++17", "-O3"]
    options += ["--expt-relaxed-constexpr", "-Xptxas=-v", "--Werror=all-warnings"]
    command = [nvcc, *options, "-I", str(CSRC), str(source), "-o", str(tmp_path / "kernel.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("source", KERNELS, ids=stem)
def test_kernels_spill_no_registers(source, tmp_path):
    report = compiled(source, "90a", tmp_path)
    # a stack frame is local memory too: an array indexed at run time
    found = re.findall(
        r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
    )
    kernels = {name: tuple(map(int, numbers)) for name, *numbers in found if "_kernel" in name}
    assert kernels, report
    assert set(kernels.values()) == {(0, 0, 0)}, report


OTHERS = ("80", "86", "100", "120")  # 86 and 120 have room for 1,536 threads an SM, the others for 2,048


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OTHERS)
@pytest.mark.parametrize("source", KERNELS, ids=stem)
def test_other_architectures_compile_without_a_warning(source, architecture, tmp_path):
    compiled(source, architecture, tmp_path)
