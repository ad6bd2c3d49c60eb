"""prune_module: the pruners of populations for any nn.Module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import ops, rng
from ..pruners import SCOPES, allocate, registry, round_density
from ..pruners.checks import check_choice, check_count, check_density, differentiable
from ..pruners.prune import SCHEDULES
from .masked_layer import check_mask
from .model import NamedMasks, check_masks, get_masks, unwrap
from .module_problem import Batches, ModuleProblem, check_batches, evaluating, prunable_parameters


@torch.inference_mode(False)  # scores are gradients, wherever the caller is
def score_module(
    model: nn.Module,
    pruner: str,
    batches: Iterable | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    seed: int = 0,
    masks: NamedMasks | None = None,
    include_bias: bool = True,
    ignore: Sequence[str] = (),
) -> dict[str, Tensor]:
    """The scores a pruner gives the parameters of a module; larger is kept.

    Args:
        model, pruner, batches, loss_fn, seed, masks, include_bias, ignore: see :func:`prune_module`.

    Returns:
        Parameter name -> scores of its shape, -inf where it is pruned already (unless the pruner revives).

    Raises:
        TypeError, ValueError: an argument that does not fit, or a kept score that is not finite.

    Source: the table "Pruners"; one file each in ``pns_fast/pruners``.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> torch.equal(score_module(model, "magnitude")["weight"], model.weight.abs())
        True
    """
    model = unwrap(model)
    masks = _start_masks(model, masks, include_bias, ignore)
    start = {name: torch.ones_like(mask) for name, mask in masks.items()}
    return _scores(model, pruner, masks, start, check_batches(batches), loss_fn, _key(seed))


@torch.inference_mode(False)  # scores are gradients, wherever the caller is
def prune_module(
    model: nn.Module,
    pruner: str,
    density: float,
    batches: Iterable | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    scope: str = "global",
    rounds: int = 1,
    schedule: str = "exponential",
    seed: int = 0,
    masks: NamedMasks | None = None,
    include_bias: bool = True,
    ignore: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Prunes any module to ``density`` in rounds of score and threshold, as :func:`pns_fast.prune` a population.

    Weights of two and more dimensions are pruned (linear, convolution, embedding, attention, ...) and the biases
    beside them; norms and parametrised weights never. Scores are taken in evaluation mode.

    A module made of a population, ``population.module(0)``, gets that network's masks: bit for bit by random and
    magnitude, and by every pruner if it is a :func:`mask_model`, which shares the population's arithmetic; otherwise
    up to rounding, which may flip a ReLU near 0 or swap scores that are nearly equal.

    Args:
        model: any module; it is not changed. Of masked layers, what they keep is where pruning starts.
        pruner: out of ``pns_fast.pruners.names()``.
        density: fraction of these parameters kept at the end, in (0, 1].
        batches: (x, y) pairs (a list, a DataLoader, or one pair of tensors) on the model's device; x may be a tuple
            of arguments. SNIP and GraSP score by the loss on all of them, SynFlow takes the input's shape from x.
        loss_fn: ``loss_fn(model(x), y)``, the mean over samples, ``torch.nn.functional.cross_entropy`` for instance.
        scope: "global"; "layer" for the same density in each module (its weight and bias together); "erk" for one
            that suits its shape, see :func:`pns_fast.pruners.allocate`.
        rounds: number of rounds R.
        schedule: "exponential", ``density^(r/R)`` after round r, or "linear".
        seed: for the random pruner.
        masks: parameters pruned before, by name; a parameter without one is kept so far. None: the model's own.
        include_bias: False leaves all biases as they are.
        ignore: shell patterns of parameter names to leave as they are, ``("head.*",)``.

    Returns:
        Parameter name -> bool mask for :func:`mask_model`, :func:`finalize`, :func:`keep_pruned`, :func:`save_masks`.
        Exactly ``ceil(density * n - 1e-9)`` of a scope's n parameters ("erk": of all) are kept, ties to the first, or
        fewer where ``masks`` kept fewer.

    Raises:
        TypeError, ValueError: an argument that does not fit, or a score that is not finite.

    Source: Fischer & Burkholz 2022, Section 3; Tanaka et al. 2020 (rounds).

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 10))
        >>> batch = torch.randn(8, 1, 8, 8), torch.arange(8)
        >>> masks = prune_module(model, "snip", 0.1, batch, torch.nn.functional.cross_entropy)
        >>> sum(int(mask.sum()) for mask in masks.values())  # ceil(0.1 * (36 + 4 + 1440 + 10))
        149
    """
    density = check_density(density)
    check_choice("scope", scope, SCOPES)
    check_choice("schedule", schedule, SCHEDULES)
    rounds = check_count("rounds", rounds, 1)
    model = unwrap(model)
    start = masks = _start_masks(model, masks, include_bias, ignore)
    key, batches, revives = _key(seed), check_batches(batches), registry.revives(pruner)
    for r in range(1, rounds + 1):
        scores = _scores(model, pruner, masks, start, batches, loss_fn, key)
        masks = _threshold(scores, start if revives else masks, round_density(density, r, rounds, schedule), scope)
    return masks


def _key(seed: int) -> tuple[int, int]:
    """That of the only network of a population with this seed."""
    return rng.network_keys(check_count("seed", seed, 0), 1)[0]


def _start_masks(
    model: nn.Module, masks: NamedMasks | None, include_bias: bool, ignore: Sequence[str]
) -> dict[str, Tensor]:
    """A mask for every parameter to prune, in the model's order."""
    if isinstance(ignore, str) or not isinstance(ignore, Iterable):
        raise TypeError(f"ignore: expected a sequence of patterns, got {ignore!r}")
    parameters = prunable_parameters(model, include_bias, ignore)
    given = get_masks(model) if masks is None else {name: mask for name, (_, mask) in check_masks(model, masks).items()}
    for name, mask in given.items():
        if masks is not None and name not in parameters:
            raise ValueError(f"masks: expected names of parameters that are pruned, got {name!r}")
        if name in parameters:
            check_mask(f"masks[{name!r}]", mask, parameters[name])
    full = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
    return {name: differentiable(given[name].to(m.device)) if name in given else m for name, m in full.items()}


def _scores(
    model: nn.Module,
    pruner: str,
    masks: dict[str, Tensor],
    start: dict[str, Tensor],
    batches: Batches,
    loss_fn: Callable[..., Tensor] | None,
    key: tuple[int, int],
) -> dict[str, Tensor]:
    """The scores at ``masks`` of what may be kept: that is ``masks``, for a pruner that revives ``start``."""
    allowed = start if registry.revives(pruner) else masks
    # GraSP differentiates twice, which torch's fused attention does not support
    with evaluating(model), sdpa_kernel(SDPBackend.MATH):
        found = registry.run(pruner, ModuleProblem(model, masks, batches, loss_fn, key))
    scores = {}
    for (name, mask), score in zip(allowed.items(), found, strict=True):
        if not (torch.isfinite(score[0]) | ~mask).all():
            raise ValueError(f"{pruner}: scores of {name} are not finite (NaN or infinity)")
        scores[name] = score[0].masked_fill(~mask, -torch.inf)
    return scores


def _threshold(scores: dict[str, Tensor], masks: dict[str, Tensor], density: float, scope: str) -> dict[str, Tensor]:
    """Keeps the largest scores of each scope; the rules are those of :func:`pns_fast.pruners.threshold`."""
    layers: dict[str, list[str]] = {}
    for name in scores:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    counts = allocate([[scores[n].shape for n in names] for names in layers.values()], density, scope)
    kept = {}
    for names, count in zip([list(scores)] if scope == "global" else layers.values(), counts, strict=True):
        dtype = torch.float64 if len({scores[n].dtype for n in names}) > 1 else scores[names[0]].dtype
        # a kept score ranks above everything pruned: kept scores are finite
        top = ops.topk_mask([scores[n].to(dtype).contiguous() for n in names], count)
        kept |= {n: t & masks[n] for n, t in zip(names, top, strict=True)}
    return {name: kept[name] for name in scores}
