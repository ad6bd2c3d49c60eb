"""Theorem 2: how likely a random network contains a ticket, and how wide it has to be.

All in logarithms: a neuron of 40 parameters matches with probability 10^-200 and needs a width of 10^200, and neither
may become 0 or infinite on the way.
"""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..networks.stack import check_widths
from ..ops._library import INITS
from ..tasks import Ticket
from ..tasks.ticket import as_ticket
from .errors import LayerTerms, layer_terms

OUTPUTS = ("matched", "trained")
MATCHES = ("printed", "exact")

# log(match probability) -> how many neurons of the layer have it
LayerMatches = Counter[float]


def existence_probability(
    ticket: Ticket | Sequence[tuple[Tensor, Tensor]],
    widths: Sequence[int],
    eps: float,
    init: str = "uniform",
    *,
    norm: str = "max",
    output: str = "matched",
    match: str = "printed",
) -> float:
    """A lower bound on the probability that a random network contains the ticket, up to eps and one scale.

    ``prod_l max(0, 1 - sum_i (1 - eps_l^{k_i})^{n_{l,0}})``, with ``eps_l / 2`` for normal parameters: neuron i of
    layer l matches one of ``n_{l,0}`` random neurons if all its k_i parameters are within eps_l of that one's.

    Args:
        ticket: a Ticket, or (weight ``[n_l, n_{l-1}]``, bias ``[n_l]``) pairs.
        widths: ``(n_0, n_{1,0}, ..., n_{L,0})`` of the random network, ints of any size. The last layer is searched
            like the others, so that it may be wider than the ticket's.
        eps: how far the ticket's output may be off, for all inputs in [-1, 1]^n_0.
        init: "uniform" on [-1, 1] in units of the initial scale, or "normal" (also "he_scaled") of variance 1.
        norm: of the weights in Lemma 1, see :func:`layer_errors`: "max" as printed, "spectral" as proven.
        output: "matched", or "trained": the last layer is trained, not matched, and has no factor.
        match: "printed", or "exact": in place of ``eps_l^{k_i}`` the probability of this neuron's own parameters. For
            uniform parameters it is the same where the theorem's assumption holds (:func:`assumption_holds`), and
            needs no assumption; for normal ones it is exact where ``eps_l / 2`` is an estimate.

    Returns:
        A probability. 0 says nothing: the union bound over the neurons of a layer is not positive.

    Raises:
        TypeError, ValueError: naming the argument; a network that is narrower than the ticket is a ValueError.

    Source: Theorem 2 of Fischer & Burkholz 2022.

    >>> from pns_fast import tasks
    >>> round(existence_probability(tasks.get("relu").ticket(4), (1, 100, 100, 100), eps=0.3), 4)
    0.9701
    """
    ticket = as_ticket(ticket)
    widths = check_room(ticket, widths)
    layers = _layers(layer_terms(ticket, eps, norm=norm), init, output, match)
    return math.prod(_factor(layer, math.log(n)) for layer, n in zip(layers, widths[1:], strict=False))


def required_width(
    ticket: Ticket | Sequence[tuple[Tensor, Tensor]],
    probability: float,
    eps: float,
    init: str = "uniform",
    *,
    norm: str = "max",
    output: str = "matched",
    match: str = "printed",
) -> int | float:
    """The least width for which :func:`existence_probability` is at least ``probability``.

    All layers but the input have this width, the output included, as in the paper's estimate of it; with
    ``output="trained"`` the last layer does not matter.

    Args:
        ticket: a Ticket, or (weight ``[n_l, n_{l-1}]``, bias ``[n_l]``) pairs.
        probability: in (0, 1).
        eps: how far the ticket's output may be off.
        init: "uniform", or "normal" (also "he_scaled").
        norm: "max" or "spectral".
        output: "matched" or "trained".
        match: "printed" or "exact".

    Returns:
        An int of any size, at least the ticket's own width. Below 2^53 it is the least; above, the bound is known to
        about 13 digits and so is the width. inf where no width helps: with ``match="exact"`` a parameter beyond
        ``1 + eps_l`` is never matched by uniform ones.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Theorem 2 of Fischer & Burkholz 2022.

    >>> from pns_fast import tasks
    >>> required_width(tasks.get("relu").ticket(4), probability=0.9, eps=0.3)
    73
    """
    ticket = as_ticket(ticket)
    probability = _check_probability(probability)
    layers = _layers(layer_terms(ticket, eps, norm=norm), init, output, match)
    return _least_width(layers, probability, max(ticket.widths[1 : len(layers) + 1]))


def layer_widths(
    ticket: Ticket | Sequence[tuple[Tensor, Tensor]],
    probability: float,
    eps: float,
    init: str = "uniform",
    *,
    norm: str = "max",
    output: str = "matched",
    match: str = "printed",
) -> list[int | float]:
    """The width each layer needs for its L-th part of the probability: factors of ``probability^(1/L)``.

    Args:
        ticket: a Ticket, or (weight ``[n_l, n_{l-1}]``, bias ``[n_l]``) pairs.
        probability: in (0, 1).
        eps: how far the ticket's output may be off.
        init: "uniform", or "normal" (also "he_scaled").
        norm: "max" or "spectral".
        output: "matched" or "trained".
        match: "printed" or "exact".

    Returns:
        ``n_{1,0}, ..., n_{L,0}``, without the last for ``output="trained"``; as in :func:`required_width`. A network
        of these widths reaches the probability, most often with fewer neurons than one of a single width.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Theorem 2 of Fischer & Burkholz 2022.

    >>> from pns_fast import tasks
    >>> layer_widths(tasks.get("relu").ticket(4), probability=0.9, eps=0.3)
    [80, 73, 66]
    """
    ticket = as_ticket(ticket)
    probability = _check_probability(probability)
    layers = _layers(layer_terms(ticket, eps, norm=norm), init, output, match)
    share = min(probability ** (1 / len(layers)), math.nextafter(1, 0))
    return [_least_width([layer], share, n) for layer, n in zip(layers, ticket.widths[1:], strict=False)]


def check_room(ticket: Ticket, widths: Sequence[int]) -> tuple[int, ...]:
    widths, own = check_widths(widths), ticket.widths
    if len(widths) != len(own) or widths[0] != own[0] or any(n < m for n, m in zip(widths, own, strict=True)):
        raise ValueError(
            f"widths: expected {len(own)} layers, {own[0]} inputs and no layer narrower than the ticket's {own}, "
            f"got {widths}"
        )
    return widths


def _check_probability(value) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"probability: expected a number, got {value!r}")
    if not 0 < value < 1:
        raise ValueError(f"probability: expected a number above 0 and below 1, got {value!r}")
    return float(value)


def _layers(terms: list[LayerTerms], init: str, output: str, match: str) -> list[LayerMatches]:
    """The match probabilities of the layers that are searched."""
    names = (("init", init, ("normal", *INITS)), ("output", output, OUTPUTS), ("match", match, MATCHES))
    for name, value, known in names:
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if output == "trained":
        if len(terms) == 1:
            raise ValueError("output: expected matched for a ticket of one layer, got 'trained'")
        terms = terms[:-1]
    is_normal = init != "uniform"
    if match == "exact":
        return [Counter(_log_exact(layer, is_normal)) for layer in terms]
    return [
        Counter(min(k * (layer.log_error - is_normal * math.log(2)), 0.0) for k in layer.n_parameters)
        for layer in terms
    ]


def _log_exact(layer: LayerTerms, is_normal: bool) -> list[float]:
    """``log P(|theta_j - m_j| <= eps_l for all j)`` of each neuron."""
    size, eps = layer.theta.abs(), layer.error
    if is_normal:
        log_p = _log_normal(size, eps, layer.log_error)
    else:
        log_p = (1 - size + eps).clamp(0, min(2 * eps, 2)).log() - math.log(2)
    return log_p.where(size > 0, 0.0).sum(1).tolist()


def _log_normal(size: Tensor, eps: float, log_eps: float) -> Tensor:
    """``log(Phi(t + eps) - Phi(t - eps))`` for t >= 0."""
    if eps < 1e-4:  # the difference cancels; the next term of the series is below 1e-16 for |t| < 3
        return log_eps + math.log(2 / math.pi) / 2 - size**2 / 2 + torch.log1p(eps**2 * (size**2 - 1) / 6)
    upper, lower = (torch.special.log_ndtr(shift - size) for shift in (eps, -eps))
    return upper + torch.log1p(-torch.exp(lower - upper))


def _factor(layer: LayerMatches, log_width: float) -> float:
    """``max(0, 1 - sum_i (1 - p_i)^n)``, as ``sum_i P_i - (T - 1)`` with ``P_i = 1 - (1 - p_i)^n`` of T neurons.

    Of a layer of one neuron it is then right however small it is.
    """
    found = {log_p: -math.expm1(-_capped_exp(log_width + _log_rate(log_p))) for log_p in layer}
    return max(0.0, math.fsum(layer[log_p] * p for log_p, p in found.items()) - (layer.total() - 1))


def _log_rate(log_p: float) -> float:
    """``log(-log(1 - p))``; a neuron is not found among n with probability ``exp(-n rate)``."""
    if log_p < -40:  # p < 1e-17: then -log(1 - p) is p
        return log_p
    if log_p >= 0:
        return math.inf
    log_not = math.log1p(-math.exp(log_p)) if log_p < -0.7 else math.log(-math.expm1(log_p))
    return math.log(-log_not)


def _capped_exp(x: float) -> float:
    return math.exp(min(x, 100.0))  # exp(-exp(100)) is 0


def _least_width(layers: list[LayerMatches], probability: float, least: int) -> int | float:
    """The least width >= ``least`` whose bound is at least ``probability``, by doubling and bisection."""
    hardest = min(min(layer) for layer in layers)
    if hardest == -math.inf:
        return math.inf

    def suffices(n: int) -> bool:
        return math.prod(_factor(layer, math.log(n)) for layer in layers) >= probability

    if suffices(least):
        return least
    # What the hardest neuron needs alone is too little for all, and within a few doublings of enough.
    log_alone = math.log(-math.log1p(-probability)) - _log_rate(hardest)
    low = max(least, 1 << max(0, int(log_alone / math.log(2)) - 1))
    high = 2 * low
    while not suffices(high):
        low, high = high, 2 * high
    while high - low > max(1, high >> 53):
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
