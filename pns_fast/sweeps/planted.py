"""``pns-fast plant``: plant a ticket into networks and show that it is there, exactly."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import planting, tasks
from ..networks import init_population
from .device import check_device
from .table import print_table
from .whole_file import whole_file

TOLERANCE = 1e-4  # float32 parameters: the planted network's outputs against the ticket's, relative


@dataclass(frozen=True)
class CheckedPlanting:
    """Planted networks, and how far each is from its ticket: max |difference| / max |ticket output|."""

    task: tasks.Task
    ticket: tasks.Ticket
    seeds: list[int]
    planted: planting.Planted
    errors: list[float]

    @property
    def is_exact(self) -> bool:
        return max(self.errors) <= TOLERANCE


def check_planted(
    task: str,
    depth: int,
    width: int,
    seeds: Sequence[int],
    scheme: str = "he_scaled",
    assignment: str = "greedy",
    device: str | torch.device = "cpu",
) -> CheckedPlanting:
    """Plant the task's ticket into a mother network a seed, on a device, and compare outputs on 1,000 inputs.

    Raises:
        ValueError: an unknown task, scheme, assignment or device, or a mother network too narrow for the ticket.

    Example:
        >>> check_planted("relu", 4, 10, [0, 1]).is_exact
        True
    """
    instance, device = tasks.get(task), check_device(device)
    ticket = instance.ticket(depth)
    population = init_population(instance.widths(depth, width), n=len(seeds), seed=seeds, scheme=scheme)
    planted = planting.plant(ticket, population.to(device), assignment=assignment)
    x = instance.sample(n=10_000, seed=seeds[0]).x_test.double().to(device)
    expected = ticket.forward(x)
    difference = (planted.ticket_forward(x) - expected).abs().flatten(1).amax(1)
    return CheckedPlanting(instance, ticket, list(seeds), planted, (difference / expected.abs().max()).tolist())


def print_planted(checked: CheckedPlanting) -> None:
    """One row a network: what the ticket keeps, its density, matches without a positive scale, the error."""
    from rich import box
    from rich.table import Table

    widths = checked.planted.population.widths
    table = Table(
        title=f"[bold]{checked.task.name}[/] ticket {checked.ticket.widths} in {widths}",
        title_style="",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("seed", "kept weights", "and biases", "density", "fallbacks", "max relative error"):
        table.add_column(name, justify="right")
    masks, density = checked.planted.masks, checked.ticket.density(widths)
    kept_weights = sum(w.flatten(1).sum(1) for w in masks.weights)
    columns = (
        checked.seeds,
        kept_weights,
        masks.kept() - kept_weights,
        checked.planted.fallbacks,
        checked.errors,
    )
    for seed, n_weights, n_biases, n_fallbacks, error in zip(*columns, strict=True):
        shown = f"{error:.1e}" if error <= TOLERANCE else f"[red]{error:.1e}, not exact[/]"
        table.add_row(
            str(seed), str(int(n_weights)), str(int(n_biases)), f"{density:.6f}", str(int(n_fallbacks)), shown
        )
    print_table(table)


def save_planted(checked: CheckedPlanting, path: str | os.PathLike) -> None:
    """``torch.save`` of plain tensors on the CPU and of numbers: ``torch.load(path, weights_only=True)`` reads it.

    Raises:
        OSError: ``path`` cannot be written.
    """
    planted = checked.planted
    population, masks = planted.population.to("cpu"), planted.masks.to("cpu")
    content = {
        "task": checked.task.name,
        "seeds": checked.seeds,
        "widths": population.widths,
        "weights": population.weights,
        "biases": population.biases,
        "mask_weights": masks.weights,
        "mask_biases": masks.biases,
        "output_scale": planted.output_scale.cpu(),
        "neurons": [n.cpu() for n in planted.neurons],
        "fallbacks": planted.fallbacks.cpu(),
    }
    written = io.BytesIO()  # to a file torch makes a RuntimeError of what is an OSError
    torch.save(content, written)
    with whole_file(path) as part:
        part.write_bytes(written.getbuffer())
