"""Theorem 2 by experiment: random networks, searched for a ticket that nobody planted.

Shapes: N networks, T target neurons of a layer, C neurons of the random networks, I inputs of a target neuron.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .. import rng
from ..networks import Population, init_population
from ..planting.plant import candidates
from ..tasks import Ticket
from ..tasks.ticket import as_ticket
from .bound import check_room, existence_probability
from .errors import layer_errors

SCALINGS = ("network", "neuron")
_N_INPUTS = 1000  # at which found approximations are compared with the ticket, and as many corners of the cube
_MOST_PARAMETERS = 2**22  # drawn at a time: 64 MB


@dataclass(frozen=True)
class Simulation:
    """In how many random networks the ticket was found.

    Attributes:
        found: bool ``[N]``.
        probability: the share found, ``p_hat``.
        standard_error: ``sqrt(p_hat (1 - p_hat) / N)``; where it is 0, p is within ``3 / N`` with 95% confidence.
        bound: Theorem 2's, :func:`existence_probability` with ``match="printed"``.
        exact_bound: the same with ``match="exact"``, which needs no assumption on the ticket's parameters.
        largest_error: ``max |f - lambda f_eps|`` over all approximations found, 1,000 inputs and as many corners of
            [-1, 1]^n_0; NaN where none was found.
    """

    found: Tensor = field(repr=False)
    probability: float
    standard_error: float
    bound: float
    exact_bound: float
    largest_error: float


def simulate(
    ticket: Ticket | Sequence[tuple[Tensor, Tensor]],
    widths: Sequence[int],
    eps: float,
    init: str = "uniform",
    *,
    n: int = 1000,
    seed: int = 0,
    scaling: str = "network",
    norm: str = "max",
    output: str = "matched",
) -> Simulation:
    """Draw random networks and look for the ticket in each, as the proof of Theorem 2 does.

    Layer by layer from the input, each target neuron in turn takes the free neuron whose parameters, at the neurons
    found before, are closest to its own. The ticket is found if all are within eps_l. A search that goes back, or lets
    two targets share a neuron, may find more.

    Args:
        ticket: a Ticket, or (weight ``[n_l, n_{l-1}]``, bias ``[n_l]``) pairs.
        widths: ``(n_0, n_{1,0}, ..., n_{L,0})`` of the random networks; output neurons are searched like the others.
        eps: how far the ticket's output may be off.
        init: "uniform", or "he_scaled" (also "normal"): the scheme of :func:`pns_fast.init_population`.
        n: number of networks.
        seed: network i is the first of ``init_population(widths, seed=seed + i)``.
        scaling: "network": parameters are compared in units of their initialisation, as in the theorem, whose one
            scale is ``lambda = prod 1 / sigma_l``. "neuron": each neuron may be scaled by the best positive factor, as
            in planting; the ticket is then found more often than the theorem counts.
        norm: "max" or "spectral", see :func:`layer_errors`.
        output: "matched", or "trained": the last layer is not searched.

    Returns:
        A :class:`Simulation`, which does not depend on how networks are batched.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Theorem 2 of Fischer & Burkholz 2022 and its proof, appendix A.2.

    >>> found = simulate([([[0.5]], [0.0]), ([[-0.5]], [0.0])], (1, 8, 8), eps=0.9, n=500)
    >>> abs(found.probability - found.bound) < 3 * found.standard_error, found.largest_error <= 0.9
    (True, True)
    """
    ticket = as_ticket(ticket)
    widths = check_room(ticket, widths)
    settings = {"norm": norm, "output": output}
    bounds = [existence_probability(ticket, widths, eps, init, match=m, **settings) for m in ("printed", "exact")]
    if scaling not in SCALINGS:
        raise ValueError(f"scaling: expected one of {', '.join(SCALINGS)}, got {scaling!r}")
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"n: expected an int, got {n!r}")
    if n < 1:
        raise ValueError(f"n: expected an int of at least 1, got {n}")
    key = rng.network_keys(seed, 1)[0]
    if int(seed) + int(n) > 2**63:
        raise ValueError(f"n: expected seeds below 2**63, got {n} networks from seed {seed} on")
    scheme = "uniform" if init == "uniform" else "he_scaled"
    errors = layer_errors(ticket, eps, norm=norm)
    if output == "trained":
        errors[-1] = None
    x = _inputs(ticket.widths[0], key)
    expected, found, off_by = ticket.forward(x), [], []
    n_at_once = max(1, _MOST_PARAMETERS // sum(i * o for i, o in itertools.pairwise(widths)))
    for first in range(0, n, n_at_once):
        seeds = list(range(seed + first, seed + min(first + n_at_once, n)))
        mothers = init_population(widths, n=len(seeds), seed=seeds, scheme=scheme)
        with torch.device("cpu"):  # where mothers are, whatever device is the default
            approximation, is_found = _search(ticket, mothers, errors, scheme, scaling)
        found.append(is_found)
        if is_found.any():
            outputs = approximation.select(is_found.nonzero().flatten()).forward(x)
            off_by.append(float((outputs - expected).abs().max()))
    found = torch.cat(found)
    p = float(found.double().mean())
    return Simulation(found, p, math.sqrt(p * (1 - p) / n), *bounds, max(off_by, default=math.nan))


def _inputs(n_inputs: int, key: tuple[int, int]) -> Tensor:
    """Uniform in the cube, then as many of its corners: float64 [2 n, n_inputs]."""
    x = rng.generator(key, "data").uniform(-1, 1, (_N_INPUTS, n_inputs))
    return torch.from_numpy(np.concatenate([x, np.sign(x)]))


def _search(
    ticket: Ticket, mothers: Population, errors: Sequence[float | None], scheme: str, scaling: str
) -> tuple[Population, Tensor]:
    """What is closest to the ticket in each network, in units of the ticket, and whether it is close enough: bool [N].

    A layer whose error is None is the ticket's own.
    """
    n, bias_unit = mothers.n, 1.0
    previous = torch.arange(ticket.widths[0]).repeat(n, 1)
    scale = torch.ones(n, ticket.widths[0], dtype=torch.float64)  # of the neurons found, beside the network's
    alive = torch.ones(ticket.widths[0], dtype=torch.bool)
    weights, biases, is_found = [], [], torch.ones(n, dtype=torch.bool)
    for l, (w, b) in enumerate(zip(ticket.weights, ticket.biases, strict=True)):
        w, b = w.cpu(), b.cpu()
        target = torch.cat([w * alive, b[:, None]], dim=1)  # a neuron without parameters is 0 and not searched
        alive = (target != 0).any(1)
        if errors[l] is None:
            matched = target.expand(n, -1, -1)
        else:
            unit = math.sqrt((6 if scheme == "uniform" else 2) / mothers.widths[l])
            bias_unit *= unit
            pool = candidates(mothers.weights[l], mothers.biases[l], previous)
            pool[..., :-1] /= unit * scale[:, None, :]
            pool[..., -1] /= bias_unit
            previous, scale, is_close = _match(target, pool, errors[l], scaling)
            is_found &= is_close
            taken = pool.gather(1, previous[..., None].expand(-1, -1, pool.shape[2]))
            matched = taken * scale[..., None] * (target != 0)
        weights.append(matched[..., :-1])
        biases.append(matched[..., -1])
    return Population(weights, biases), is_found


def _match(target: Tensor, pool: Tensor, eps: float, scaling: str) -> tuple[Tensor, Tensor, Tensor]:
    """The closest free neuron of each target in turn.

    Args:
        target: ``[T, I + 1]``; what is zero need not be matched.
        pool: ``[N, C, I + 1]``.
        eps: how far a parameter may be off.
        scaling: see :func:`simulate`.

    Returns:
        Neurons int64 ``[N, T]``, their scales ``[N, T]``, and whether all are within eps: bool ``[N]``.
    """
    n_networks, n_targets = len(pool), len(target)
    index = torch.zeros(n_networks, n_targets, dtype=torch.int64)
    scale = torch.ones(n_networks, n_targets, dtype=torch.float64)
    is_found = torch.ones(n_networks, dtype=torch.bool)
    taken = torch.zeros(pool.shape[:2], dtype=torch.bool)
    for t, theta in enumerate(target):
        on = theta != 0
        if not on.any():
            continue  # a constant 0, which needs no neuron
        rank, scales = (_fixed if scaling == "network" else _best_scale)(theta[on], pool[..., on], eps)
        best = rank.masked_fill(taken, math.inf).min(1)
        index[:, t] = best.indices
        scale[:, t] = scales.gather(1, best.indices[:, None])[:, 0]
        taken.scatter_(1, best.indices[:, None], True)
        is_found &= best.values <= 1
    return index, scale, is_found


def _fixed(theta: Tensor, m: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The largest error of each candidate m [N, C, k] over eps, at scale 1: both [N, C]."""
    error = (m - theta).abs().amax(-1)
    return error / eps, torch.ones_like(error)


def _best_scale(theta: Tensor, m: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The scales lambda > 0 with ``|theta - lambda m| <= eps`` are an interval: its lower end over its upper one, at
    most 1 if there is such a scale, and its middle (1 if there is none)."""
    ends = torch.stack([(theta - eps) / m, (theta + eps) / m])
    low, high = ends.amin(0).amax(-1).clamp(min=0), ends.amax(0).amin(-1)
    rank = torch.nan_to_num(low / high, nan=math.inf, posinf=math.inf).masked_fill(high <= 0, math.inf)
    return rank, torch.where(rank <= 1, (low + high) / 2, 1.0)
