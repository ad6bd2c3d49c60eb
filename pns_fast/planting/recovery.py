"""How much of a planted ticket a pruner found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks import Masks


@dataclass(frozen=True, eq=False)
class Recovery:
    """All float64; a layer's numbers are over its weights and biases together."""

    precision: Tensor  # [N]
    recall: Tensor  # [N]
    f1: Tensor  # [N]
    layer_precision: Tensor  # [N, L]
    layer_recall: Tensor  # [N, L]
    layer_f1: Tensor  # [N, L]


def recovery(masks: Masks, planted_masks: Masks) -> Recovery:
    """Precision, recall and F1 of planted parameters among the kept ones, overall and by layer.

    ``precision = |kept & planted| / |kept|``, ``recall = |kept & planted| / |planted|``,
    ``f1 = 2 |kept & planted| / (|kept| + |planted|)``; each is 0 where it would be 0/0.

    Args:
        masks: what a pruner kept.
        planted_masks: what was planted, ``planted.masks``.

    Raises:
        TypeError: an argument that is no Masks.
        ValueError: another number of networks, other widths or another device.

    >>> kept = Masks([torch.tensor([[[True, True]]])], [torch.tensor([[False]])])
    >>> planted = Masks([torch.tensor([[[True, False]]])], [torch.tensor([[False]])])
    >>> found = recovery(kept, planted)
    >>> found.precision, found.recall
    (tensor([0.5000], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    for name, value in (("masks", masks), ("planted_masks", planted_masks)):
        if not isinstance(value, Masks):
            raise TypeError(f"{name}: expected Masks, got {type(value).__name__}")
    masks.check_fits(planted_masks)
    kept, planted = _layer_counts(masks), _layer_counts(planted_masks)
    both = _layer_counts(
        Masks(
            [a & b for a, b in zip(masks.weights, planted_masks.weights, strict=True)],
            [a & b for a, b in zip(masks.biases, planted_masks.biases, strict=True)],
        )
    )
    return Recovery(
        *_ratios(both.sum(1), kept.sum(1), planted.sum(1)),
        *_ratios(both, kept, planted),
    )


def _layer_counts(masks: Masks) -> Tensor:
    """Kept weights and biases of each layer: int64 [N, L]."""
    layers = zip(masks.weights, masks.biases, strict=True)
    # in 32 bits, which a layer fits: on the CPU torch sums bools to int64 16 times as slowly
    counts = [w.flatten(1).sum(1, dtype=torch.int32) + b.sum(1, dtype=torch.int32) for w, b in layers]
    return torch.stack(counts, dim=1).long()


def _ratios(both: Tensor, kept: Tensor, planted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # both is 0 wherever a denominator is, so clamping makes 0/0 a 0
    return (
        both.double() / kept.clamp(min=1),
        both.double() / planted.clamp(min=1),
        2 * both.double() / (kept + planted).clamp(min=1),
    )
