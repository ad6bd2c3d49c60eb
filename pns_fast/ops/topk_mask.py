"""topk_mask and kth_largest: exact selection by score."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _native
from . import _memory
from ._keep import check_keep, check_rank, keep_count
from ._library import (
    FLOATS,
    HALVES,
    check_same_device,
    check_same_dtype,
    check_shape,
    check_tensor,
    is_transformed,
    library,
    pointer,
)

_OPTIONS = 'Scalar keep, *, str ties="index", Tensor? hint=None'
library.define(f"topk_mask(Tensor scores, {_OPTIONS}) -> Tensor")
library.define(f"topk_mask.list(Tensor[] scores, {_OPTIONS}) -> Tensor[]")
library.define(f"topk_mask.threshold(Tensor scores, {_OPTIONS}) -> (Tensor, Tensor)")
library.define(f"topk_mask.list_threshold(Tensor[] scores, {_OPTIONS}) -> (Tensor[], Tensor)")
# not named "out", since they return the threshold
library.define(f"topk_mask.into(Tensor scores, {_OPTIONS}, Tensor(a!) out) -> Tensor")
library.define(f"topk_mask.list_into(Tensor[] scores, {_OPTIONS}, Tensor(a!)[] out) -> Tensor")
library.define("kth_largest(Tensor scores, SymInt k, *, Tensor? hint=None) -> Tensor")

_OPS = torch.ops.pns_fast
_DTYPES = (*FLOATS, *HALVES)
_SUFFIXES = dict(zip(_DTYPES, ("f32", "f64", "f16", "bf16"), strict=True))
_ROWS, _ARRAYS, _KTH = (
    {dtype: getattr(_native.cpu, f"{name}_{suffix}") for dtype, suffix in _SUFFIXES.items()}
    for name in ("topk_mask_rows", "topk_mask_arrays", "kth_largest")
)


def _check(scores: Tensor, ties: str, hint: Tensor | None) -> None:
    check_tensor("scores", scores, _DTYPES)
    if scores.dim() == 0:
        raise ValueError("scores: expected shape [..., n], got a 0-dimensional tensor")
    _check_ties(ties)
    if hint is not None:
        _check_hint(hint, scores, _row_shape(scores))


def _check_list(scores: Sequence[Tensor], ties: str, hint: Tensor | None) -> None:
    for s in scores:
        check_tensor("scores", s, _DTYPES)
        check_same_device(scores=scores[0], **{"scores[i]": s})
        check_same_dtype(scores=scores[0], **{"scores[i]": s})
    _check_ties(ties)
    if hint is not None:
        _check_hint(hint, scores[0], ())


def _row_shape(scores: Tensor) -> Sequence[int]:
    """``[...]`` of ``[..., n]``; slicing a torch.Size costs 0.7 us with what follows."""
    return () if scores.dim() == 1 else scores.shape[:-1]


def _check_ties(ties: str) -> None:
    if ties not in ("index", "legacy"):
        raise ValueError(f"ties: expected 'index' or 'legacy', got {ties!r}")


def _check_hint(hint: Tensor, scores: Tensor, shape: Sequence[int]) -> None:
    check_tensor("hint", hint, _DTYPES)
    check_shape("hint", hint, shape, "one threshold a row; of a list, one")
    check_same_device(scores=scores, hint=hint)


def _check_out(out: Tensor, scores: Tensor) -> None:
    check_tensor("out", out, (torch.bool,))
    check_shape("out", out, scores.shape, "that of scores")
    check_same_device(scores=scores, out=out)
    if not out.is_contiguous():
        raise ValueError(f"out: expected a contiguous tensor, got strides {out.stride()}")


def _say_written(out: Tensor) -> None:
    """As torch's in-place operations do: autograd, and the index of a mask on CUDA, know a change by the version."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def _raise_nan() -> None:
    raise ValueError("scores: expected numbers that can be ranked, got NaN")


def _rows(scores: Tensor) -> tuple[int, int]:
    shape = scores.shape
    return (1, shape[0]) if len(shape) == 1 else (shape[:-1].numel(), shape[-1])


def _pointer_in(dtype: torch.dtype, hint: Tensor) -> tuple[Tensor, int]:
    """The hint as the kernel reads it, and its address: the caller keeps the tensor alive."""
    hint = hint.to(dtype).contiguous()
    return hint, hint.data_ptr()


def _run_rows(scores: Tensor, keep: int | float, ties: str, hint: Tensor | None, mask: Tensor, threshold) -> None:
    scores, (n_rows, n), dtype = scores.contiguous(), _rows(scores), scores.dtype
    hint, at_hint = (None, 0) if hint is None else _pointer_in(dtype, hint)
    at_threshold = 0 if threshold is None else threshold.data_ptr()
    where, count, legacy = (scores.data_ptr(), mask.data_ptr(), n_rows, n), keep_count(keep, n), ties == "legacy"
    if not _ROWS[dtype](*where, count, legacy, torch.get_num_threads(), at_hint, at_threshold):
        _raise_nan()


def _run_list(scores, keep: int | float, ties: str, hint: Tensor | None, masks: Sequence[Tensor], threshold) -> None:
    count = keep_count(keep, sum(s.numel() for s in scores))
    scores, dtype = [s.contiguous() for s in scores], scores[0].dtype
    hint, at_hint = (None, 0) if hint is None else _pointer_in(dtype, hint)
    where = [pointer(s) for s in scores], [pointer(m) for m in masks], [s.numel() for s in scores]
    legacy, threads = ties == "legacy", torch.get_num_threads()
    if not _ARRAYS[dtype](*where, count, legacy, threads, at_hint, pointer(threshold)):
        _raise_nan()


def _run_rows_cuda(scores: Tensor, keep: int | float, ties: str, hint, mask: Tensor | None, threshold) -> None:
    """Of no mask, the threshold alone. Nothing waits for the device, so that it can be captured in a graph."""
    module, score_type = _cuda_type(scores.dtype)
    scores, (n_rows, n) = scores.contiguous(), _rows(scores)
    hint, at_hint = (None, 0) if hint is None else _pointer_in(scores.dtype, hint)
    workspace = _workspace(scores, n_rows, n, 0)
    where = scores.data_ptr(), pointer(mask), at_hint, pointer(threshold), pointer(workspace), n_rows, n
    module.topk_mask(score_type, *where, keep_count(keep, n), ties == "legacy", *_queue(scores))


def _run_list_cuda(scores, keep: int | float, ties: str, hint, masks: Sequence[Tensor], threshold) -> None:
    module, score_type = _cuda_type(scores[0].dtype)
    scores, sizes = [s.contiguous() for s in scores], [s.numel() for s in scores]
    hint, at_hint = (None, 0) if hint is None else _pointer_in(scores[0].dtype, hint)
    n = sum(sizes)
    workspace = _workspace(scores[0], 1, n, len(sizes))
    where = [pointer(s) for s in scores], [pointer(m) for m in masks], sizes, at_hint, pointer(threshold)
    queue = pointer(workspace), n, keep_count(keep, n), ties == "legacy", *_queue(scores[0])
    module.topk_mask_list(score_type, *where, *queue)


@functools.cache
def _cuda_type(dtype: torch.dtype):
    if dtype == torch.float64:
        raise TypeError("scores: expected float32, float16 or bfloat16 on CUDA, got float64")
    module = _native.cuda()
    return module, getattr(module.ScoreType, _SUFFIXES[dtype])


def _workspace(scores: Tensor, n_rows: int, n: int, n_tensors: int) -> Tensor | None:
    n_bytes = _native.cuda().topk_mask_workspace(n_rows, n, n_tensors)
    return torch.empty(n_bytes, dtype=torch.uint8, device=scores.device) if n_bytes > 0 else None


def _queue(scores: Tensor) -> tuple[int, int]:
    index = scores.get_device()
    return index, torch._C._cuda_getCurrentRawStream(index)  # 0.1 us, torch.cuda.current_stream 2


def _empty_mask(scores: Tensor) -> Tensor:
    # 0.7 us, where torch.empty with a shape and a device takes 1.8
    return torch.empty_like(scores, dtype=torch.bool, memory_format=torch.contiguous_format)


def _empty_mask_cpu(scores: Tensor) -> Tensor:
    return _empty_mask(scores) if scores.numel() < _memory.SMALLEST else _memory.empty(scores.shape, torch.bool)


def _register(register, run_rows, run_list, empty_mask=_empty_mask) -> dict:
    """The overloads of topk_mask, for a device or fake, around two runs that write masks and thresholds."""

    def mask_only(scores, keep, *, ties="index", hint=None):
        _check(scores, ties, hint)
        mask = empty_mask(scores)
        run_rows(scores, keep, ties, hint, mask, None)
        return mask

    def mask_and_threshold(scores, keep, *, ties="index", hint=None):
        _check(scores, ties, hint)
        mask, threshold = empty_mask(scores), scores.new_empty(_row_shape(scores))
        run_rows(scores, keep, ties, hint, mask, threshold)
        return mask, threshold

    def into(scores, keep, *, ties="index", hint=None, out):
        _check(scores, ties, hint)
        _check_out(out, scores)
        threshold = scores.new_empty(_row_shape(scores))
        run_rows(scores, keep, ties, hint, out, threshold)
        _say_written(out)
        return threshold

    def list_only(scores, keep, *, ties="index", hint=None):
        return list_and_threshold(scores, keep, ties=ties, hint=hint)[0]

    def list_and_threshold(scores, keep, *, ties="index", hint=None):
        _check_list(scores, ties, hint)
        masks, threshold = [empty_mask(s) for s in scores], scores[0].new_full((), math.nan)
        run_list(scores, keep, ties, hint, masks, threshold)
        return masks, threshold

    def list_into(scores, keep, *, ties="index", hint=None, out):
        _check_list(scores, ties, hint)
        if len(out) != len(scores):
            raise ValueError(f"out: expected {len(scores)} tensors, one for each of scores, got {len(out)}")
        for o, s in zip(out, scores, strict=True):
            _check_out(o, s)
        threshold = scores[0].new_full((), math.nan)
        run_list(scores, keep, ties, hint, out, threshold)
        for o in out:
            _say_written(o)
        return threshold

    overloads = {"": mask_only, ".list": list_only, ".threshold": mask_and_threshold, ".into": into}
    overloads |= {".list_threshold": list_and_threshold, ".list_into": list_into}
    for name, implementation in overloads.items():
        register(f"topk_mask{name}", implementation)
    return overloads


def _nothing(*arguments) -> None:
    """The run of the fake overloads: shapes and dtypes are all there is."""


def _check_k(scores: Tensor, k: int, hint: Tensor | None) -> None:
    _check(scores, "index", hint)
    n = scores.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k: expected 1 <= k <= {n} (the last dimension of scores), got {k}")


def _kth_largest_cpu(scores: Tensor, k: int, *, hint: Tensor | None = None) -> Tensor:
    _check_k(scores, k, hint)
    n_rows, n = _rows(scores)
    scores, values, dtype = scores.contiguous(), scores.new_empty(_row_shape(scores)), scores.dtype
    hint, at_hint = (None, 0) if hint is None else _pointer_in(dtype, hint)
    if not _KTH[dtype](scores.data_ptr(), values.data_ptr(), n_rows, n, k, torch.get_num_threads(), at_hint):
        _raise_nan()
    return values


def _kth_largest_cuda(scores: Tensor, k: int, *, hint: Tensor | None = None) -> Tensor:
    _check_k(scores, k, hint)
    values = scores.new_empty(_row_shape(scores))
    _run_rows_cuda(scores, k, "index", hint, None, values)
    return values


def _kth_largest_fake(scores, k, *, hint=None):
    _check(scores, "index", hint)
    return scores.new_empty(_row_shape(scores))


def _rows_on_cuda(scores: Tensor, keep: int | float, ties: str, hint, mask: Tensor, threshold: Tensor | None) -> None:
    """The kernel ranks up to 32 bits; float64, in which the pruners score now and then, is sorted."""
    if scores.dtype == torch.float64:
        _sort_rows(scores, keep_count(keep, scores.shape[-1]), ties, mask, threshold)
    else:
        _run_rows_cuda(scores, keep, ties, hint, mask, threshold)


def _list_on_cuda(scores, keep: int | float, ties: str, hint, masks: Sequence[Tensor], threshold) -> None:
    if scores[0].dtype != torch.float64:
        _run_list_cuda(scores, keep, ties, hint, masks, threshold)
        return
    flat = torch.cat([s.reshape(-1) for s in scores])
    mask = _empty_mask(flat)
    _sort_rows(flat, keep_count(keep, flat.numel()), ties, mask, threshold)
    for out, part in zip(masks, mask.split([s.numel() for s in scores]), strict=True):
        out.copy_(part.reshape(out.shape))


def _sort_rows(scores: Tensor, count: int, ties: str, mask: Tensor, threshold: Tensor | None) -> None:
    n, is_legacy = scores.shape[-1], ties == "legacy"
    values, order = scores.masked_fill(scores.isnan(), -math.inf).sort(dim=-1, descending=True, stable=True)
    last = count if is_legacy else count - 1  # the largest score cut, or the least one kept
    has_threshold = 0 <= last < n
    if is_legacy and has_threshold:
        torch.gt(scores, values[..., last, None], out=mask)
    else:
        mask.zero_().scatter_(-1, order[..., :count], True)
    if threshold is not None:
        threshold.copy_(values[..., last]) if has_threshold else threshold.fill_(math.nan)


def _on_device(device: str):
    return lambda name, implementation: library.impl(name, implementation, device)


def _as_fake(name: str, implementation) -> None:
    torch.library.register_fake(f"pns_fast::{name}", implementation, lib=library)


_register(_on_device("CPU"), _run_rows, _run_list, _empty_mask_cpu)
_CUDA = _register(_on_device("CUDA"), _rows_on_cuda, _list_on_cuda)
_register(_as_fake, _nothing, _nothing)
library.impl("kth_largest", _kth_largest_cpu, "CPU")
library.impl("kth_largest", _kth_largest_cuda, "CUDA")
_as_fake("kth_largest", _kth_largest_fake)


def _without_gradient(scores: Tensor) -> Tensor:
    return scores.detach() if scores.requires_grad else scores


def _is_on_cuda_alone(scores: Tensor) -> bool:
    """Whether nothing but the device asks which ops are called: then they are called without the dispatcher.

    That saves 2.3 us, a third of what a call costs the host, which is all the time that a short row takes.
    """
    if not scores.is_cuda or is_transformed() or type(scores) not in (Tensor, torch.nn.Parameter) or scores.is_neg():
        return False  # a lazily negated tensor is resolved by the dispatcher
    c = torch._C
    is_watched = c._len_torch_dispatch_stack() > 0 or c._autograd._profiler_enabled() or c._get_tracing_state()
    return not is_watched


def _hint_tensor(hint, scores: Tensor, shape: Sequence[int]) -> Tensor | None:
    if hint is None or isinstance(hint, Tensor):
        return None if hint is None else _without_gradient(hint)
    if isinstance(hint, bool) or not isinstance(hint, (int, float)):
        raise TypeError(f"hint: expected a float, a tensor or None, got {type(hint).__name__}")
    check_tensor("scores", scores, _DTYPES)
    if abs(hint) > torch.finfo(scores.dtype).max:  # which torch refuses; a hint may be anything
        hint = math.inf if hint > 0 else -math.inf
    return scores.new_full(shape, hint)


def _refuse_nan_on_cuda(scores: Tensor) -> None:
    if scores.is_cuda and bool(scores.isnan().any()):
        _raise_nan()


def topk_mask(
    scores: Tensor | Sequence[Tensor],
    keep: int | float,
    *,
    ties: str = "index",
    hint: float | Tensor | None = None,
    return_threshold: bool = False,
    out: Tensor | Sequence[Tensor] | None = None,
    check: bool = False,
):
    """The mask of the ``keep`` largest scores, exactly.

    ``mask = rank(scores) < keep``, ties to the lowest index. Replaces ``kthvalue`` + comparison, which keeps a wrong
    number where scores tie (SynFlow's zeros, equal magnitudes). Where scores change little from call to call, each
    threshold is a good hint for the next: ``mask, t = topk_mask(s, keep, hint=t, return_threshold=True)``.

    Args:
        scores: float32, float64, float16 or bfloat16 (CUDA sorts float64). A tensor ``[..., n]``: each row on its own.
            A list of tensors of one dtype and any shapes: ranked together.
        keep: an int is a count in [0, n]; a float in [0, 1] a density, of which ``ceil(density * n)`` are kept.
        ties: "index", or "legacy" for the rule "score <= k-th smallest is cut" of SynFlow-style code, which drops all
            ties at the threshold and so may keep fewer.
        hint: where the threshold is thought to be: a number, or a tensor ``[...]``, one a row (a list: 0-dimensional).
            Changes the time a call takes, never its result; NaN is no hint. On CUDA it saves little.
        return_threshold: also return the threshold, ``[...]`` in the dtype of ``scores`` (a list: 0-dimensional): the
            least score kept; with "legacy" the largest one cut; NaN where there is none.
        out: contiguous bool tensor(s) shaped as ``scores`` to write the mask to, which is then what is returned: a
            fresh mask of 100 MB costs more than the selection.
        check: CUDA only: look for NaN, which synchronises. Without it NaN ranks lowest there; on the CPU it is
            always refused.

    Returns:
        A bool tensor of the shape of ``scores``, or a list of them; with ``return_threshold`` the pair
        ``(mask, threshold)``. Not differentiable; see :func:`supermask`.

    Raises:
        TypeError, ValueError: naming the argument; a NaN score is a ValueError.

    Source: the pruning step of every score-based method; exact-k as in spec section "Pruners".

    Example:
        >>> topk_mask(torch.tensor([0.1, 3.0, 0.2, 0.2]), 2)
        tensor([False,  True,  True, False])
        >>> topk_mask(torch.tensor([0.1, 3.0, 0.2, 0.2]), 2, hint=0.25, return_threshold=True)[1]
        tensor(0.2000)
    """
    keep = check_keep(keep)
    if ties != "index":
        _check_ties(ties)  # the op would say only that None is no str
    if not isinstance(scores, Tensor):
        return _topk_mask_of_list(scores, keep, ties, hint, return_threshold, out, check)
    check_tensor("scores", scores)
    if check:
        _refuse_nan_on_cuda(scores)
    scores = _without_gradient(scores)
    is_direct = _is_on_cuda_alone(scores)
    options = {}  # a keyword argument of an op costs 0.4 us
    if ties != "index":
        options["ties"] = ties
    if hint is not None:
        options["hint"] = _hint_tensor(hint, scores, _row_shape(scores))
    if out is not None:
        check_tensor("out", out)
        if is_direct and not return_threshold:
            _check(scores, ties, options.get("hint"))
            _check_out(out, scores)
            _rows_on_cuda(scores, keep, ties, options.get("hint"), out, None)
            _say_written(out)
            return out
        threshold = _OPS.topk_mask.into(scores, keep, **options, out=out)
        return (out, threshold) if return_threshold else out
    if is_direct:
        return _CUDA[".threshold" if return_threshold else ""](scores, keep, **options)
    overload = _OPS.topk_mask.threshold if return_threshold else _OPS.topk_mask.default
    return overload(scores, keep, **options)


def _topk_mask_of_list(scores, keep, ties, hint, return_threshold, out, check):
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise TypeError(f"scores: expected a tensor or a list of tensors, got {type(scores).__name__}")
    for s in scores:
        check_tensor("scores", s)
        if check:
            _refuse_nan_on_cuda(s)
    if out is not None and not isinstance(out, Sequence):
        raise TypeError(f"out: expected a list of tensors, as scores is, got {type(out).__name__}")
    for o in out or ():
        check_tensor("out", o)
    if not scores:  # nothing that says on which device
        _check_list(scores, ties, None)
        keep_count(keep, 0)
        return ([], torch.tensor(math.nan)) if return_threshold else []
    scores = [_without_gradient(s) for s in scores]
    options = {"ties": ties, "hint": _hint_tensor(hint, scores[0], ())}
    if out is None:
        masks, threshold = _OPS.topk_mask.list_threshold(scores, keep, **options)
        return (masks, threshold) if return_threshold else masks
    threshold = _OPS.topk_mask.list_into(scores, keep, **options, out=list(out))
    return (out, threshold) if return_threshold else out


def kth_largest(scores: Tensor, k: int, *, hint: float | Tensor | None = None) -> Tensor:
    """The k-th largest score of each row: ``sort(scores, descending)[..., k - 1]``.

    Args:
        scores: float32, float64, float16 or bfloat16 ``[..., n]``.
        k: 1 for the largest, n for the smallest.
        hint: where it is thought to be, as in :func:`topk_mask`.

    Returns:
        ``[...]`` of the dtype of ``scores``. Not differentiable.

    Raises:
        TypeError, ValueError: naming the argument; a NaN score is a ValueError (CUDA: NaN ranks lowest; not float64).

    Source: the threshold of magnitude pruning (Frankle & Carbin 2019).

    Example:
        >>> kth_largest(torch.tensor([[4.0, 1.0, 3.0]]), 2)
        tensor([3.])
    """
    check_tensor("scores", scores)
    k = check_rank(k)
    scores = _without_gradient(scores)
    overload = _kth_largest_cuda if _is_on_cuda_alone(scores) else _OPS.kth_largest.default
    if hint is None:
        return overload(scores, k)
    return overload(scores, k, hint=_hint_tensor(hint, scores, _row_shape(scores)))
