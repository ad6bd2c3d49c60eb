"""The CUDA kernels without a device: what ptxas says of them, and their sources run on the CPU by the emulator."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"
KERNELS = sorted(CSRC.glob("kernels/*/*.cu"), key=lambda path: path.stem)
HOST_CHECKS = sorted(CSRC.glob("kernels/*/*_host_check.cpp"), key=lambda path: path.stem)


def stem(path: Path) -> str:
    return path.stem


def test_every_kernel_has_a_host_check():
    assert {p.stem.removesuffix("_host_check") for p in HOST_CHECKS} == {p.stem for p in KERNELS}


def host_check(source: Path, program: Path) -> tuple[subprocess.CompletedProcess, ...]:
    """Of building it and, where that went well, of running it."""
    candidates = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next(c for c in candidates if c is not None and shutil.which(c))
    # undefined behaviour ends the program: misaligned 16-byte loads, shifts by 32, signed overflow
    checks = ["-ffp-contract=off", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    build = [compiler, "-std=c++17", "-O1", *checks, "-w", "-I", str(CSRC), str(source), "-o", str(program)]
    built = subprocess.run(build, capture_output=True, text=True)
    if built.returncode != 0:
        return (built,)
    return built, subprocess.run([str(program)], capture_output=True, text=True, timeout=600)


def compiled(source: Path, architecture: str, cubin: Path) -> subprocess.CompletedProcess | None:
    """By nvcc, which is to have no warnings; None where there is none."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    options = ["-cubin", target, "-DPNS_HAS_SM90A", "-std=c++17", "-O3"]
    options += ["--expt-relaxed-constexpr", "-Xptxas=-v", "--Werror=all-warnings"]
    command = [nvcc, *options, "-I", str(CSRC), str(source), "-o", str(cubin)]
    return subprocess.run(command, capture_output=True, text=True)


def report_of(done: subprocess.CompletedProcess | None) -> str:
    if done is None:
        pytest.skip("no nvcc on PATH")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def under_way(request, tmp_path_factory):
    """What this file's tests will ask for: each takes one core for up to a minute, and all cores are at it at once."""
    folder = tmp_path_factory.mktemp("under_way")
    asked = [item.name for item in request.session.items]

    def is_asked(source: Path) -> bool:
        return any(name.endswith(f"[{source.stem}]") for name in asked)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = {s: pool.submit(host_check, s, folder / s.stem) for s in HOST_CHECKS if is_asked(s)}
        kernels = {s: pool.submit(compiled, s, "90a", folder / f"{s.stem}.cubin") for s in KERNELS if is_asked(s)}
        yield checks | kernels


@pytest.mark.parametrize("source", HOST_CHECKS, ids=stem)
def test_source_is_right_under_the_emulator(source, under_way):
    built, *checked = under_way[source].result()
    assert built.returncode == 0, built.stderr
    (checked,) = checked
    assert checked.returncode == 0, checked.stderr
    assert re.fullmatch(r"\d+ cases agree\n", checked.stdout)


@pytest.mark.parametrize("source", KERNELS, ids=stem)
def test_kernels_spill_no_registers(source, under_way):
    report = report_of(under_way[source].result())
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
    report_of(compiled(source, architecture, tmp_path / "kernel.cubin"))
