"""The pruning batch: a few training samples that SNIP and GraSP look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import rng
from ..networks import Population
from .checks import LOSSES, check_choice, check_count, check_inputs, check_targets, differentiable, moved

if TYPE_CHECKING:
    from ..tasks import Data


def pruning_batch(
    data: Data | Sequence[Data], loss: str, n: int = 40, seed: int | Sequence[int] = 0
) -> tuple[Tensor, Tensor]:
    """``n`` random training samples; for classification as many of each class as there are.

    Circle's 4 classes give 10 each. A class that runs out leaves its places to the others.

    Args:
        data: one dataset, or a list of N (dataset i is drawn from with key i, see ``rng.network_keys``).
        loss: "cross_entropy" (balanced classes) or "mse".
        n: number of samples, at most the number of training samples.
        seed: an int, or N ints for a list.

    Returns:
        ``x [n, n_0]`` and ``y [n]`` or ``[n, n_L]``; for a list ``[N, n, ...]``.

    Raises:
        TypeError: ``n`` is no int, ``data`` no dataset, or labels are no int64.
        ValueError: an unknown loss, ``n`` out of range, or an empty list.

    Source: Lee et al. 2019 and Tanaka et al. 2020 (10 samples a class).

    >>> from types import SimpleNamespace
    >>> data = SimpleNamespace(x_train=torch.randn(100, 2), y_train=torch.arange(100) % 4)
    >>> x, y = pruning_batch(data, "cross_entropy", seed=1)
    >>> x.shape, y.bincount()
    (torch.Size([40, 2]), tensor([10, 10, 10, 10]))
    """
    check_choice("loss", loss, LOSSES)
    check_count("n", n, 1)
    is_one = hasattr(data, "x_train")
    datasets = [data] if is_one else data
    if not isinstance(datasets, (list, tuple)) or not all(hasattr(d, "x_train") for d in datasets):
        raise TypeError(f"data: expected a Data (with x_train, y_train) or a list of them, got {type(data).__name__}")
    if not datasets:
        raise ValueError("data: expected at least one, got none")
    keys = rng.network_keys(seed, len(datasets))
    batches = [_draw(d, loss, n, key) for d, key in zip(datasets, keys, strict=True)]
    return batches[0] if is_one else (torch.stack([x for x, _ in batches]), torch.stack([y for _, y in batches]))


def _draw(data: Data, loss: str, n: int, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
    n_train = len(data.x_train)
    if n > n_train:
        raise ValueError(f"n: expected at most the {n_train} training samples, got {n}")
    if loss == "cross_entropy" and data.y_train.dtype != torch.int64:
        raise TypeError(
            f"data y_train: loss 'cross_entropy' expects int64 labels (values: 'mse'), got {data.y_train.dtype}"
        )
    order = rng.generator(key, "pruning_batch").permutation(n_train)
    if loss == "cross_entropy":
        labels = data.y_train.cpu().numpy()[order]
        firsts = [np.flatnonzero(labels == c)[:n] for c in np.unique(labels)]
        turns = [np.arange(len(f)) for f in firsts]  # the how-manieth of its class a sample is
        at = np.concatenate(firsts)
        order = order[at[np.lexsort((at, np.concatenate(turns)))]]
    index = torch.from_numpy(order[:n]).to(data.x_train.device)
    return data.x_train[index], data.y_train[index]


def check_batch(batch: tuple[Tensor, Tensor] | None, population: Population, loss: str) -> tuple[Tensor, Tensor] | None:
    """The batch as ``x [N, B, n_0]``, ``y [N, B]`` or ``[N, B, n_L]`` in the population's dtype, checked; one on the
    CPU is moved to the population's device."""
    if batch is None:
        return None
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"batch: expected (x, y) or None, got {type(batch).__name__}")
    x, y = (differentiable(moved(part, population)) for part in batch)
    check_inputs("batch x", x, population)
    n, n_samples = population.n, x.shape[-2]
    if x.dim() > 3 or (x.dim() == 3 and len(x) != n):
        n_0 = population.widths[0]
        raise ValueError(f"batch x: expected shape [B, {n_0}] or [{n}, B, {n_0}], got {list(x.shape)}")
    stacked = isinstance(y, Tensor) and y.dim() == (2 if loss == "cross_entropy" else 3)
    check_targets("batch y", y, (n, n_samples) if stacked else (n_samples,), population, loss)
    x = x.to(population.dtype).expand(n, *x.shape[-2:])
    y = y.to(population.dtype) if loss == "mse" else y
    return x, y if stacked else y.expand(n, *y.shape)
