"""torch.nn.utils.prune with exact selection and with this package's pruners."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from .. import ops
from .model import unwrap
from .prune_module import score_module


class GlobalTopK(prune.BasePruningMethod):
    """Prunes the ``amount`` smallest of ``|t|``, t the tensor or its ``importance_scores``: a faster L1Unstructured.

    Exactly that many, ties to be pruned from the last index on. For ``torch.nn.utils.prune.global_unstructured``,
    which ranks all its parameters together, and for ``GlobalTopK.apply(module, name, amount)``. Note that torch
    counts what is removed.

    Args:
        amount: the fraction (float in [0, 1]) or the number (int) to prune of what is not yet pruned.

    Raises:
        TypeError, ValueError: naming ``amount``.

    Source: magnitude pruning, Frankle & Carbin 2019.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(10, 5), torch.nn.Linear(5, 2))
        >>> parameters = [(model[0], "weight"), (model[1], "weight")]
        >>> torch.nn.utils.prune.global_unstructured(parameters, pruning_method=GlobalTopK, amount=0.75)
        >>> sum(int(layer.weight_mask.sum()) for layer in model)
        15
    """

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: int | float) -> None:
        if isinstance(amount, bool) or not isinstance(amount, numbers.Real):
            raise TypeError(f"amount: expected a fraction (float) or a number (int) to prune, got {amount!r}")
        if amount < 0 or (not isinstance(amount, numbers.Integral) and not amount <= 1):
            raise ValueError(f"amount: expected an int >= 0 or a float in [0, 1], got {amount!r}")
        self.amount = amount

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        n = t.numel()
        n_pruned = self.amount if isinstance(self.amount, numbers.Integral) else round(self.amount * n)
        if n_pruned > n:
            raise ValueError(f"amount: expected at most the {n} parameters left, got {self.amount}")
        top = ops.topk_mask(t.detach().abs().reshape(-1), n - int(n_pruned)).reshape(t.shape)
        return default_mask * top

    @classmethod
    def apply(cls, module: nn.Module, name: str, amount: int | float, importance_scores: Tensor | None = None):
        return super().apply(module, name, amount=amount, importance_scores=importance_scores)


def importance_scores(model: nn.Module, pruner: str, batches=None, loss_fn=None, **options) -> dict:
    """What ``global_unstructured(..., importance_scores=)`` takes, made of a pruner's scores.

    Ranks, 1 for the worst: torch's methods take absolute values, which would keep GraSP's most negative scores.

    Args:
        model: any module, pruned by torch.nn.utils.prune before or not.
        pruner, batches, loss_fn: see :func:`pns_fast.prune_module`.
        options: ``seed``, ``include_bias``, ``ignore`` of that function.

    Returns:
        ``{(module, parameter name): float64 ranks}``; equal scores rank the first index highest.

    Raises:
        TypeError, ValueError: as :func:`pns_fast.nn.score_module`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
        >>> scores = importance_scores(model, "synflow", batches=(torch.randn(1, 3), torch.zeros(1)))
        >>> [(name, ranks.shape) for (_, name), ranks in scores.items()]
        [('weight', torch.Size([2, 3]))]
    """
    scores = score_module(model, pruner, batches, loss_fn, **options)
    flat = torch.cat([s.flatten().double() for s in scores.values()])
    order = flat.flip(0).argsort(stable=True)  # flipped: of equal scores the last index comes first, so ranks lowest
    ranks = torch.empty_like(flat)
    ranks[order] = torch.arange(1, len(flat) + 1, dtype=flat.dtype, device=flat.device)
    parts = ranks.flip(0).split([s.numel() for s in scores.values()])
    modules = dict(unwrap(model).named_modules())
    result = {}
    for (name, score), part in zip(scores.items(), parts, strict=True):
        path, _, leaf = name.rpartition(".")
        if f"{leaf.removesuffix('_orig')}_mask" in modules[path]._buffers:  # torch renames what it has pruned
            leaf = leaf.removesuffix("_orig")
        result[modules[path], leaf] = part.reshape(score.shape)
    return result
