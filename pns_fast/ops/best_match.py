"""best_match: the search inside planting (Algorithm 1 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from ..reference.best_match import BestMatch
from ._library import (
    FLOATS,
    check_same_device,
    check_shape,
    check_tensor,
    library,
    pointer,
)

library.define(
    "best_match(Tensor target, Tensor support, Tensor candidates, Tensor? available=None) -> (Tensor, Tensor, Tensor)"
)


def _check(target: Tensor, support: Tensor, candidates: Tensor, available: Tensor | None) -> None:
    check_tensor("target", target, FLOATS)
    check_tensor("support", support, (torch.bool,))
    check_tensor("candidates", candidates, FLOATS)
    if target.dim() < 2:
        raise ValueError(f"target: expected shape [..., T, P], got {tuple(target.shape)}")
    lead, n_parameters = tuple(target.shape[:-2]), target.shape[-1]
    check_shape("support", support, target.shape, "that of target")
    if candidates.dim() != target.dim() or tuple(candidates.shape[:-2]) != lead or candidates.shape[-1] != n_parameters:
        shape = ", ".join([*map(str, lead), "C", str(n_parameters)])
        raise ValueError(f"candidates: expected shape [{shape}] to go with target, got {tuple(candidates.shape)}")
    if available is not None:
        check_tensor("available", available, (torch.bool,))
        check_shape("available", available, candidates.shape[:-1], "that of candidates without its last dimension")
    check_same_device(target=target, support=support, candidates=candidates, available=available)


_MATCH = {torch.float32: _native.cpu.best_match_f32, torch.float64: _native.cpu.best_match_f64}


def _best_match_cpu(
    target: Tensor, support: Tensor, candidates: Tensor, available: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    _check(target, support, candidates, available)
    n_targets, n_parameters = target.shape[-2:]
    n_candidates = candidates.shape[-2]
    shape = target.shape[:-1]
    index = torch.empty(shape, dtype=torch.int64)
    scale, distance = torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.float64)
    theta, on, pool = target.contiguous(), support.contiguous(), candidates.contiguous()
    free = None if available is None else available.contiguous()
    is_finite = _MATCH[pool.dtype](
        shape[:-1].numel(),
        n_targets,
        n_candidates,
        n_parameters,
        pointer(theta),
        theta.dtype == torch.float64,
        pointer(on),
        pointer(pool),
        pointer(free),
        pointer(index),
        pointer(scale),
        pointer(distance),
        torch.get_num_threads(),
    )
    if not is_finite:
        raise ValueError("target: expected finite numbers, got NaN or inf")
    dtype = torch.promote_types(target.dtype, candidates.dtype)
    return index, scale.to(dtype), distance.to(dtype)


def _best_match_cuda(
    target: Tensor, support: Tensor, candidates: Tensor, available: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    _check(target, support, candidates, available)
    module, device, shape = _native.cuda(), target.device, target.shape[:-1]
    sizes = shape[:-1].numel(), shape[-1], candidates.shape[-2], target.shape[-1]
    dtype = torch.promote_types(target.dtype, candidates.dtype)
    index = torch.empty(shape, dtype=torch.int64, device=device)
    scale, distance = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
    workspace = torch.empty(module.best_match_workspace(*sizes), dtype=torch.uint8, device=device)
    theta, on, pool = target.contiguous(), support.contiguous(), candidates.contiguous()
    free = None if available is None else available.contiguous()
    module.best_match(
        n_problems=sizes[0], n_targets=sizes[1], n_candidates=sizes[2], n_parameters=sizes[3],
        target=pointer(theta), target_is_f64=theta.dtype == torch.float64, support=pointer(on),
        candidates=pointer(pool), candidates_are_f64=pool.dtype == torch.float64, available=pointer(free),
        index=pointer(index), scale=pointer(scale), distance=pointer(distance),
        results_are_f64=dtype == torch.float64, workspace=pointer(workspace), device=device.index,
        stream=torch._C._cuda_getCurrentRawStream(device.index),  # 0.1 us, torch.cuda.current_stream 2
    )  # fmt: skip
    return index, scale, distance


library.impl("best_match", _best_match_cpu, "CPU")
library.impl("best_match", _best_match_cuda, "CUDA")


@torch.library.register_fake("pns_fast::best_match", lib=library)
def _(target, support, candidates, available=None):
    _check(target, support, candidates, available)
    dtype = torch.promote_types(target.dtype, candidates.dtype)
    shape = target.shape[:-1]
    return (
        target.new_empty(shape, dtype=torch.int64),
        target.new_empty(shape, dtype=dtype),
        target.new_empty(shape, dtype=dtype),
    )


def best_match(target: Tensor, support: Tensor, candidates: Tensor, available: Tensor | None = None) -> BestMatch:
    """For each target neuron, in order, the free candidate it is closest to up to a positive scale.

    ``lambda(m) = theta.m / |m|^2``, ``q(m) = |theta - lambda(m) m|_2`` over the target's support; the candidate of
    least q with lambda > 0 wins (lowest index on ties) and serves no later target.

    Args:
        target: float32 or float64 ``[..., T, P]``: T target neurons of P parameters.
        support: bool ``[..., T, P]``: which parameters count, the target's non-zero ones.
        candidates: float32 or float64 ``[..., C, P]``.
        available: bool ``[..., C]`` or None for all: candidates that may be taken.

    Returns:
        BestMatch(index int64, scale, distance), each ``[..., T]``. Where the support is empty or no free candidate has
        a positive scale: index -1, scale 1, distance NaN. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument; a target that is not finite is a ValueError (CUDA: it gets index -1,
        scale 1, distance NaN, since looking for it would wait for the device).

    CUDA: the same bits. Nothing waits for the device, so the call can be captured in a graph.

    Source: Algorithm 1 and appendix A.3 of Fischer & Burkholz 2022.

    Example:
        >>> target, candidates = torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.5, 1.0], [-1.0, -2.0]])
        >>> best_match(target, target != 0, candidates)
        BestMatch(index=tensor([1]), scale=tensor([4.]), distance=tensor([0.]))
    """
    for name, value in (("target", target), ("support", support), ("candidates", candidates)):
        if not isinstance(value, Tensor):
            check_tensor(name, value)
    if available is not None:
        check_tensor("available", available)
    return BestMatch(*torch.ops.pns_fast.best_match(target.detach(), support, candidates.detach(), available))
