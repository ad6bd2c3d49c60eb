"""The paper's Figure 5: weak tickets of an image network; one of them planted; edge-popup looking for it.

What a run costs on the embedded images is said in docs/images.md; its settings are in ``image_cells``.
"""

from __future__ import annotations

import copy
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import safetensors.torch
import torch
from torch import Tensor, nn

from ..networks import image_network, least_side
from ..nn import finalize
from ..planting import PlantedModule, plant_module, recovery_module
from ..tasks import ImageData
from ..training import SGD, Adam, edge_popup_module, multishot_module
from ..training.module_loop import evaluate, module_data
from .image_cells import POPUPS, ImageCell, ImageStore, Settings, ticket_cell
from .runner import Report

TOLERANCE = 1e-3  # of the planted network's outputs against the ticket's, relative, on real images
_N_CHECKED = 100
_MOTHER_SEED = 10_000  # the mother network of seed s is that of seed 10,000 + s: not the one the ticket came from


@dataclass(frozen=True)
class _Planting:
    """A ticket, and the network it is in."""

    ticket: nn.Module
    planted: PlantedModule
    mother: nn.Module  # with the ticket; its masked outputs are the ticket's up to one factor for all classes


def network(settings: Settings, data: ImageData, seed: int, device: torch.device) -> nn.Module:
    """A random network of the experiment's architecture."""
    if data.side < least_side(settings.model):
        raise ValueError(
            f"model: {settings.model} needs images of at least {least_side(settings.model)} pixels a side, {data.name} "
            f"has {data.side}; vgg-small, resnet18 and resnet20 take them"
        )
    return image_network(settings.model, data.n_classes, data.in_channels, seed=seed).to(device)


def run_images(
    cells: Sequence[ImageCell],
    data: ImageData,
    store: ImageStore,
    device: torch.device,
    *,
    retry_failed: bool = False,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Run the cells that the store does not hold yet; what raises is stored as failed with its traceback.

    Args:
        cells: see :func:`image_cells`.
        data: the images that their settings name.
        store: where results go.
        device: to train on.
        retry_failed: also run cells that failed before.
        progress: called at the start and after each cell.

    Returns:
        The final Report; Ctrl-C ends the run with ``interrupted`` set.
    """
    found = [store.status(c) for c in cells]
    redo = (None, "failed") if retry_failed else (None,)
    pending = [c for c, status in zip(cells, found, strict=True) if status in redo]
    n_failed_before = 0 if retry_failed else found.count("failed")
    report = Report(len(cells), len(cells) - len(pending), n_failed_before)
    begin, runner = time.perf_counter(), _Runner(data.to(device), store, device)
    try:
        if progress:
            progress(report)
        for cell in pending:
            started = time.perf_counter()
            try:
                record = {"status": "ok", **runner.run(cell)}
            except torch.AcceleratorError:
                raise  # the device is lost: every other cell would fail as well, through no fault of its own
            except Exception:
                record = {"status": "failed", "error": traceback.format_exc()}
            seconds = time.perf_counter() - started
            store.write(cell, {**record, "seconds": seconds})
            report.seconds[cell.kind] = report.seconds.get(cell.kind, 0.0) + seconds
            report.n_ok += record["status"] == "ok"
            report.n_failed += record["status"] == "failed"
            if progress:
                progress(report)
    except KeyboardInterrupt:
        report.interrupted = True
    report.seconds["total"] = time.perf_counter() - begin
    return report


class _Runner:
    """Runs cells one by one; the planted network of a seed is made once for all that look for its ticket."""

    def __init__(self, data: ImageData, store: ImageStore, device: torch.device) -> None:
        self._data, self._store, self._device = data, store, device
        self._planting = lru_cache(maxsize=1)(self._plant)

    def run(self, cell: ImageCell) -> dict:
        """The numbers of a cell."""
        return {"weak": self._weak, "planted": self._planted, "popup": self._popup}[cell.kind](cell)

    def _weak(self, cell: ImageCell) -> dict:
        s = cell.settings
        found = multishot_module(
            network(s, self._data, cell.seed, self._device),
            # at density 1 nothing is pruned, by whatever pruner
            "magnitude" if cell.density == 1 else cell.pruner,
            cell.density,
            self._data,
            s.rounds,
            s.round_epochs,
            s.epochs,
            batch_size=s.batch_size,
            optimizer=Adam(lr=s.lr),
            seed=cell.seed,
        )
        if cell.is_ticket:
            state = {name: t.contiguous().cpu() for name, t in found.result.module.state_dict().items()}
            self._store.write_file(self._store.ticket_path(cell).name, safetensors.torch.save(state))
        result = found.result
        return {
            "strong_accuracy": _number(result.metric[0]),
            "weak_accuracy": _number(result.metric[-1]),
            "weak_loss": _number(result.test_loss[-1]),
            "curve": [_number(v) for v in result.metric],
            "diverged": result.diverged,
            **_kept(found.masks),
        }

    def _plant(self, settings: Settings, seed: int) -> _Planting:
        cell = ticket_cell(settings, seed)
        path = self._store.ticket_path(cell)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; its network failed, or the file was removed")
        ticket = network(settings, self._data, seed, self._device)
        ticket.load_state_dict(safetensors.torch.load_file(path))
        planted = plant_module(ticket, network(settings, self._data, _MOTHER_SEED + seed, self._device))
        return _Planting(ticket.eval(), planted, _with_one_scale(planted))

    def _planted(self, cell: ImageCell) -> dict:
        begin = time.perf_counter()
        planting = self._planting(cell.settings, cell.seed)
        seconds = time.perf_counter() - begin
        x = self._data.x_test[:_N_CHECKED]
        with torch.no_grad():
            wanted = planting.ticket(x)
        difference = (planting.planted.ticket_forward(x) - wanted).abs().max()
        error = float(difference / wanted.abs().max().clamp(min=1e-12))  # a collapsed ticket may give zeros only
        data = module_data(self._data, planting.ticket, None)
        masks = planting.planted.masks
        in_mother = finalize(planting.mother, masks)
        n_planted, n = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
        return {
            "exactness": error,
            "is_exact": error <= TOLERANCE,
            "ticket_accuracy": evaluate(planting.ticket, data)[1],
            "strong_accuracy": evaluate(in_mother, data)[1],
            "mother_accuracy": evaluate(planting.mother, data)[1],
            "plant_seconds": seconds,
            "fallbacks": planting.planted.fallbacks,
            "tied": planting.planted.tied,
            "planted_density": n_planted / n,
            **_kept(masks),
        }

    def _popup(self, cell: ImageCell) -> dict:
        s, planting = cell.settings, self._planting(cell.settings, cell.seed)
        result = edge_popup_module(
            planting.mother,
            self._data,
            cell.density,
            s.popup_epochs,
            anneal=cell.pruner == POPUPS[1],
            optimizer=SGD(lr=s.popup_lr, momentum=0.9, weight_decay=5e-4, schedule="cosine"),
            seed=cell.seed,
            batch_size=s.batch_size,
        )
        masks = {name: result.masks[name] for name in planting.planted.masks}
        found = recovery_module(masks, planting.planted.masks)
        sizes = {name: planting.mother.get_submodule(name).parameters() for name in found.layers}
        layers = {
            name: {**vars(layer), "planted_share": layer.n_planted / sum(p.numel() for p in sizes[name])}
            for name, layer in found.layers.items()
        }
        return {
            "strong_accuracy": _number(result.metric[-1]),
            "strong_loss": _number(result.test_loss[-1]),
            "curve": [_number(v) for v in result.metric],
            "diverged": result.diverged,
            **_kept(result.masks),
            "precision": found.overall.precision,
            "recall": found.overall.recall,
            "f1": found.overall.f1,
            "layers": layers,
        }


def _with_one_scale(planted: PlantedModule) -> nn.Module:
    """The planted network with each row of its last layer times that output's scale over their geometric mean.

    ``output_scale`` differs between classes, so in the network as planted the ticket's largest output need not be the
    target's: its accuracy would be another. With one factor for all classes it is the target's, without a word to
    edge-popup. Whole rows are scaled, so that the ticket stays hidden, and the mean keeps the network's own scale.
    """
    mother = copy.deepcopy(planted.module)
    last = mother.get_submodule(list(planted.masks)[-1].rpartition(".")[0])
    scale = planted.output_scale / planted.output_scale.log().mean().exp()
    with torch.no_grad():
        last.weight.mul_(scale[:, None].to(last.weight.dtype))
        if last.bias is not None:
            last.bias.mul_(scale.to(last.bias.dtype))
    return mother


def _kept(masks: dict[str, Tensor] | None) -> dict:
    """How many parameters a mask keeps, and whether a layer has no weight left, so that nothing passes."""
    if masks is None:
        return {"kept": None, "collapsed": False}
    weights = [m for name, m in masks.items() if m.dim() > 1]
    return {"kept": sum(int(m.sum()) for m in masks.values()), "collapsed": not all(bool(m.any()) for m in weights)}


def _number(value: Tensor) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
