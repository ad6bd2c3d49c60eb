"""From cells to numbers: plant, prune, train. Cells of one architecture and task share all that they can.

A network's numbers depend on its own cell only: every random number is keyed by the cell's seed, and no
kernel mixes networks. So sharing and batching change the time, never a result.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .. import planting, pruners, tasks, training
from ..networks import Masks, Population, init_population
from .grid import Cell
from .store import Outcome

# At most this many parameters in one native call (256 MB a copy); on a GPU as many as fit, at this many bytes each.
_MAX_CALL_PARAMETERS, _CALL_BYTES = 2**26, 64
# And this many bytes of mothers and data sets that are alive at once; scoring holds the mothers about ten times.
_MAX_BLOCK_BYTES, _MAX_BLOCK_BYTES_CUDA = 2**25, 2**29

# Cells that agree in these go through the pipeline together; what is left is pruner, density and seed.
_SHARED = (
    *("mode", "task", "depth", "width", "noise", "n_samples", "scheme", "assignment"),
    *("epochs", "batch_size", "lr", "scope", "rounds", "round_epochs"),
    *("rewind", "rewind_epochs", "popup_epochs", "popup_lr"),
)


_CPU = torch.device("cpu")


class Clock:
    """Adds up the seconds of named phases: ``with clock("training"): ...``; a GPU is waited for at their ends."""

    def __init__(self, device: torch.device):
        self.seconds: Counter[str] = Counter()
        self._device = device

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        finally:
            self.seconds[phase] += time.perf_counter() - begin


@dataclass(frozen=True)
class Mothers:
    """The planted mother networks of one task and architecture, one a seed, on the device of the sweep, with their
    data, which wait on the CPU."""

    task: tasks.Task
    rows: dict[int, int]  # seed -> network
    data: list[tasks.Data]
    planted: planting.Planted
    ticket_density: float
    ticket_metric: list[float]
    ticket_loss: list[float]

    @cached_property
    def batch(self) -> tuple[Tensor, Tensor]:
        """The pruning batch of each mother: every pruner looks at the same one."""
        return pruners.pruning_batch(self.data, self.task.loss, seed=list(self.rows))

    def select(self, seeds: Sequence[int]) -> tuple[Population, list[tasks.Data], Masks]:
        """Planted networks, data and planted masks, one a seed; a seed may come more than once."""
        rows = [self.rows[s] for s in seeds]
        masks = self.planted.masks.select(rows)
        return self.planted.population.select(rows), [self.data[r] for r in rows], masks


@dataclass(frozen=True)
class _Trained:
    """A chunk of networks after their final training."""

    cells: list[Cell]
    started: float
    masks: Masks
    planted_masks: Masks
    strong_metric: Tensor
    strong_loss: Tensor
    result: training.TrainResult


def mother_groups(cells: Iterable[Cell], device: torch.device = _CPU) -> Iterator[list[Cell]]:
    """Cells that differ in pruner, density and seed only, in blocks whose mothers and data fit into memory."""
    most = _MAX_BLOCK_BYTES_CUDA if device.type == "cuda" else _MAX_BLOCK_BYTES
    for _, group in _grouped(cells, *_SHARED):
        seeds = list(dict.fromkeys(c.seed for c in group))
        n_block = max(1, most // _seed_bytes(group[0]))
        for at in range(0, len(seeds), n_block):
            block = set(seeds[at : at + n_block])
            yield [c for c in group if c.seed in block]


def _most_parameters(device: torch.device) -> int:
    if device.type == "cpu":
        return _MAX_CALL_PARAMETERS
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for the next tensor
    return (free + kept) // _CALL_BYTES


def _parameter_count(cell: Cell) -> int:
    widths = tasks.get(cell.task).widths(cell.depth, cell.width)
    return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))


def _seed_bytes(cell: Cell) -> int:
    """Of one mother and its data set; labels are int64, targets float32."""
    task = tasks.get(cell.task)
    label = 8 if task.loss == "cross_entropy" else 4 * task.n_outputs
    return 4 * _parameter_count(cell) + cell.n_samples * (4 * task.n_inputs + label)


def run_cells(cells: Sequence[Cell], chunk: int, clock: Clock, device: torch.device) -> Iterator[list[Outcome]]:
    """The outcomes of one mother group, a chunk of networks at a time.

    Args:
        cells: out of :func:`mother_groups`, or any part of such a group.
        chunk: most networks in one native call.
        clock: gets the seconds of data, planting, scoring and training ("training, scoring" in multishot,
            which does both in one call).
        device: for scoring and training.

    Returns:
        An iterator over lists of outcomes, equal networks together. An error in any step is raised and ends it.
    """
    chunk = max(1, min(chunk, _most_parameters(device) // _parameter_count(cells[0])))
    mothers = _grow(cells[0], list(dict.fromkeys(c.seed for c in cells)), clock, device)
    solve = {"singleshot": _singleshot, "multishot": _multishot, "edge-popup": _edge_popup}[cells[0].mode]
    twins = _twins(cells)
    for trained in solve(list(twins), mothers, chunk, clock):
        yield [replace(o, cell=twin) for o in _outcomes(trained, mothers) for twin in twins[o.cell]]


def _twins(cells: Iterable[Cell]) -> dict[Cell, list[Cell]]:
    """Each cell to compute -> the cells that its numbers are of.

    At density 1 every pruner keeps everything: one network a seed is theirs all.
    """
    first, twins = {}, {}
    for cell in cells:
        same = first.setdefault(cell.seed, cell) if cell.density == 1 else cell
        twins.setdefault(same, []).append(cell)
    return twins


def _grow(like: Cell, seeds: list[int], clock: Clock, device: torch.device) -> Mothers:
    """Drawn and planted on the CPU, so that every device gets the same bits."""
    task = tasks.get(like.task, noise=like.noise)
    ticket, widths = task.ticket(like.depth), task.widths(like.depth, like.width)
    with clock("data"):
        data = [task.sample(n=like.n_samples, seed=s) for s in seeds]
    with clock("planting"):
        population = init_population(widths, n=len(seeds), seed=seeds, scheme=like.scheme)
        planted = planting.plant(ticket, population, assignment=like.assignment)
        planted = replace(planted, population=planted.population.to(device), masks=planted.masks.to(device))
        performance = [ticket_performance(task, ticket, d) for d in data]
    return Mothers(
        task,
        {s: row for row, s in enumerate(seeds)},
        data,
        planted,
        float(ticket.density(widths)),
        [metric for metric, _ in performance],
        [loss for _, loss in performance],
    )


def ticket_performance(task: tasks.Task, ticket: tasks.Ticket, data: tasks.Data) -> tuple[float, float]:
    """Metric (accuracy or rescaled MSE) and loss of the ticket itself on the test split, in float64."""
    output, y = ticket.forward(data.x_test).double(), data.y_test
    if task.loss == "cross_entropy":
        metric = (output.argmax(1) == y).double().mean()
        return metric.item(), torch.nn.functional.cross_entropy(output, y).item()
    y = y.double()
    norm = (output * output).sum(0)
    factor = torch.where(norm > 0, (output * y).sum(0) / norm, 0.0)
    return ((output * factor - y) ** 2).mean().item(), ((output - y) ** 2).mean().item()


def _singleshot(cells: Sequence[Cell], mothers: Mothers, chunk: int, clock: Clock) -> Iterator[_Trained]:
    for pairs in _chunks(_pruned(cells, mothers, clock), chunk):
        started = time.time()
        # threads take networks in order: the expensive ones first, so that none is left over at the end
        pairs.sort(key=lambda pair: -pair[0].density)
        batch = [cell for cell, _ in pairs]
        masks = Masks.from_flat(torch.stack([row for _, row in pairs]), mothers.planted.population.widths)
        population, data, planted_masks = mothers.select([c.seed for c in batch])
        result = _train(batch, population, masks, data, clock)
        strong = result.metric[:, 0], result.test_loss[:, 0]
        yield _Trained(batch, started, masks, planted_masks, *strong, result)


def _pruned(cells: Sequence[Cell], mothers: Mothers, clock: Clock) -> Iterator[tuple[Cell, Tensor]]:
    """Each cell with its mask (flat, bool [P]). Scores are computed once for all densities."""
    loss, widths = mothers.task.loss, mothers.planted.population.widths
    scope, rounds = cells[0].scope, cells[0].rounds
    for (pruner,), group in _grouped(cells, "pruner"):
        seeds = list(dict.fromkeys(c.seed for c in group))
        rows = [mothers.rows[s] for s in seeds]
        with clock("scoring"):
            population, batch = mothers.planted.population.select(rows), tuple(part[rows] for part in mothers.batch)
            densities = dict.fromkeys(c.density for c in group)
            if rounds == 1:
                scores = pruners.score(population, pruner, batch, loss, seeds)
                found = pruners.thresholds(scores, None, widths, list(densities), scope)
                masks = {d: m.flatten() for d, m in zip(densities, found, strict=True)}
            else:
                masks = {
                    d: pruners.prune(population, pruner, d, batch, loss, scope, rounds, seed=seeds).flatten()
                    for d in densities
                }
        row = {s: i for i, s in enumerate(seeds)}
        for cell in group:
            yield cell, masks[cell.density][row[cell.seed]]


def _multishot(cells: Sequence[Cell], mothers: Mothers, chunk: int, clock: Clock) -> Iterator[_Trained]:
    for batch in _chunks(cells, chunk):
        batch.sort(key=lambda cell: -cell.density)  # as in singleshot
        started, like, seeds = time.time(), batch[0], [c.seed for c in batch]
        population, data, planted_masks = mothers.select(seeds)
        with clock("training, scoring"):
            shots = training.multishot(
                population,
                [c.pruner for c in batch],
                [c.density for c in batch],
                data,
                rounds=like.rounds,
                round_epochs=like.round_epochs,
                epochs=like.epochs,
                batch_size=like.batch_size,
                optimizer=training.Adam(lr=like.lr),
                scope=like.scope,
                rewind=like.rewind,
                rewind_epochs=like.rewind_epochs,
                seed=seeds,
            )
        strong = shots.strong_metric, shots.strong_loss
        yield _Trained(batch, started, shots.masks, planted_masks, *strong, shots.result)


def _edge_popup(cells: Sequence[Cell], mothers: Mothers, chunk: int, clock: Clock) -> Iterator[_Trained]:
    for (pruner, density), group in _grouped(cells, "pruner", "density"):
        for batch in _chunks(group, chunk):
            started, like, seeds = time.time(), batch[0], [c.seed for c in batch]
            population, data, planted_masks = mothers.select(seeds)
            with clock("training"):
                popup = training.edge_popup(
                    population,
                    data,
                    density,
                    epochs=like.popup_epochs,
                    anneal=pruner == "edge-popup-anneal",
                    optimizer=training.SGD(lr=like.popup_lr, momentum=0.9, weight_decay=5e-4, schedule="cosine"),
                    seed=seeds,
                    batch_size=like.batch_size,
                )
            result = _train(batch, population, popup.masks, data, clock)
            strong = popup.metric[:, -1], popup.test_loss[:, -1]
            yield _Trained(batch, started, popup.masks, planted_masks, *strong, result)


def _train(batch: list[Cell], population: Population, masks: Masks, data: list, clock: Clock):
    like = batch[0]
    with clock("training"):
        return training.train(
            population,
            masks,
            data,
            epochs=like.epochs,
            batch_size=like.batch_size,
            optimizer=training.Adam(lr=like.lr),
            seed=[c.seed for c in batch],
        )


def _outcomes(trained: _Trained, mothers: Mothers) -> list[Outcome]:
    masks, result = trained.masks, trained.result
    recovery = planting.recovery(masks, trained.planted_masks)
    rows = [mothers.rows[c.seed] for c in trained.cells]
    columns = {
        "strong_metric": trained.strong_metric,
        "weak_metric": result.metric[:, -1],
        "strong_loss": trained.strong_loss,
        "weak_loss": result.test_loss[:, -1],
        "kept": masks.kept(),
        "density_kept": masks.density(),
        "effective_density": masks.effective_density(),
        "collapsed": masks.collapsed(),
        "precision": recovery.precision,
        "recall": recovery.recall,
        "f1": recovery.f1,
    }
    values = {name: [float(v) for v in column.tolist()] for name, column in columns.items()}
    values["ticket_metric"] = [mothers.ticket_metric[r] for r in rows]
    for stage in ("strong", "weak"):
        values[f"{stage}_gap"] = _gaps(values[f"{stage}_metric"], values["ticket_metric"], mothers.task)
    values["ticket_loss"] = [mothers.ticket_loss[r] for r in rows]
    values["ticket_density"] = [mothers.ticket_density] * len(rows)
    curves = {name: getattr(result, name).tolist() for name in ("train_loss", "test_loss", "metric")}
    by_layer = {name: getattr(recovery, f"layer_{name}").tolist() for name in ("precision", "recall", "f1")}
    by_layer["density"] = masks.layer_densities().tolist()
    finished = time.time()
    return [
        Outcome(
            cell,
            trained.started,
            finished,
            {name: column[i] for name, column in values.items()},
            {name: rows[i] for name, rows in curves.items()},
            {name: rows[i] for name, rows in by_layer.items()},
        )
        for i, cell in enumerate(trained.cells)
    ]


def _gaps(metric: list[float], ticket_metric: list[float], task: tasks.Task) -> list[float]:
    """How much worse than the planted ticket, on the same test split: positive is worse, whatever the metric."""
    sign = 1 if task.metric_name == "accuracy" else -1  # else an error, of which less is better
    return [sign * (ticket - network) for network, ticket in zip(metric, ticket_metric, strict=True)]


def _grouped(cells: Iterable[Cell], *names: str) -> list[tuple[tuple, list[Cell]]]:
    """Cells with equal values of the named fields, in order of first appearance."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(getattr(cell, name) for name in names), []).append(cell)
    return list(groups.items())


def _chunks(items: Iterable, n: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, n)):
        yield chunk
