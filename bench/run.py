"""Every kernel against its peers, beside the machine's measured ceilings: ``python bench/run.py --help``."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import peers_jax
import torch
from cases import best_match, existence_search, masked_conv2d, masked_linear, mlp_trainer, topk_mask
from ceilings import Ceilings, measure_ceilings
from harness import Case, Row, measure
from report import as_dict, print_ceilings, print_head, print_kernel, print_row, print_summary
from rich.console import Console

import pns_fast as pns

KERNELS = {
    "topk_mask": topk_mask,
    "best_match": best_match,
    "existence_search": existence_search,
    "masked_linear": masked_linear,
    "masked_conv2d": masked_conv2d,
    "mlp_trainer": mlp_trainer,
}
FIGURES = (".png", ".pdf", ".svg")
SECONDS_PER_CASE, SECONDS_PER_CASE_QUICK = {"cpu": 3.0, "cuda": 1.5}, 0.3  # a GPU disturbs itself less


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__.split(":")[0] + ".")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--kernel", choices=tuple(KERNELS), action="append", help="this kernel only; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, ceilings and every number there")
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw ratios to the strongest peers (PNG, PDF, SVG)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes, less time: for a look, not for numbers")
    parser.add_argument("--seconds", type=float, help="time for a case, shared out among its contenders")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for us and for the peers")
    parser.add_argument("--list", action="store_true", help="name kernels and cases, run nothing")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    for name in ("json", "figure"):
        path = getattr(options, name)
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"--{name}: no folder {path.absolute().parent}")
    if options.figure is not None and options.figure.suffix not in FIGURES:
        parser.error(f"--figure: expected a name ending in {', '.join(FIGURES)}, got {options.figure.name}")
    return options


def command_of(arguments: list[str]) -> str:
    """The command as it may be published: which files were written is that machine's own business."""
    words = [str(word) for word in arguments]
    for i, word in enumerate(words):
        if word in ("--json", "--figure") and i + 1 < len(words):
            words[i + 1] = "FILE"
        elif word.startswith(("--json=", "--figure=")):
            words[i] = word.split("=")[0] + "=FILE"
    return " ".join(["python", "bench/run.py", *words])


def cuda_problem() -> str:
    """Why the CUDA kernels cannot run here, or ""."""
    if not torch.cuda.is_available():
        return "no CUDA device, or a torch built without CUDA"
    return "" if pns.backends()["cuda"] else "this build of pns_fast has no CUDA kernels: see README.md"


def describe_machine(device: str) -> dict:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "simd": pns.backends()["cpu"],
        **_describe_gpu(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "mkl": torch.backends.mkl.is_available(),
        "numpy": numpy.__version__,
        "jax": None if peers_jax.missing() else peers_jax.jax.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _describe_gpu(device: str) -> dict:
    if device != "cuda":
        return {"gpu": None}
    properties = torch.cuda.get_device_properties()
    return {
        "gpu": properties.name,
        "gpu_architecture": f"sm_{properties.major}{properties.minor}",
        "gpu_sms": properties.multi_processor_count,
        "gpu_memory_gib": properties.total_memory >> 30,
        "driver": _asked_of_driver("driver_version"),
        "gpu_power_limit": _asked_of_driver("power.limit"),
        "gpu_clock_max": _asked_of_driver("clocks.max.sm"),
        "cuda": torch.version.cuda,
        "kernels": pns.backends()["cuda"],
    }


def _asked_of_driver(field: str) -> str:
    """What nvidia-smi says of the first GPU, "unknown" where it is not there."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return (asked.stdout.splitlines() or ["unknown"])[0].strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def list_cases(options: argparse.Namespace) -> dict[str, list[Case]]:
    names = options.kernel or tuple(KERNELS)
    return {name: KERNELS[name].cases(options.quick, options.device) for name in dict.fromkeys(names)}


def run(
    cases: dict[str, list[Case]],
    options: argparse.Namespace,
    ceilings: Ceilings,
    console: Console,
    save: Callable[[list[Row], Ceilings], None],
) -> tuple[list[Row], Ceilings]:
    """Ceilings are measured again before every kernel: the machine may have been busier at the start. ``save`` is
    called after every kernel: a run that is stopped keeps what it has."""
    default = SECONDS_PER_CASE_QUICK if options.quick else SECONDS_PER_CASE[options.device]
    seconds = default if options.seconds is None else options.seconds
    rows = []
    for i, of_kernel in enumerate(cases.values()):
        if i > 0:
            ceilings = ceilings.raised_to(measure_ceilings(options.device, options.threads, options.quick))
        print_kernel(console, of_kernel[0])
        for case in of_kernel:
            with console.status(f"{case.kernel}, {case.label}"):
                row = measure(case, seconds, options.device)
            print_row(console, row, ceilings)
            rows.append(row)
        save(rows, ceilings)
    return rows, ceilings


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    torch.set_num_threads(options.threads)
    cases = list_cases(options)
    if options.list:
        for name, of_kernel in cases.items():
            console.print(f"[bold]{name}[/bold]")
            for case in of_kernel:
                console.print(f"  {case.label}")
        return 0
    if options.device == "cuda" and (problem := cuda_problem()):
        print(f"bench/run.py: --device cuda: {problem}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    peers_jax.use_devices(options.device, options.threads)
    machine = describe_machine(options.device)
    ceilings = measure_ceilings(options.device, options.threads, options.quick)
    print_head(console, machine)
    print_ceilings(console, ceilings)
    command = command_of(sys.argv[1:] if arguments is None else arguments)

    def save(rows: list[Row], ceilings: Ceilings) -> None:
        if options.json:
            found = as_dict(rows, machine, ceilings, command)
            options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")

    rows, ceilings = run(cases, options, ceilings, console, save)
    print_summary(console, rows)
    print_ceilings(console, ceilings)
    console.print(f"the run took {time.perf_counter() - start:.0f} s")
    if options.figure:
        from figure import draw

        place = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
        title = f"pns_fast on {place}, {machine['date'][:10]}"
        draw(rows, options.figure, title)
    return 0 if all(row.agrees for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
