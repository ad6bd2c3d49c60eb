"""Twin of ops.topk_mask: a stable sort."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor


def keep_count(keep: int | float, n: int) -> int:
    """How many of ``n`` entries to keep: an int is a count, a float a density (``ceil(density * n)``)."""
    if isinstance(keep, bool) or not isinstance(keep, numbers.Real):
        raise TypeError(f"keep: expected an int (count) or a float (density), got {type(keep).__name__}")
    most = n if isinstance(keep, numbers.Integral) else 1
    if not 0 <= keep <= most:
        raise ValueError(f"keep: expected a number in [0, {most}], got {keep}")
    return int(keep) if isinstance(keep, numbers.Integral) else max(0, math.ceil(keep * n - 1e-9))


def _refuse_nan(scores: Tensor) -> None:
    if scores.isnan().any():
        raise ValueError("scores: expected numbers that can be ranked, got NaN")


def topk_mask(
    scores: Tensor | Sequence[Tensor],
    keep: int | float,
    *,
    ties: str = "index",
    hint: float | Tensor | None = None,
    return_threshold: bool = False,
    out: Tensor | Sequence[Tensor] | None = None,
):
    """See :func:`pns_fast.ops.topk_mask`; a hint changes nothing."""
    if not isinstance(scores, Tensor):
        flat = torch.cat([s.reshape(-1) for s in scores]) if scores else torch.zeros(0)
        mask, threshold = topk_mask(flat, keep, ties=ties, return_threshold=True)
        mask = [m.reshape(s.shape) for m, s in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]
    else:
        mask, threshold = _mask_and_threshold(scores, keep_count(keep, scores.shape[-1]), ties)
    if out is not None:
        for o, m in zip([out], [mask], strict=True) if isinstance(out, Tensor) else zip(out, mask, strict=True):
            o.copy_(m)
        mask = out
    return (mask, threshold) if return_threshold else mask


def _mask_and_threshold(scores: Tensor, k: int, ties: str) -> tuple[Tensor, Tensor]:
    _refuse_nan(scores)
    n = scores.shape[-1]
    none = scores.new_full(scores.shape[:-1], math.nan)
    if ties == "legacy":  # "score <= the k-th smallest is cut": ties at the threshold all go
        if k == n:
            return torch.ones_like(scores, dtype=torch.bool), none
        threshold = scores.kthvalue(n - k, dim=-1).values
        return scores > threshold[..., None], threshold
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :k], True)
    return mask, kth_largest(scores, k) if k > 0 else none


def kth_largest(scores: Tensor, k: int, *, hint: float | Tensor | None = None) -> Tensor:
    """See :func:`pns_fast.ops.kth_largest`."""
    _refuse_nan(scores)
    if isinstance(k, bool) or not isinstance(k, numbers.Integral):
        raise TypeError(f"k: expected an int, got {type(k).__name__}")
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k: expected 1 <= k <= {scores.shape[-1]}, got {k}")
    return scores.sort(dim=-1, descending=True).values[..., k - 1]
