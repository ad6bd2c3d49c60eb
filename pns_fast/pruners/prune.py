"""Score, threshold, mask: pruning of whole populations in one call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops, rng
from ..networks import Masks, Population
from . import registry
from .allocate import SCOPES, allocate
from .batch import check_batch
from .checks import LOSSES, check_choice, check_count, check_density, check_masks, check_population
from .problem import PopulationProblem

SCHEDULES = ("exponential", "linear")


@torch.inference_mode(False)  # scores are gradients, wherever the caller is
def score(
    population: Population,
    name: str,
    batch: tuple[Tensor, Tensor] | None = None,
    loss: str = "cross_entropy",
    seed: int | Sequence[int] = 0,
    masks: Masks | None = None,
) -> Tensor:
    """The scores a pruner gives every parameter of every network; larger is kept.

    Args:
        population: N networks.
        name: a pruner out of ``names()``.
        batch: ``x [B, n_0]`` or ``[N, B, n_0]`` and ``y [B]`` or ``[N, B]`` (int64) for cross-entropy,
            ``[B, n_L]`` or ``[N, B, n_L]`` for MSE, on the population's device or on the CPU; SNIP and GraSP need
            it. See :func:`pruning_batch`.
        loss: "cross_entropy" or "mse".
        seed: for the random pruner, an int or N ints.
        masks: parameters pruned before; None for none.

    Returns:
        ``[N, P]`` in the flat layout ``[W1 | b1 | W2 | b2 | ...]``; -inf where ``masks`` is False, unless the pruner
        is one that revives (FORCE), which scores pruned parameters as well.

    Raises:
        TypeError, ValueError: an argument that does not fit, or a kept score that is not finite.

    Source: the table "Pruners"; one file each in ``pns_fast/pruners``.

    >>> from pns_fast import Population
    >>> net = Population([torch.tensor([[[3.0, -4.0]]])], [torch.tensor([[0.5]])])
    >>> score(net, "magnitude")
    tensor([[3.0000, 4.0000, 0.5000]])
    """
    check_population(population)
    registry.get(name)
    check_choice("loss", loss, LOSSES)
    masks, keys = check_masks(population, masks), rng.network_keys(seed, population.n)
    return score_by_key(population, name, check_batch(batch, population, loss), loss, keys, masks)


def score_by_key(
    population: Population,
    name: str,
    batch: tuple[Tensor, Tensor] | None,
    loss: str,
    keys: Sequence[tuple[int, int]],
    masks: Masks,
    start: Masks | None = None,
) -> Tensor:
    """:func:`score` of checked arguments: a batch out of ``check_batch``, the (seed, network) key of each network.

    A pruner that revives chooses from ``start``, the masks before the first round (None: from everything).
    """
    problem = PopulationProblem(population, masks, batch, loss, keys)
    flat = torch.cat([s.flatten(1) for s in registry.run(name, problem)], dim=1)
    if registry.revives(name):
        masks = Masks.full(population) if start is None else start
    kept = masks.flatten()
    broken = (kept & ~torch.isfinite(flat)).any(1)
    if broken.any():
        networks = broken.nonzero().flatten().tolist()
        raise ValueError(f"{name}: scores are not finite (NaN or infinity) in networks {networks}")
    return flat.masked_fill(~kept, -torch.inf)


def threshold(
    scores: Tensor, masks: Masks | None, widths: Sequence[int], density: float, scope: str = "global"
) -> Masks:
    """Keeps the ``ceil(density * n - 1e-9)`` largest of the n scores of each scope, exactly.

    n counts all parameters of the scope, those pruned before too. Ties go to the lowest index in the flat
    layout. What ``masks`` has pruned stays pruned: where it keeps fewer, just those stay.

    Args:
        scores: ``[N, P]`` in the flat layout.
        masks: parameters pruned before; None for none.
        widths: ``(n_0, ..., n_L)``.
        density: fraction kept, in (0, 1].
        scope: "global"; "layer", each layer's weights and biases together at the same density; or "erk", each layer
            at a density of its own, see :func:`pns_fast.pruners.allocate`.

    Returns:
        Masks of N networks.

    Raises:
        TypeError, ValueError: an argument that does not fit, or a NaN score.

    >>> threshold(torch.tensor([[3.0, 4.0, 0.5]]), None, (2, 1), density=0.5).flatten()
    tensor([[ True,  True, False]])
    """
    return thresholds(scores, masks, widths, [density], scope)[0]


def thresholds(
    scores: Tensor, masks: Masks | None, widths: Sequence[int], densities: Sequence[float], scope: str = "global"
) -> list[Masks]:
    """:func:`threshold` at several densities of the same scores.

    Args:
        scores, masks, widths, scope: see :func:`threshold`.
        densities: fractions kept, in (0, 1].

    Returns:
        Masks of N networks for each density.

    Raises:
        TypeError, ValueError: an argument that does not fit, or a NaN score.

    >>> [m.kept() for m in thresholds(torch.tensor([[3.0, 4.0, 0.5]]), None, (2, 1), [0.3, 0.5])]
    [tensor([1]), tensor([2])]
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError(f"scores: expected a floating point tensor, got {getattr(scores, 'dtype', scores)!r}")
    densities = [check_density(density) for density in densities]
    check_choice("scope", scope, SCOPES)
    shapes = [[(n_out, n_in), (n_out,)] for n_in, n_out in itertools.pairwise(widths)]
    sizes = [n_out * (n_in + 1) for n_in, n_out in itertools.pairwise(widths)]
    if scores.dim() != 2 or scores.shape[1] != sum(sizes):
        raise ValueError(
            f"scores: expected shape [N, {sum(sizes)}] for widths {tuple(widths)}, got {list(scores.shape)}"
        )
    kept = _flat_masks(masks, scores, widths)
    nan = torch.isnan(scores)
    if (nan if kept is None else nan & kept).any():
        raise ValueError("scores: expected no NaN")
    # a kept -inf still ranks above everything pruned
    ranked = scores.clamp_min(torch.finfo(scores.dtype).min)
    if kept is not None:
        ranked = ranked.masked_fill(~kept, -torch.inf)
    parts = [part.contiguous() for part in ([ranked] if scope == "global" else ranked.split(sizes, dim=1))]
    found = []
    for density in densities:
        counts = allocate(shapes, density, scope)
        top = torch.cat([ops.topk_mask(part, k) for part, k in zip(parts, counts, strict=True)], dim=1)
        found.append(Masks.from_flat(top if kept is None else top & kept, widths))
    return found


def _flat_masks(masks: Masks | None, scores: Tensor, widths: Sequence[int]) -> Tensor | None:
    if masks is None:
        return None
    if not isinstance(masks, Masks):
        raise TypeError(f"masks: expected Masks or None, got {type(masks).__name__}")
    if (masks.n, masks.widths, masks.device) != (len(scores), tuple(widths), scores.device):
        raise ValueError(
            f"masks: expected {len(scores)} networks of widths {tuple(widths)} on {scores.device}, "
            f"got {masks.n} of {masks.widths} on {masks.device}"
        )
    return masks.flatten()


@torch.inference_mode(False)  # scores are gradients, wherever the caller is
def prune(
    population: Population,
    name: str,
    density: float,
    batch: tuple[Tensor, Tensor] | None = None,
    loss: str = "cross_entropy",
    scope: str = "global",
    rounds: int = 1,
    schedule: str = "exponential",
    seed: int | Sequence[int] = 0,
    masks: Masks | None = None,
) -> Masks:
    """Prunes every network to ``density`` in ``rounds`` rounds of score and threshold.

    After round r of R the density is ``density^(r/R)`` (exponential) or ``1 - (1 - density) r/R`` (linear).

    Args:
        population: N networks.
        name: a pruner out of ``names()``.
        density: fraction of parameters kept at the end, in (0, 1].
        batch, loss, seed, masks: see :func:`score`.
        scope: "global"; "layer" for the same density in each layer; "erk" for one that suits its shape, see
            :func:`pns_fast.pruners.allocate`. Random pruning by layer is "random" with one of the last two.
        rounds: number of rounds R. SNIP in rounds is iterative SNIP; where what was pruned shall come back, "force".
        schedule: "exponential" or "linear".

    Returns:
        Masks with exactly ``ceil(density * n - 1e-9)`` parameters kept a scope ("erk": in all), or fewer where
        ``masks`` kept fewer. A network's masks do not depend on which other networks are in the population. What
        ``masks`` has pruned stays pruned; what a round has pruned comes back only where the pruner revives (FORCE).

    Raises:
        TypeError, ValueError: an argument that does not fit, or a score that is not finite.

    Source: Fischer & Burkholz 2022, Section 3 (single-shot); Tanaka et al. 2020 (rounds).

    >>> from pns_fast import init_population
    >>> masks = prune(init_population((2, 10, 4), n=3), "synflow", density=0.1, rounds=10)
    >>> masks.kept()  # ceil(0.1 * 74)
    tensor([8, 8, 8])
    """
    density = check_density(density)
    check_choice("scope", scope, SCOPES)
    check_choice("schedule", schedule, SCHEDULES)
    rounds = check_count("rounds", rounds, 1)
    masks = check_masks(check_population(population), masks)
    registry.get(name)
    check_choice("loss", loss, LOSSES)
    batch, keys, start = check_batch(batch, population, loss), rng.network_keys(seed, population.n), masks
    for r in range(1, rounds + 1):
        scores = score_by_key(population, name, batch, loss, keys, masks, start)
        masks = next_masks(name, scores, masks, start, round_density(density, r, rounds, schedule), scope)
    return masks


def next_masks(name: str, scores: Tensor, masks: Masks, start: Masks, density: float, scope: str) -> Masks:
    """What a round of pruner ``name`` keeps: out of ``masks``, or where it revives out of ``start``."""
    return threshold(scores, start if registry.revives(name) else masks, masks.widths, density, scope)


def round_density(density: float, r: int, rounds: int, schedule: str) -> float:
    """The density after round r of ``rounds``; exactly ``density`` after the last.

    Args:
        density: after the last round.
        r: the round, from 1 to ``rounds``.
        rounds: how many there are.
        schedule: "exponential", ``density^(r/R)``, or "linear", ``1 - (1 - density) r/R``.

    Returns:
        The density as a float.

    >>> [round_density(0.01, r, 2, "exponential") for r in (1, 2)]
    [0.1, 0.01]
    """
    if r == rounds:
        return density
    if schedule == "linear":
        return 1 - (1 - density) * r / rounds
    return math.pow(density, r / rounds)
