"""Does a random neuron match a target neuron? The empirical side of Theorem 2: billions of candidates, none stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .ops._library import FLOATS, check_init, check_positive, check_tensor


@dataclass(frozen=True)
class Existence:
    """What a search found; shapes are those of theta without its last dimension ``[..., k]``.

    Attributes:
        index: int64, number of the best candidate (-1: none has a positive scale).
        scale: float64, lambda > 0 (1 where index is -1).
        distance: float64, ``|theta - lambda m|_2`` (NaN where index is -1).
        candidate: float64 ``[..., k]``, its parameters m (NaN where index is -1).
        n_candidates: how many were drawn.
        eps: the tolerance, or None: then all below is None.
        n_matches: int64, candidates of lambda > 0 with distance at most eps, exactly.
        match_probability: float64, ``p_hat = n_matches / n_candidates``.
        match_error: float64, its standard error ``sqrt(p_hat (1 - p_hat) / n_candidates)``. No match at all says that
            p is below ``3 / n_candidates`` with 95% confidence.
        match_bound: float64, the probability of a match in Theorem 2's proof, see :func:`match_bound`.
        existence_bound: float64, Theorem 2's term of this neuron: ``1 - (1 - match_bound)^n_candidates``.
        layer_bound: Theorem 2's factor of a layer of these neurons, ``max(0, 1 - sum (1 - match_bound)^n_candidates)``.
    """

    index: Tensor
    scale: Tensor
    distance: Tensor
    candidate: Tensor
    n_candidates: int
    eps: float | None = None
    n_matches: Tensor | None = None
    match_probability: Tensor | None = None
    match_error: Tensor | None = None
    match_bound: Tensor | None = None
    existence_bound: Tensor | None = None
    layer_bound: float | None = None


def match_bound(theta: Tensor, eps: float, init: str = "uniform") -> Tensor:
    """Theorem 2's probability that a random neuron matches a target neuron, as a lower bound for distance <= eps.

    ``eps_l^k``: each of k parameters, uniform on [-1, 1], lies within eps_l of its target with probability eps_l. With
    ``eps_l = eps / sqrt(k)`` such a neuron has ``|theta - m|_2 <= eps``, and so a distance up to scale of at most eps.
    For normal parameters the paper puts eps_l / 2 for eps_l; near ``|theta_i| = 1`` that is 3% more than is true, since
    the normal density at 1 is 0.242.

    Args:
        theta: float32 or float64 ``[..., k]``, in units of the initial parameters: a weight over sigma_w^(l), a bias
            over the product of sigma_w^(1) to sigma_w^(l), where sigma is the largest value for "uniform" (``s_l`` of
            :func:`pns_fast.init_population`) and the standard deviation for "he_scaled".
        eps: largest distance.
        init: "uniform" or "he_scaled".

    Returns:
        float64 ``[...]``. 0, which bounds anything, where the theorem's assumption ``|theta_i| <= 1 - eps_l`` fails.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Theorem 2 of Fischer & Burkholz 2022 and its proof, appendix A.2.

    Example:
        >>> match_bound(torch.tensor([0.5, -0.25]), eps=0.1)
        tensor(0.0050, dtype=torch.float64)
    """
    flat = _flat(theta).double()
    eps_l = check_positive("eps", eps) / math.sqrt(flat.shape[1])
    check_init(init)
    applies = (flat.abs() <= 1 - eps_l).all(1)
    per_parameter = eps_l if init == "uniform" else eps_l / 2
    return (applies.double() * per_parameter ** flat.shape[1]).reshape(theta.shape[:-1])


def search(
    theta: Tensor,
    n_candidates: int,
    seed: int,
    init: str = "uniform",
    *,
    eps: float | None = None,
    first: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Existence:
    """The best match of each target neuron among up to 2^40 random neurons, and how many match within eps.

    ``lambda(m) = theta.m / |m|^2``, ``q(m) = |theta - lambda(m) m|_2``; the candidate of least q with lambda > 0 wins,
    the lowest number on ties. Unlike planting, a candidate may serve several targets.

    Args:
        theta: float32 or float64 ``[..., k]``: the k non-zero parameters (weights, and the bias if it is not zero) of
            target neurons, in units of the initial parameters (see :func:`match_bound`). On a CUDA device the search
            runs there, with the same result.
        n_candidates: 1 to 2^40; 10^9 of k = 5 take about a second on two cores.
        seed: 0 <= seed < 2^63. Candidate i of (seed, k, init) is the same in every search.
        init: a candidate's parameters are "uniform" on [-1, 1], as in Theorem 2, or normal of variance 1, "he_scaled".
        eps: tolerance for counting matches; None: only the best is searched.
        first: number of the first candidate, so that a search can be split.
        progress: called as ``progress(done, n_candidates)`` about every 50 ms; what it raises ends the search.

    Returns:
        :class:`Existence`, on the device of theta. It does not depend on the number of threads or the processor.

    Raises:
        TypeError, ValueError: naming the argument. KeyboardInterrupt within 0.1 s of Ctrl-C.

    Source: Theorem 2 and Algorithm 1 of Fischer & Burkholz 2022.

    Example:
        >>> found = search(torch.tensor([0.5, -0.25, 0.5]), 1_000_000, seed=0, eps=0.01)
        >>> found.distance.item() <= 0.01, found.match_bound.item() < found.match_probability.item() < 1e-3
        (True, True)
    """
    flat = _flat(theta)
    found = ops.existence_search(flat, n_candidates, seed, init, eps, first, progress)
    lead = theta.shape[:-1]
    shaped = [t.reshape(lead) for t in (found.index, found.scale, found.distance)]
    n = int(n_candidates)
    if eps is None:
        return Existence(*shaped, found.candidate.reshape(theta.shape), n)
    p = found.n_matches.reshape(lead).double() / n
    bound = match_bound(theta, eps, init)
    no_match = torch.exp(n * torch.log1p(-bound))
    return Existence(
        *shaped, found.candidate.reshape(theta.shape), n, float(eps),
        n_matches=found.n_matches.reshape(lead), match_probability=p, match_error=(p * (1 - p) / n).sqrt(),
        match_bound=bound, existence_bound=1 - no_match, layer_bound=max(0.0, 1 - float(no_match.sum())),
    )  # fmt: skip


def _flat(theta: Tensor) -> Tensor:
    check_tensor("theta", theta, FLOATS)
    if theta.dim() == 0 or theta.numel() == 0:
        raise ValueError(f"theta: expected shape [..., k] with at least one parameter, got {tuple(theta.shape)}")
    return theta.detach().reshape(-1, theta.shape[-1])
