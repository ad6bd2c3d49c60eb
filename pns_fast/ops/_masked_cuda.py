"""masked_linear on CUDA: which path a call takes, the index of a mask, and what is launched.

Dense: torch's own product with the masked weight. Sparse, float32: products over the kept weights, from an index that
is built on the device once for each mask.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from .. import _native

# Where the sparse path begins to pay. All derived from bandwidths of an H100, not measured.
SPARSE_BELOW = 0.15  # density of a product: 128 bytes of shared memory a clock and SM against cuBLAS's 50 TFLOP/s
SPARSE_OUTER_BELOW = 0.15  # of the weight's gradient: the same bound
FEWEST_WEIGHTS = 1 << 18  # below, a dense product is all launch
FEWEST_SAMPLES = 33  # 32 are one tile, too few blocks for the device
PACK_ABOVE = 1 << 18  # kept weights: gathered once instead of once for every 32 samples
SELECT_ABOVE = 1 << 20  # weights: below, torch.where is sooner launched than a kernel of ours from Python

MOST_COLUMNS = 1 << 16  # 16-bit columns
MOST_INDICES = 256


@dataclass(eq=False, slots=True)
class MaskIndex:
    """Where the kept weights of a mask are: its rows' columns, and its transpose's. None: it takes the dense path."""

    storage: StorageWeakRef  # while it lives, nothing else can lie at the mask's address
    version: int
    stream: int
    density: float = 1.0
    kept: int = 0
    starts: Tensor | None = None
    columns: Tensor | None = None
    starts_t: Tensor | None = None
    columns_t: Tensor | None = None


_indices: dict[tuple, MaskIndex] = {}
_captured: set[MaskIndex] = set()  # a CUDA graph holds their addresses, and nothing says when it goes


def stream_of(t: Tensor) -> int:
    return torch._C._cuda_getCurrentRawStream(t.get_device())  # 0.1 us, torch.cuda.current_stream(...) 2


def _key(mask: Tensor) -> tuple:
    return mask.data_ptr(), mask.shape, mask.stride()


def _remember(mask: Tensor, index: MaskIndex) -> MaskIndex:
    if len(_indices) >= MOST_INDICES:
        for key in [key for key, known in _indices.items() if known.storage.expired()]:
            del _indices[key]
        if len(_indices) >= MOST_INDICES:
            del _indices[next(iter(_indices))]
    _indices[_key(mask)] = index
    return index


def clear_mask_indices() -> None:
    """Forgets every mask; what CUDA graphs use stays."""
    _indices.clear()


def keep_dense(mask: Tensor) -> None:
    """Says that ``mask`` is for one use: no index is built for it."""
    if not mask.is_inference():
        _remember(mask, MaskIndex(StorageWeakRef(mask.untyped_storage()), mask._version, stream_of(mask)))


def mask_index(mask: Tensor) -> MaskIndex | None:
    """The index of a mask, built if it is new or has changed, which waits for the device. None where it cannot be:
    inside a graph's capture, or for an inference tensor, whose changes cannot be seen."""
    if mask.is_inference():
        return None
    known, is_capturing = _indices.get(_key(mask)), torch.cuda.is_current_stream_capturing()
    if known is None or known.version != mask._version or known.storage.expired():
        return None if is_capturing else _remember(mask, _build(mask))
    if is_capturing:
        _captured.add(known)
    elif known.columns is not None and known.stream != stream_of(mask):
        for t in (known.starts, known.columns, known.starts_t, known.columns_t):
            t.record_stream(torch.cuda.current_stream(t.device))  # or its memory could go to another use too soon
    return known


def _build(mask: Tensor) -> MaskIndex:
    module, stream, device = _native.cuda(), stream_of(mask), mask.get_device()
    n, (n_out, n_in) = mask.shape[:-2].numel(), mask.shape[-2:]
    index = MaskIndex(StorageWeakRef(mask.untyped_storage()), mask._version, stream)
    contiguous = mask.contiguous()

    def empty(size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=mask.device)

    bits, bits_t = empty(n * n_out * (-(-n_in // 32))), empty(n * n_in * (-(-n_out // 32)))
    begin, begin_t = empty(n * n_out + 1), empty(n * n_in + 1)
    pointers = [t.data_ptr() for t in (contiguous, bits, bits_t, begin, begin_t)]
    module.mask_index_count(n, n_out, n_in, *pointers, device, stream)
    index.kept = int(begin[-1])  # waits
    index.density = index.kept / mask.numel()
    if index.density >= max(SPARSE_BELOW, SPARSE_OUTER_BELOW):
        return index

    def fill(n_rows: int, n_columns: int, of_bits: Tensor, of_begin: Tensor) -> tuple[Tensor, Tensor]:
        starts = empty(n_rows * -(-n_columns // module.mask_index_segment) + 1)
        columns = empty(index.kept, torch.int16)
        pointers = [t.data_ptr() for t in (of_bits, of_begin, starts, columns)]
        module.mask_index_fill(n_rows, n_columns, *pointers, device, stream)
        return starts, columns

    index.starts, index.columns = fill(n * n_out, n_in, bits, begin)
    index.starts_t, index.columns_t = fill(n * n_in, n_out, bits_t, begin_t)
    torch.cuda.current_stream(mask.device).synchronize()  # other streams may use it from now on
    return index


@cache
def has_room(device: int) -> bool:
    """Whether a block gets the 227 KB of shared memory that the sparse kernels are cut for."""
    return torch.cuda.get_device_capability(device)[0] in (9, 10)


def sparse_index(x: Tensor, mask: Tensor, below: float) -> MaskIndex | None:
    """The mask's index if a product of ``x`` [..., B, .] with it takes the sparse path."""
    n_weights, n_samples = mask.numel(), x.shape[-2]
    if x.dtype != torch.float32 or n_weights < FEWEST_WEIGHTS or n_samples < FEWEST_SAMPLES or x.numel() == 0:
        return None
    if max(mask.shape[-2:]) > MOST_COLUMNS or not 0 < n_weights < 1 << 31 or not has_room(x.get_device()):
        return None
    index = mask_index(mask)
    return None if index is None or index.columns is None or index.density >= below else index


# ---- the dense path


def select(t: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
    """``t`` where ``mask``, 0 elsewhere, whatever ``t`` is there; ``out`` may be ``t``, if that is contiguous."""
    t, mask = t.contiguous(), mask.contiguous()
    out = torch.empty_like(t) if out is None else out
    pointers = t.data_ptr(), mask.data_ptr(), out.data_ptr()
    _native.cuda().masked_select(t.numel(), t.element_size(), *pointers, t.get_device(), stream_of(t))
    return out


_zeros: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _zero(like: Tensor) -> Tensor:
    """A number that is there already: torch.where launches a kernel to make one."""
    key = like.device, like.dtype
    if key not in _zeros:
        if torch.cuda.is_current_stream_capturing():
            return like.new_zeros(())  # belongs to the graph
        with torch.inference_mode(False):
            _zeros[key] = torch.zeros((), dtype=like.dtype, device=like.device)
    return _zeros[key]


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t, mask):
        ctx.save_for_backward(mask)
        return select(t, mask)

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return _Select.apply(grad, mask), None


def _exactly(x: Tensor):
    """Without autocast, which would round to half precision what is summed here."""
    is_on = torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if is_on else nullcontext()


def dense_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """``x (W m)^T + b`` by torch's own differentiable ops, which keep the masked weight for the backward."""
    if weight.numel() >= SELECT_ABOVE:
        masked = _Select.apply(weight, mask)
    else:
        masked = torch.where(mask, weight, _zero(weight))
    return _dense_product(x, masked, bias, False)


def _dense_product(x: Tensor, masked: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    with _exactly(x):
        if transposed:
            return x @ masked
        if x.dim() == 2:
            return F.linear(x, masked, bias)
        return x @ masked.mT if bias is None else torch.baddbmm(bias.unsqueeze(-2), x, masked.mT)


# ---- the sparse path


def sparse_product(
    index: MaskIndex, x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False
) -> Tensor:
    shape = x.shape
    n_rows = weight.shape[-1 if transposed else -2]
    y = x.new_empty((*shape[:-1], n_rows))
    packed = _packed(index, x)
    x, weight, bias = x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
    starts, columns = (index.starts_t, index.columns_t) if transposed else (index.starts, index.columns)
    _native.cuda().masked_product(
        shape[0] if len(shape) == 3 else 1,
        shape[-2],
        shape[-1],
        n_rows,
        x.data_ptr(),
        starts.data_ptr(),
        columns.data_ptr(),
        weight.data_ptr(),
        transposed,
        0 if packed is None else packed.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        y.get_device(),
        stream_of(y),
    )
    return y


def sparse_gradients(
    index: MaskIndex, grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Of x and of the kept weights, in one native call: at 1,024 x 1,024 calls are what takes time. Without the former
    only the shape of ``weight`` counts."""
    module, shape = _native.cuda(), x.shape
    n, (batch, n_in), n_out = shape[0] if len(shape) == 3 else 1, shape[-2:], weight.shape[-2]
    grad, x = grad.contiguous(), x.contiguous()
    weight = weight.contiguous() if wants_x else weight
    packed = _packed(index, x) if wants_x else None
    grad_columns = x.new_empty(module.padded_batch(batch) * n * n_out) if wants_weight else None
    grad_x = torch.empty_like(x) if wants_x else None
    grad_weight = x.new_empty(weight.shape) if wants_weight else None
    module.masked_backward(
        n,
        batch,
        n_in,
        n_out,
        grad.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        index.starts.data_ptr(),
        index.columns.data_ptr(),
        index.starts_t.data_ptr(),
        index.columns_t.data_ptr(),
        0 if packed is None else packed.data_ptr(),
        0 if grad_columns is None else grad_columns.data_ptr(),
        0 if grad_x is None else grad_x.data_ptr(),
        0 if grad_weight is None else grad_weight.data_ptr(),
        x.get_device(),
        stream_of(x),
    )
    return grad_x, grad_weight


def _packed(index: MaskIndex, like: Tensor) -> Tensor | None:
    return like.new_empty(index.kept) if index.kept > PACK_ABOVE else None


# ---- the three ops; the arguments are checked


def product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    index = sparse_index(x, mask, SPARSE_BELOW)
    if index is not None:
        return sparse_product(index, x, weight, bias, transposed)
    with torch.no_grad():
        return _dense_product(x, select(weight, mask), bias, transposed)


def outer(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    index = sparse_index(x, mask, SPARSE_OUTER_BELOW)
    return dense_outer(grad, x, mask) if index is None else sparse_gradients(index, grad, x, mask, False, True)[1]


def dense_outer(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad(), _exactly(x):
        whole = grad.mT @ x
    return select(whole, mask, whole)


def backward(grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    wants_x, wants_weight, wants_bias = wanted
    with torch.no_grad(), _exactly(x):
        return (
            product(grad, weight, mask, None, True) if wants_x else x.new_empty(0),
            outer(grad, x, mask) if wants_weight else x.new_empty(0),
            grad.sum(-2) if wants_bias else x.new_empty(0),
        )
