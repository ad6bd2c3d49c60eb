"""Which neuron of the mother network carries which target neuron of a layer, and at which scale.

Shapes: N networks, T target neurons, C neurons of the mother network, P parameters at the target's positions
(weights, then the bias). All in float64. Sums run one term after the other, so that a network gets the same
bits in any batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops


class LayerMatch(NamedTuple):
    """The matches of one layer."""

    index: Tensor  # int64 [N, T], -1 where the target neuron has no parameter
    scale: Tensor  # float64 [N, T], > 0
    fallbacks: Tensor  # int64 [N]: targets for which no free neuron had a positive scale


def match_greedy(theta: Tensor, support: Tensor, candidates: Tensor) -> LayerMatch:
    """Targets in index order, each takes the free neuron of least residual.

    Args:
        theta: ``[N, T, P]``.
        support: bool ``[T, P]``.
        candidates: ``[N, C, P]``.
    """
    found = ops.best_match(theta, support.expand_as(theta).contiguous(), candidates)
    index, scale = found.index.clone(), found.scale.to(torch.float64, copy=True)
    fallbacks = torch.zeros(len(theta), dtype=torch.int64, device=theta.device)
    needed = support.any(1)
    for n in ((index < 0) & needed).any(1).nonzero().flatten().tolist():
        index[n], scale[n], fallbacks[n] = _rematch(index[n], scale[n], theta[n], support, candidates[n])
    return LayerMatch(index, scale, fallbacks)


def _rematch(index: Tensor, scale: Tensor, theta: Tensor, support: Tensor, candidates: Tensor):
    """One network in which some target found no positive scale.

    Such a target takes its neuron at its turn, so the targets after it are matched again without that neuron.
    """
    index, scale, n_fallbacks = index.clone(), scale.clone(), 0
    needed = support.any(1)
    while bool((missing := (index < 0) & needed).any()):
        t = int(missing.nonzero()[0])
        free = _free(index[:t], len(candidates))
        index[t], scale[t] = _fallback(theta[t], support[t], candidates, free)
        n_fallbacks += 1
        free[index[t]] = False
        later = slice(t + 1, None)
        if len(index[later]):
            found = ops.best_match(theta[None, later], support[None, later], candidates[None], free[None])
            index[later], scale[later] = found.index[0], found.scale[0].double()
    return index, scale, n_fallbacks


def match_optimal(theta: Tensor, support: Tensor, candidates: Tensor) -> LayerMatch:
    """The assignment of least total residual (linear sum assignment); arguments as :func:`match_greedy`."""
    from scipy.optimize import linear_sum_assignment  # 0.7 s of imports that greedy planting does not need

    if theta.is_cuda:  # SciPy's assignment needs the CPU, and a GPU would be waited for at every neuron
        return LayerMatch(*(t.to(theta.device) for t in match_optimal(theta.cpu(), support.cpu(), candidates.cpu())))
    index = torch.full(theta.shape[:2], -1, dtype=torch.int64, device=theta.device)
    scale = torch.ones(theta.shape[:2], dtype=torch.float64, device=theta.device)
    fallbacks = torch.zeros(len(theta), dtype=torch.int64, device=theta.device)
    needed = support.any(1).nonzero().flatten()
    for n in range(len(theta) if len(needed) else 0):
        lam, residual = zip(
            *(scale_and_residual(theta[n, t, support[t]], candidates[n][:, support[t]]) for t in needed),
            strict=True,
        )
        lam, residual = torch.stack(lam), torch.stack(residual)
        residual[support[needed].sum(1) == 1] = 0  # one parameter: any same sign is exact, rounding aside
        allowed = (lam > 0) & torch.isfinite(lam)
        # A residual is at most |theta|, so one forbidden pair costs more than any number of allowed ones.
        forbidden = 1 + 2 * total(length(theta[n])[needed])
        cost = torch.where(allowed, residual, forbidden)
        rows, columns = (torch.from_numpy(i).to(theta.device) for i in linear_sum_assignment(cost.cpu().numpy()))
        good = allowed[rows, columns]
        index[n, needed[rows[good]]] = columns[good]
        scale[n, needed[rows[good]]] = lam[rows, columns][good]
        for t in needed[rows[~good]].tolist():
            free = _free(index[n], candidates.shape[1])
            index[n, t], scale[n, t] = _fallback(theta[n, t], support[t], candidates[n], free)
            fallbacks[n] += 1
    return LayerMatch(index, scale, fallbacks)


def match_outputs(theta: Tensor, support: Tensor, candidates: Tensor) -> LayerMatch:
    """The output layer: target i is neuron i, where its scale is not positive the ratio of the norms is.

    No search, so that ratio is no fallback and is not counted.
    """
    theta, m = theta * support, candidates * support
    lam, _ = scale_and_residual(theta, m)
    index = torch.arange(theta.shape[1], device=theta.device).repeat(len(theta), 1)
    scale = torch.where(lam > 0, lam, norm_ratio(theta, m))
    return LayerMatch(index, scale, torch.zeros(len(theta), dtype=torch.int64, device=theta.device))


def _free(index: Tensor, n_candidates: int) -> Tensor:
    """The candidates that no entry of ``index`` has taken: bool [C]."""
    free = torch.ones(n_candidates, dtype=torch.bool, device=index.device)
    free[index[index >= 0]] = False
    return free


def _fallback(theta: Tensor, support: Tensor, candidates: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """The free candidate of largest norm on the support (lowest index on ties), and the norm ratio."""
    m = candidates[:, support]
    best = torch.where(free, length(m), -1.0).argmax()
    return best, norm_ratio(theta[support], m[best])


def scale_and_residual(theta: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """``lambda = theta.m / |m|^2`` (nan where m is 0) and ``|theta - lambda m|`` over the last dimension."""
    lam = total(theta * m) / total(m * m)
    return lam, length(theta - lam[..., None] * m)


def norm_ratio(theta: Tensor, m: Tensor) -> Tensor:
    """``|theta| / |m|``, and 1 where one of them is 0."""
    a, b = length(theta), length(m)
    return torch.where((a > 0) & (b > 0), a / b, 1.0)


def total(x: Tensor) -> Tensor:
    """The sum over the last dimension, in index order."""
    return sum(x.unbind(-1), torch.zeros_like(x[..., 0]))


def length(x: Tensor) -> Tensor:
    """The Euclidean norm over the last dimension."""
    return total(x * x).sqrt()
