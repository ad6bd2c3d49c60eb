"""topk_mask and kth_largest: exact selection by score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _native
from ._library import (
    FLOATS,
    HALVES,
    check_same_device,
    check_same_dtype,
    check_tensor,
    library,
    pointer,
    suffix,
)

library.define('topk_mask(Tensor scores, Scalar keep, *, str ties="index") -> Tensor')
library.define('topk_mask.list(Tensor[] scores, Scalar keep, *, str ties="index") -> Tensor[]')
library.define("kth_largest(Tensor scores, SymInt k) -> Tensor")


def check_keep(keep) -> None:
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise TypeError(f"keep: expected an int (count) or a float (density), got {type(keep).__name__}")


def keep_count(keep: int | float, n: int) -> int:
    """How many of ``n`` entries to keep: an int is the count, a float in [0, 1] the density, ``ceil(density * n)``.

    Args:
        keep: count (int) or density (float).
        n: number of entries ranked.

    Raises:
        TypeError: ``keep`` is neither an int nor a float.
        ValueError: a count outside [0, n], a density outside [0, 1] or NaN.

    Example:
        >>> keep_count(0.1, 20_904), keep_count(5, 10)
        (2091, 5)
    """
    check_keep(keep)
    if isinstance(keep, int):
        if not 0 <= keep <= n:
            raise ValueError(f"keep: a count must lie in [0, {n}], got {keep}")
        return keep
    if not 0.0 <= keep <= 1.0:
        raise ValueError(f"keep: a density must lie in [0, 1], got {keep}")
    return min(n, max(0, math.ceil(keep * n - 1e-9)))  # 1e-9: 0.1 * 30 is 3.0000000000000004


def _check(scores: Sequence[Tensor], ties: str) -> None:
    for s in scores:
        check_tensor("scores", s, (*FLOATS, *HALVES))
        check_same_device(scores=scores[0], **{"scores[i]": s})
        check_same_dtype(scores=scores[0], **{"scores[i]": s})
    if ties not in ("index", "legacy"):
        raise ValueError(f"ties: expected 'index' or 'legacy', got {ties!r}")


def _ranked(scores: Tensor) -> Tensor:
    """Contiguous, in a dtype the kernels rank; half precision widens exactly."""
    return (scores.float() if scores.dtype in HALVES else scores).contiguous()


def _raise_nan(is_clean: bool) -> None:
    if not is_clean:
        raise ValueError("scores: expected numbers that can be ranked, got NaN")


def _row_shape(scores: Tensor) -> tuple[int, int]:
    if scores.dim() == 0:
        raise ValueError("scores: expected shape [..., n], got a 0-dimensional tensor")
    n = scores.shape[-1]
    return (scores.numel() // n if n > 0 else 0), n


def _topk_mask_cpu(scores: Tensor, keep: int | float, *, ties: str = "index") -> Tensor:
    _check([scores], ties)
    n_rows, n = _row_shape(scores)
    count, scores = keep_count(keep, n), _ranked(scores)
    mask = torch.empty(scores.shape, dtype=torch.bool)
    run = getattr(_native.cpu, f"topk_mask_rows_{suffix(scores.dtype)}")
    legacy = ties == "legacy"
    _raise_nan(run(pointer(scores), pointer(mask), n_rows, n, count, legacy, torch.get_num_threads()))
    return mask


def _topk_mask_list_cpu(scores: Sequence[Tensor], keep: int | float, *, ties: str = "index") -> list[Tensor]:
    _check(scores, ties)
    count = keep_count(keep, sum(s.numel() for s in scores))
    if not scores:
        return []
    ranked = [_ranked(s) for s in scores]
    masks = [torch.empty(s.shape, dtype=torch.bool) for s in ranked]
    run = getattr(_native.cpu, f"topk_mask_arrays_{suffix(ranked[0].dtype)}")
    sizes, legacy = [s.numel() for s in ranked], ties == "legacy"
    pointers = [pointer(s) for s in ranked], [pointer(m) for m in masks]
    _raise_nan(run(*pointers, sizes, count, legacy, torch.get_num_threads()))
    return masks


def _topk_mask_cuda(scores: Tensor, keep: int | float, *, ties: str = "index") -> Tensor:
    _check([scores], ties)
    n_rows, n = _row_shape(scores)
    count, scores = keep_count(keep, n), _ranked(scores)
    if scores.dtype != torch.float32:
        raise TypeError("scores: expected float32, float16 or bfloat16 on CUDA, got float64")
    module = _native.cuda()
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    workspace = torch.empty(module.topk_mask_workspace(n_rows, n), dtype=torch.uint8, device=scores.device)
    stream = torch.cuda.current_stream(scores.device).cuda_stream
    module.topk_mask(
        pointer(scores),
        pointer(mask),
        pointer(workspace),
        n_rows,
        n,
        count,
        ties == "legacy",
        scores.device.index,
        stream,
    )
    return mask


def _topk_mask_list_cuda(scores: Sequence[Tensor], keep: int | float, *, ties: str = "index") -> list[Tensor]:
    _check(scores, ties)
    count = keep_count(keep, sum(s.numel() for s in scores))
    if not scores:
        return []
    mask = _topk_mask_cuda(torch.cat([s.reshape(-1) for s in scores]), count, ties=ties)
    return [m.reshape(s.shape).clone() for m, s in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]


def _kth_largest_cpu(scores: Tensor, k: int) -> Tensor:
    _check([scores], "index")
    n_rows, n = _row_shape(scores)
    if not 1 <= k <= n:
        raise ValueError(f"k: expected 1 <= k <= {n} (the last dimension of scores), got {k}")
    ranked = _ranked(scores)
    values = torch.empty(scores.shape[:-1], dtype=ranked.dtype)
    run = getattr(_native.cpu, f"kth_largest_{suffix(ranked.dtype)}")
    _raise_nan(run(pointer(ranked), pointer(values), n_rows, n, k, torch.get_num_threads()))
    return values.to(scores.dtype)


def _kth_largest_cuda(scores: Tensor, k: int) -> Tensor:
    _check([scores], "index")
    return scores.topk(k, dim=-1, sorted=True).values[..., -1]


library.impl("topk_mask", _topk_mask_cpu, "CPU")
library.impl("topk_mask.list", _topk_mask_list_cpu, "CPU")
library.impl("topk_mask", _topk_mask_cuda, "CUDA")
library.impl("topk_mask.list", _topk_mask_list_cuda, "CUDA")
library.impl("kth_largest", _kth_largest_cpu, "CPU")
library.impl("kth_largest", _kth_largest_cuda, "CUDA")


@torch.library.register_fake("pns_fast::topk_mask", lib=library)
def _(scores, keep, *, ties="index"):
    _check([scores], ties)
    _row_shape(scores)
    return torch.empty(scores.shape, dtype=torch.bool, device=scores.device)


@torch.library.register_fake("pns_fast::topk_mask.list", lib=library)
def _(scores, keep, *, ties="index"):
    _check(scores, ties)
    return [torch.empty(s.shape, dtype=torch.bool, device=s.device) for s in scores]


@torch.library.register_fake("pns_fast::kth_largest", lib=library)
def _(scores, k):
    _check([scores], "index")
    return scores.new_empty(scores.shape[:-1])


def topk_mask(
    scores: Tensor | Sequence[Tensor], keep: int | float, *, ties: str = "index", check: bool = False
) -> Tensor | list[Tensor]:
    """The mask of the ``keep`` largest scores, exactly.

    ``mask = rank(scores) < keep``, ties to the lowest index. Replaces ``kthvalue`` + comparison, which keeps a wrong
    number where scores tie (SynFlow's zeros, equal magnitudes).

    Args:
        scores: float32, float64, float16 or bfloat16 (CUDA: not float64). A tensor ``[..., n]``: each row on its own.
            A list of tensors of one dtype and any shapes: ranked together.
        keep: an int is a count in [0, n]; a float in [0, 1] a density, of which ``ceil(density * n)`` are kept.
        ties: "index", or "legacy" for the rule "score <= k-th smallest is cut" of SynFlow-style code, which drops all
            ties at the threshold and so may keep fewer.
        check: CUDA only: look for NaN, which synchronises. Without it NaN ranks lowest there; on the CPU it is
            always refused.

    Returns:
        A bool tensor of the shape of ``scores``, or a list of them. Not differentiable; see :func:`supermask`.

    Raises:
        TypeError, ValueError: naming the argument; a NaN score is a ValueError.

    Source: the pruning step of every score-based method; exact-k as in spec section "Pruners".

    Example:
        >>> topk_mask(torch.tensor([0.1, 3.0, 0.2, 0.2]), 2)
        tensor([False,  True,  True, False])
    """
    check_keep(keep)
    if isinstance(scores, Tensor):
        check_tensor("scores", scores)
        if check and scores.is_cuda:
            _raise_nan(not bool(scores.isnan().any()))
        return torch.ops.pns_fast.topk_mask(scores.detach(), keep, ties=ties)
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise TypeError(f"scores: expected a tensor or a list of tensors, got {type(scores).__name__}")
    for s in scores:
        check_tensor("scores", s)
        if check and s.is_cuda:
            _raise_nan(not bool(s.isnan().any()))
    if not scores:
        keep_count(keep, 0)
        return []
    return torch.ops.pns_fast.topk_mask.list([s.detach() for s in scores], keep, ties=ties)


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """The k-th largest score of each row: ``sort(scores, descending)[..., k - 1]``.

    Args:
        scores: float32, float64, float16 or bfloat16 ``[..., n]``.
        k: 1 for the largest, n for the smallest.

    Returns:
        ``[...]`` of the dtype of ``scores``. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument; a NaN score is a ValueError (CUDA: NaN ranks highest, as in torch).

    Source: the threshold of magnitude pruning (Frankle & Carbin 2019).

    Example:
        >>> kth_largest(torch.tensor([[4.0, 1.0, 3.0]]), 2)
        tensor([3.])
    """
    check_tensor("scores", scores)
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k: expected an int, got {type(k).__name__}")
    return torch.ops.pns_fast.kth_largest(scores.detach(), k)
