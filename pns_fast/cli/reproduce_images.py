"""``pns-fast reproduce fig5``: the paper's experiment on images, on real data that is there or in a folder."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ..sweeps.image_cells import (
    EMBEDDED,
    FROM_FOLDER,
    QUICK,
    SEEDS,
    THREADS,
    ImageCell,
    ImageStore,
    Settings,
    image_cells,
)
from .options import UsageError, check_seeds, set_threads

if TYPE_CHECKING:
    import torch

    from ..sweeps import Report
    from ..tasks import ImageData

NAME = "fig5"
_SEEDS, _QUICK_SEEDS = 3, 1
_QUICK_DENSITIES = {"weak_densities": (0.01, 0.5, 1.0), "popup_densities": (0.1, 0.5)}
_QUICK_IMAGES = 200
_DATA, _MODEL = "digits", "vgg-small"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of this figure only."""
    group = parser.add_argument_group(
        f"{NAME}, the experiment on images",
        f"It runs alone. --store is a folder with a file a network; {NAME}-networks in --out if not given.",
    )
    group.add_argument(
        "--data",
        metavar="NAME",
        help=f"digits, mnist5k, or mnist:PATH, fashion-mnist:PATH, cifar10:PATH, cifar100:PATH; {_DATA} if not given",
    )
    models = "vgg-small, vgg11, vgg16, resnet18 or resnet20"
    group.add_argument("--model", metavar="NAME", help=f"{models}; {_MODEL} if not given")


def is_asked(args: argparse.Namespace) -> bool:
    """Whether the figures asked for are this one; an error where they are this one and others."""
    if NAME in args.figures and set(args.figures) != {NAME}:
        raise UsageError(f"{NAME}: give it alone, it trains one image network at a time in a store of its own")
    asked = NAME in args.figures
    for option in ("data", "model"):
        if getattr(args, option) is not None and not asked:
            raise UsageError(f"argument --{option}: of {NAME} only")
    for option in ("chunk", "workers", "scheduler", "shard"):
        if asked and getattr(args, option) is not None:
            raise UsageError(f"argument --{option}: not of {NAME}, which trains one network at a time in this process")
    return asked


def run(args: argparse.Namespace) -> int:
    """Run, resume and draw.

    The defaults, of digits: 3 seeds; 10 rounds of 1 epoch, then 15 epochs (Adam, lr 0.001); 20 epochs of edge-popup
    (SGD, lr 0.1, cosine); batches of 32. Of mnist5k: 1 seed; 5 rounds of 1, then 5; 6; 32. Of a data set from a
    folder: 3 seeds; 10 rounds of 5, then 30; 30; 128.
    """
    if args.seeds is not None:
        check_seeds(args.seeds)
    name, model = args.data or _DATA, args.model or _MODEL
    set_threads(THREADS.get(name) if args.threads is None else args.threads)
    from ..networks import least_side
    from ..sweeps.device import check_device
    from ..tasks import images

    begin, device = time.perf_counter(), check_device(args.device)
    least_side(model)  # an unknown model is told before the data is read
    data = images(name)
    if args.quick:
        data = data.part(_QUICK_IMAGES, _QUICK_IMAGES)
    amounts = QUICK if args.quick else EMBEDDED.get(data.name, FROM_FOLDER)
    settings = Settings(data.name, data.digest(), model, **amounts)
    n_seeds = args.seeds or (_QUICK_SEEDS if args.quick else SEEDS.get(data.name, _SEEDS))
    cells = image_cells(settings, n_seeds, **(_QUICK_DENSITIES if args.quick else {}))
    out = Path(args.out or ("paper-quick" if args.quick else "paper"))
    store = ImageStore(args.store or out / f"{NAME}-networks")
    if args.dry_run:
        found = Counter(store.status(c) for c in cells)
        print(f"{len(cells)} cells: {found['ok']} done, {found['failed']} failed, {found[None]} to run")
        return 0
    return _run(cells, data, store, device, out, args, time.perf_counter() - begin)


def _run(
    cells: list[ImageCell],
    data: ImageData,
    store: ImageStore,
    device: torch.device,
    out: Path,
    args: argparse.Namespace,
    reading: float,
) -> int:
    from ..sweeps.image_experiment import network, run_images
    from ..sweeps.image_figures import save_results
    from ..sweeps.progress import shown

    network(cells[0].settings, data, 0, device)  # images too small for the model are told at once
    with shown(NAME, args.quiet) as progress:
        report = run_images(cells, data, store, device, retry_failed=args.retry_failed, progress=progress)
    if report.interrupted:
        done = report.n_cells - report.n_left
        print(
            f"stopped: {done} of {report.n_cells} cells are in {store.folder}; the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    records = [record for c in cells if (record := store.read(c)) is not None]
    begin = time.perf_counter()
    settings = cells[0].settings
    files = save_results(records, f"{NAME}-{settings.data}-{settings.model}", ImageStore(out).write_file)
    if not args.quiet:
        _print(records, report, {"data": reading, "figures": time.perf_counter() - begin}, out, files, store)
    return _exit_code(records, store)


def _print(
    records: list[dict], report: Report, besides: dict[str, float], out: Path, files: list[str], store: ImageStore
) -> None:
    from ..sweeps.image_figures import results_table
    from ..sweeps.table import print_closing, print_table

    print_table(results_table(records))
    shown = {"figure": ".png", "csv": ".csv"}
    places = {what: ", ".join(str(out / f) for f in files if f.endswith(suffix)) for what, suffix in shown.items()}
    print_closing(report, [], besides, {"stored in": str(store.folder), **places})


def _exit_code(records: list[dict], store: ImageStore) -> int:
    """1 and what went wrong, where a network failed or a planted ticket is not exact."""
    failed = [r["error"].strip().splitlines()[-1] for r in records if r["status"] == "failed"]
    for error, n in Counter(failed).most_common(3):
        print(f"{n} failed: {error}", file=sys.stderr)
    if failed:
        print(f"tracebacks are in {store.folder}; --retry-failed runs these networks again", file=sys.stderr)
    inexact = [r for r in records if r["status"] == "ok" and r["kind"] == "planted" and not r["is_exact"]]
    for record in inexact:
        print(f"the ticket planted with seed {record['seed']} is not exact: {record['exactness']:.1e}", file=sys.stderr)
    return 1 if failed or inexact else 0
