"""Twin of ops.topk_mask: a stable sort."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def keep_count(keep: int | float, n: int) -> int:
    """How many of ``n`` entries to keep: an int is a count, a float a density (``ceil(density * n)``)."""
    if isinstance(keep, int):
        return keep
    return max(0, math.ceil(keep * n - 1e-9))


def topk_mask(scores: Tensor | Sequence[Tensor], keep: int | float, *, ties: str = "index") -> Tensor | list[Tensor]:
    """See :func:`pns_fast.ops.topk_mask`."""
    if not isinstance(scores, Tensor):
        flat = torch.cat([s.reshape(-1) for s in scores])
        mask = topk_mask(flat, keep, ties=ties)
        return [m.reshape(s.shape) for m, s in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]
    n = scores.shape[-1]
    k = keep_count(keep, n)
    if ties == "legacy":  # "score <= the k-th smallest is cut": ties at the threshold all go
        if k == n:
            return torch.ones_like(scores, dtype=torch.bool)
        return scores > scores.kthvalue(n - k, dim=-1, keepdim=True).values
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :k], True)


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """See :func:`pns_fast.ops.kth_largest`."""
    return scores.sort(dim=-1, descending=True).values[..., k - 1]
