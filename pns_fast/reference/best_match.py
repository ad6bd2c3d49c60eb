"""Twin of ops.best_match: for each target in order, the explicit residual of every free candidate in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BestMatch(NamedTuple):
    """Which candidate each target got, its scale lambda and the distance |theta - lambda m|."""

    index: Tensor  # int64 [..., T], -1 where the support is empty or no free candidate has a positive scale
    scale: Tensor  # [..., T], > 0 (1 where index is -1)
    distance: Tensor  # [..., T] (nan where index is -1)


def best_match(target: Tensor, support: Tensor, candidates: Tensor, available: Tensor | None = None) -> BestMatch:
    """See :func:`pns_fast.ops.best_match`."""
    lead, (n_targets, n_candidates) = target.shape[:-2], (target.shape[-2], candidates.shape[-2])
    out_dtype = torch.promote_types(target.dtype, candidates.dtype)
    target = target.double().reshape(lead.numel(), *target.shape[-2:])
    candidates = candidates.double().reshape(lead.numel(), *candidates.shape[-2:])
    support = support.reshape(target.shape)
    index = torch.full((len(target), n_targets), -1, dtype=torch.int64)
    scale = torch.ones(len(target), n_targets, dtype=torch.float64)
    distance = torch.full((len(target), n_targets), torch.nan, dtype=torch.float64)
    for b in range(len(target)):
        free = torch.ones(n_candidates, dtype=torch.bool)
        if available is not None:
            free = available.reshape(lead.numel(), n_candidates)[b].clone()
        for t in range(n_targets):
            on = support[b, t]
            theta, m = target[b, t, on], candidates[b][:, on]
            dot = m @ theta
            lam = dot / (m * m).sum(1)
            residual = (theta - lam[:, None] * m).norm(dim=1)
            if on.sum() == 1:  # one parameter: any candidate of the same sign is exact, rounding aside
                residual = torch.zeros_like(residual)
            residual[~(free & (dot > 0) & torch.isfinite(residual))] = torch.inf
            if n_candidates == 0 or residual.min() == torch.inf:
                continue
            best = int(residual.argmin())  # argmin's first minimum is the lowest index
            index[b, t], scale[b, t], distance[b, t] = best, lam[best], residual[best]
            free[best] = False
    shape = (*lead, n_targets)
    return BestMatch(index.reshape(shape), scale.reshape(shape).to(out_dtype), distance.reshape(shape).to(out_dtype))
