"""Did a pruner find what was planted in a module? Of named masks, as :func:`pns_fast.recovery` of a population's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_Counts = tuple[int, int, int]  # kept and planted, kept, planted


@dataclass(frozen=True)
class Found:
    """How much of the planted parameters is among the kept ones."""

    precision: float
    recall: float
    f1: float
    n_kept: int
    n_planted: int


@dataclass(frozen=True)
class ModuleRecovery:
    """Of all parameters together, and of each layer's weights and biases together."""

    overall: Found
    layers: dict[str, Found]  # by the name of the layer, in the order of the planted masks


def recovery_module(masks: Mapping[str, Tensor], planted_masks: Mapping[str, Tensor]) -> ModuleRecovery:
    """Precision, recall and F1 of planted parameters among the kept ones, overall and by layer.

    ``precision = |kept & planted| / |kept|``, ``recall = |kept & planted| / |planted|``,
    ``f1 = 2 |kept & planted| / (|kept| + |planted|)``; each is 0 where it would be 0/0.

    Args:
        masks: what a pruner kept, parameter name -> bool mask.
        planted_masks: what was planted, ``pns.plant_module(...).masks``.

    Returns:
        A :class:`ModuleRecovery`.

    Raises:
        TypeError: an argument that is no mapping of bool tensors.
        ValueError: masks of other parameters, or of other shapes.

    >>> kept, planted = {"0.weight": torch.tensor([[True, True]])}, {"0.weight": torch.tensor([[True, False]])}
    >>> recovery_module(kept, planted).layers
    {'0': Found(precision=0.5, recall=1.0, f1=0.6666666666666666, n_kept=2, n_planted=1)}
    """
    for argument, given in (("masks", masks), ("planted_masks", planted_masks)):
        if not isinstance(given, Mapping):
            raise TypeError(f"{argument}: expected a dict, parameter name -> bool mask, got {type(given).__name__}")
        for name, mask in given.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"{argument}[{name!r}]: expected a bool tensor, got {got}")
        if not given:
            raise ValueError(f"{argument}: expected at least one mask, got none")
    if masks.keys() != planted_masks.keys():
        differing = sorted(masks.keys() ^ planted_masks.keys())
        raise ValueError(f"masks: expected masks of the planted parameters, only one side has {differing[:3]}")
    counts: dict[str, _Counts] = {}
    for name, planted in planted_masks.items():
        kept = masks[name].to(planted.device)
        if kept.shape != planted.shape:
            raise ValueError(f"masks[{name!r}]: expected shape {list(planted.shape)}, got {list(kept.shape)}")
        layer = name.rpartition(".")[0]
        now = int((kept & planted).sum()), int(kept.sum()), int(planted.sum())
        counts[layer] = _sum([counts.get(layer, (0, 0, 0)), now])
    return ModuleRecovery(_found(_sum(list(counts.values()))), {layer: _found(c) for layer, c in counts.items()})


def _sum(parts: list[_Counts]) -> _Counts:
    both, kept, planted = (sum(column) for column in zip(*parts, strict=True))
    return both, kept, planted


def _found(counts: _Counts) -> Found:
    both, kept, planted = counts  # both is 0 wherever a denominator is, so max makes 0/0 a 0
    return Found(both / max(kept, 1), both / max(planted, 1), 2 * both / max(kept + planted, 1), kept, planted)
