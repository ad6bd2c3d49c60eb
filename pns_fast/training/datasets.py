"""One dataset or one a network, checked and stacked as the trainer kernel wants them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..networks import Population
from ..pruners.checks import LOSSES, check_choice, check_inputs, check_targets, moved

if TYPE_CHECKING:
    from ..tasks import Data

FIELDS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class StackedData:
    """D datasets of the same shape, and which of them each network sees."""

    x_train: Tensor  # [D, n, n_0], the population's dtype and device, as all here
    y_train: Tensor  # int64 [D, n] or [D, n, n_L]
    x_test: Tensor
    y_test: Tensor
    dataset: Tensor  # int64 [N], in [0, D)
    loss: str


def is_data(data: object) -> bool:
    """Whether ``data`` is one dataset, of whatever class."""
    return all(hasattr(data, field) for field in FIELDS)


def infer_loss(y: Tensor, loss: str | None) -> str:
    """``loss``, or the one that fits the labels: int64 means cross-entropy, anything else MSE."""
    if loss is not None:
        return check_choice("loss", loss, LOSSES)
    return "cross_entropy" if getattr(y, "dtype", None) == torch.int64 else "mse"


def stack_data(data: Data | Sequence[Data], population: Population, loss: str | None) -> StackedData:
    """Checks ``data`` against ``population`` and stacks it; a dataset that occurs twice is stored once.

    Datasets on the CPU are moved to the population's device, all in one copy a field.
    """
    one = is_data(data)
    if not one and not (isinstance(data, (list, tuple)) and all(map(is_data, data))):
        raise TypeError(
            f"data: expected a Data (with {', '.join(FIELDS)}) or a list of them, got {type(data).__name__}"
        )
    datasets = [data] * population.n if one else list(data)
    if len(datasets) != population.n:
        raise ValueError(f"data: expected one Data or a list of {population.n}, got {len(datasets)}")
    loss = infer_loss(datasets[0].y_train, loss)
    distinct = list({id(d): d for d in datasets}.values())
    position = {id(d): i for i, d in enumerate(distinct)}
    for d in distinct:
        _check_shapes(d, population, loss)
        for field in FIELDS:
            shapes = [list(getattr(other, field).shape) for other in (distinct[0], d)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"data: {field}: expected the same shape in all, got {shapes[0]} and {shapes[1]}")
    stacked = {field: _stack([getattr(d, field) for d in distinct], population) for field in FIELDS}
    _check_values(stacked, population, loss)
    dataset = torch.tensor([position[id(d)] for d in datasets], device=population.device)
    return StackedData(
        # inputs may want gradients, for which a training has none
        **{f: t.detach().to(population.dtype) if t.is_floating_point() else t for f, t in stacked.items()},
        dataset=dataset,
        loss=loss,
    )


def _stack(parts: list[Tensor], population: Population) -> Tensor:
    if len({part.device for part in parts}) > 1:
        parts = [moved(part, population) for part in parts]
    for part in parts:
        if part.device not in (population.device, torch.device("cpu")):
            raise ValueError(f"data: expected device {population.device} like the population, got {part.device}")
    return moved(torch.stack(parts), population)


def _check_shapes(data: Data, population: Population, loss: str) -> None:
    for part in ("train", "test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        check_inputs(f"data x_{part}", x, population, values=False)
        if x.dim() != 2:
            raise ValueError(f"data x_{part}: expected shape [n, {population.widths[0]}], got {list(x.shape)}")
        check_targets(f"data y_{part}", y, (len(x),), population, loss, values=False)


def _check_values(stacked: dict[str, Tensor], population: Population, loss: str) -> None:
    """Of all datasets at once: on a GPU every look at values waits for it."""
    for part in ("train", "test"):
        x, y = stacked[f"x_{part}"], stacked[f"y_{part}"]
        check_inputs(f"data x_{part}", x, population)
        check_targets(f"data y_{part}", y, x.shape[:2], population, loss)
