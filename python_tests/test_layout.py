"""The layout that architecture promises: one name a kernel in five places, and imports that point one way."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

import pns_fast as pns

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pns_fast"
KERNELS = sorted(p.name for p in (ROOT / "csrc" / "kernels").iterdir() if p.is_dir())
SOURCES = sorted(PACKAGE.rglob("*.py"))
CPP = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
MAX_LINES = 500

# cli -> sweeps -> training, pruners, planting -> networks, tasks -> ops -> reference, _native, rng
RANKS = {
    "_cpu": 0, "_cuda": 0, "_native": 1, "rng": 1, "reference": 1, "ops": 2, "networks": 3, "tasks": 3, "theory": 4,
    "existence": 4, "planting": 4, "pruners": 4, "training": 5, "nn": 5, "sweeps": 6, "cli": 7, "__main__": 8,
}  # fmt: skip


def relative(path):
    return str(path.relative_to(ROOT))


def test_there_are_kernels():
    assert set(KERNELS) >= {"topk_mask", "best_match", "existence_search", "masked_linear", "mlp_trainer"}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "path",
    [
        "csrc/kernels/{k}/{k}.h",
        "csrc/kernels/{k}/{k}.cpp",
        "csrc/kernels/{k}/{k}_body.h",
        "csrc/kernels/{k}/{k}_avx2.cpp",
        "csrc/kernels/{k}/{k}_avx512.cpp",
        "csrc/bindings/bind_{k}.cpp",
        "pns_fast/ops/{k}.py",
        "pns_fast/reference/{k}.py",
        "python_tests/ops/test_{k}.py",
        "bench/cases/{k}.py",
    ],
)
def test_a_kernel_has_one_name_everywhere(kernel, path):
    assert (ROOT / path.format(k=kernel)).is_file()


def test_no_op_without_a_kernel():
    for folder in (PACKAGE / "ops", ROOT / "bench" / "cases"):
        names = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
        assert names == set(KERNELS), relative(folder)


@pytest.mark.parametrize("name", pns.ops.__all__)
def test_a_twin_has_the_ops_signature(name):
    op, twin = getattr(pns.ops, name), getattr(pns.reference, name)
    if not inspect.isfunction(op):
        assert op is twin
        return
    # `check` asks CUDA to look for NaN; a twin always sees what it ranks
    wanted = {p: v for p, v in inspect.signature(op).parameters.items() if p != "check"}
    given = inspect.signature(twin).parameters
    assert list(given) == list(wanted)
    for parameter, value in wanted.items():
        assert given[parameter].kind == value.kind
        assert given[parameter].default == value.default


def imported(path):
    """Absolute dotted names of what a module of the package imports, TYPE_CHECKING included."""
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join((*package[: len(package) - node.level], *filter(None, [module])))
            # `from .. import ops` names a module, `from ..networks import Masks` a class
            yield from (f"{module}.{alias.name}" if module == "pns_fast" else module for alias in node.names)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent != PACKAGE or p.stem != "__init__"], ids=relative)
def test_imports_never_point_up(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "pns_fast" and len(parts) > 1 and parts[1] in RANKS:
            other = parts[1]
            assert other == own or RANKS[other] <= RANKS[own], f"{relative(path)} imports {name}"


def test_training_pruners_and_planting_do_not_go_round():
    uses = {
        own: {n.split(".")[1] for p in (PACKAGE / own).glob("*.py") for n in imported(p) if n.startswith("pns_fast.")}
        for own in ("planting", "pruners", "networks", "tasks")
    }
    assert not uses["planting"] & {"pruners", "training"}
    assert not uses["pruners"] & {"training"}
    assert not (uses["networks"] | uses["tasks"]) & {"planting", "pruners", "training"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "reference").glob("*.py")), ids=relative)
def test_reference_imports_torch_numpy_and_the_standard_library_only(path):
    allowed = {"torch", "numpy", *sys.stdlib_module_names}
    for name in imported(path):
        assert name.split(".")[0] in allowed or name.startswith("pns_fast.reference"), name


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if "reference" not in p.parts and "ops" not in p.parts], ids=relative
)
def test_nothing_above_the_ops_calls_a_twin(path):
    if path != PACKAGE / "__init__.py":
        assert not any(name.startswith("pns_fast.reference") for name in imported(path))


def test_files_are_short():
    everywhere = [
        *SOURCES,
        *CPP,
        *ROOT.glob("cmake/*"),
        *ROOT.glob("bench/**/*.py"),
        *ROOT.glob("python_tests/**/*.py"),
    ]
    long = {relative(p): n for p in everywhere if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long


@pytest.mark.parametrize("path", CPP, ids=relative)
def test_kernels_know_neither_torch_nor_python(path):
    text = path.read_text()
    includes = re.findall(r'#\s*include\s*[<"]([^>"]+)', text)
    assert not [i for i in includes if i.startswith(("torch/", "ATen/", "c10/"))]
    if "bindings" not in path.parts:
        assert not [i for i in includes if i.startswith("pybind11") or i == "Python.h"]


def test_every_source_is_named_in_cmake():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    for path in CPP:
        if path.suffix == ".cpp" and not path.stem.endswith(("_avx2", "_avx512", "_host_check")):
            assert relative(path) in cmake
    for kernel in KERNELS:
        assert re.search(rf"pns_add_simd_sources\([^)]*\b{kernel}\b", cmake)


def test_no_density_is_called_sparsity():
    # the paper's word for the kept fraction is other libraries' word for the removed one
    for path in SOURCES:
        names = {n.arg for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.arg)}
        assert "sparsity" not in names, relative(path)
