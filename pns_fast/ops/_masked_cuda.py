"""masked_linear on CUDA: which path a call takes, the index of a mask, and what is launched.

Dense: torch's own product with the masked weight, by its own autograd. Sparse, float32: products over the kept weights,
from an index that is built on the device once for each mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import floor

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter
from torch.nn import functional as F

from .. import _native
from ._library import has_tangents, plain_keys

# ---- what the paths cost, in microseconds: see most_kept

FLOPS = 50e6  # a us, of cuBLAS in float32 without TF32: 51e6 measured on an H200
BYTES = 4e6  # a us, of memory: 4.2e6 measured there
LAUNCH = 2.5  # derived, as all that follows; at 4,096 x 4,096 and density 0.1 it says 388 where 405 were measured
READS = 5e6  # multiply-adds a us of the sparse products: two thirds of 132 SMs x 128 bytes of shared memory a clock
PANELS = 0.02  # bytes of x a sparse product loads for each weight, kept or not, and sample
# What the sparse path costs the host beyond the dense one, which runs ahead of the device only where that has enough to
# do: an autograd.Function whose backward is Python, or a call of ours in place of two of torch's.
HOST, HOST_FORWARD = 100.0, 15.0
WORTHWHILE = 0.9  # of the dense path's time: these are estimates

FEWEST_WEIGHTS = 1 << 18  # below, a dense product is all launch
FEWEST_SAMPLES = 33  # 32 are one tile, too few blocks for the device
MOST_COLUMNS = 1 << 16  # 16-bit columns
INDEXED_BELOW = 0.2  # density; above, no call takes the sparse path
PACK_ABOVE = 1 << 18  # kept weights: gathered once instead of once for every 32 samples
MOST_INDICES = 256


@lru_cache(maxsize=1024)
def most_kept(n_weights: int, n_samples: int, n_products: int, is_captured: bool) -> int:
    """Up to how many kept weights the sparse path is estimated to be the faster one, -1: never. ``n_products``: the
    forward, and a gradient of x and of weight each. A graph's replay costs the host nothing."""
    if n_weights < FEWEST_WEIGHTS or n_samples < FEWEST_SAMPLES:
        return -1
    work, n_masked = n_weights * n_samples, min(n_products, 2)
    dense = n_products * (2 * work / FLOPS + LAUNCH) + n_masked * (9 * n_weights / BYTES + LAUNCH)
    sparse = n_products * (PANELS * work / BYTES + 2 * LAUNCH) + n_masked * 4 * n_weights / BYTES  # gathered from all
    if n_products > 1:
        sparse += 4 * n_weights / BYTES  # the gradient, zeros and all
    if not is_captured:
        sparse += HOST if n_products > 1 else HOST_FORWARD
    return max(-1, floor((WORTHWHILE * dense - sparse) / (n_products * n_samples / READS)))


def may_pay(n_weights: int, n_samples: int, n_products: int, x: Tensor) -> bool:
    """Whether any mask of that size is worth an index, here or in a graph that may follow this warm-up."""
    return most_kept(n_weights, n_samples, n_products, False) >= 0 or (
        stream_of(x) != 0 and most_kept(n_weights, n_samples, n_products, True) >= 0
    )


@cache
def has_room(device: int) -> bool:
    """Whether a block gets the 227 KB of shared memory that the sparse kernels are cut for."""
    return torch.cuda.get_device_capability(device)[0] in (9, 10)


def is_shared() -> bool:
    """Whether this is one process of several, whose collectives (a broadcast of DistributedDataParallel's too) write to
    masks and leave their version as it was."""
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def is_captured(stream: int) -> bool:
    """Whether a graph is being made of the current stream, which is ``stream``."""
    return stream != 0 and torch.cuda.is_current_stream_capturing()  # the default stream cannot be


def layer_index(x: Tensor, mask: Tensor, n_products: int = 1) -> MaskIndex | None:
    """The mask's index if a product of ``x`` with it, and ``n_products - 1`` gradients, are to take the sparse path."""
    n_weights = mask.numel()
    if n_weights < FEWEST_WEIGHTS or x.dtype != torch.float32:
        return None
    n_samples, device = x.shape[-2], x.get_device()
    if not 0 < n_weights < 1 << 31 or not has_room(device):
        return None
    if max(mask.shape[-2:]) > MOST_COLUMNS or x.numel() == 0 or mask.is_inference() or is_shared():
        return None  # changes could not be seen
    stream = torch._C._cuda_getCurrentRawStream(device)
    in_graph = is_captured(stream)
    most = most_kept(n_weights, n_samples, n_products, in_graph)
    if in_graph:
        index = _index_in_graph(mask)
    elif most >= 0:
        index = mask_index(mask)
    else:  # a graph's warm-up runs on another stream than the default one
        if stream != 0 and most_kept(n_weights, n_samples, n_products, True) >= 0:
            _prepare_graph(mask)
        return None
    return None if index is None or not index.tensors or index.kept > most else index


_plain_keys = cache(plain_keys)


def may_launch(*tensors: Tensor | None) -> bool:
    """Whether kernels may be given these tensors' addresses, past the dispatcher: ordinary ones on CUDA, no subclass,
    none that a transform or a lazy negation wraps, and nobody watches the ops that run."""
    if torch._C._len_torch_dispatch_stack() > 0 or has_tangents():
        return False
    keys = _plain_keys("cuda")
    return all(
        t is None or (type(t) in (Tensor, Parameter) and torch._C._dispatch_keys(t).raw_repr() in keys) for t in tensors
    )


# ---- the index of a mask


@dataclass(eq=False, slots=True)
class MaskIndex:
    """Where the kept weights of a mask are: its rows' columns, and its transpose's. Without tensors: it stays dense."""

    storage: StorageWeakRef  # while it lives, nothing else can lie at the mask's address
    version: int
    is_built: bool = True
    streams: set[int] = field(default_factory=set)  # that its memory is known to be used on
    kept: int = 0
    tensors: tuple[Tensor, ...] = ()  # starts and columns, of the mask and of its transpose
    pointers: tuple[int, ...] = ()  # to them


_indices: dict[tuple, MaskIndex] = {}
_in_graphs: set[MaskIndex] = set()  # a CUDA graph holds their addresses, and nothing says when it goes


def stream_of(t: Tensor) -> int:
    return torch._C._cuda_getCurrentRawStream(t.get_device())  # 0.1 us, torch.cuda.current_stream(...) 2


def _new_index(mask: Tensor, is_built: bool = True) -> MaskIndex:
    return MaskIndex(StorageWeakRef(mask.untyped_storage()), mask._version, is_built)


def _key(mask: Tensor) -> tuple:
    return mask.data_ptr(), mask.shape, mask.stride()


def _known(mask: Tensor) -> MaskIndex | None:
    index = _indices.get(_key(mask))
    return None if index is None or index.version != mask._version or index.storage.expired() else index


def _remember(mask: Tensor, index: MaskIndex) -> MaskIndex:
    if len(_indices) >= MOST_INDICES:
        _forget_expired()
        for oldest in list(_indices)[: max(0, len(_indices) + 1 - MOST_INDICES)]:
            _indices.pop(oldest, None)
    _indices[_key(mask)] = index
    return index


def _forget_expired() -> None:
    """Of masks that are gone. Autograd's threads come here too, so keys are copied, and may be gone as well."""
    for key in list(_indices):
        if (index := _indices.get(key)) is not None and index.storage.expired():
            _indices.pop(key, None)


def clear_mask_indices() -> None:
    """Forgets every mask; what CUDA graphs use stays."""
    _indices.clear()


def keep_dense(mask: Tensor) -> None:
    """Says that ``mask`` is for one use: no index is built for it."""
    if not mask.is_inference():
        _remember(mask, _new_index(mask))


def mask_index(mask: Tensor) -> MaskIndex:
    """The index of a mask, built if it is new or has changed, which waits for the device."""
    index = _known(mask)
    if index is None or not index.is_built:
        return _build(mask)
    if index.tensors and (stream := stream_of(mask)) not in index.streams:
        index.streams.add(stream)
        for t in index.tensors:
            t.record_stream(torch.cuda.current_stream(t.device))  # or its memory could go to another use too soon
    return index


def _index_in_graph(mask: Tensor) -> MaskIndex | None:
    """None where it is not known: nothing can be built while a graph is captured."""
    index = _known(mask)
    if index is not None and index.tensors:
        _in_graphs.add(index)
    return index


def _prepare_graph(mask: Tensor) -> None:
    """Builds the index for a graph once the same mask is seen a second time: it may be another one in each call."""
    index = _known(mask)
    if index is None:
        _remember(mask, _new_index(mask, is_built=False))
    elif not index.is_built:
        _build(mask)


def _build(mask: Tensor) -> MaskIndex:
    module, stream, device = _native.cuda(), stream_of(mask), mask.get_device()
    n, (n_out, n_in) = mask.shape[:-2].numel(), mask.shape[-2:]
    _forget_expired()  # with megabytes each, where masks come and go
    index, contiguous = _new_index(mask), mask.contiguous()
    index.streams.add(stream)

    def empty(size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=mask.device)

    bits, bits_t = empty(n * n_out * (-(-n_in // 32))), empty(n * n_in * (-(-n_out // 32)))
    begin, begin_t = empty(n * n_out + 1), empty(n * n_in + 1)
    pointers = [t.data_ptr() for t in (contiguous, bits, bits_t, begin, begin_t)]
    module.mask_index_count(n, n_out, n_in, *pointers, device, stream)
    index.kept = int(begin[-1])  # waits
    if index.kept >= INDEXED_BELOW * mask.numel():
        return _remember(mask, index)

    def fill(n_rows: int, n_columns: int, of_bits: Tensor, of_begin: Tensor) -> tuple[Tensor, Tensor]:
        starts = empty(n_rows * -(-n_columns // module.mask_index_segment) + 1)
        columns = empty(index.kept, torch.int16)
        pointers = [t.data_ptr() for t in (of_bits, of_begin, starts, columns)]
        module.mask_index_fill(n_rows, n_columns, *pointers, device, stream)
        return starts, columns

    index.tensors = *fill(n * n_out, n_in, bits, begin), *fill(n * n_in, n_out, bits_t, begin_t)
    index.pointers = tuple(t.data_ptr() for t in index.tensors)
    torch.cuda.current_stream(mask.device).synchronize()  # other streams may use it from now on
    return _remember(mask, index)


# ---- the dense path

# where(mask > 0, t, 0): one launch, and as its gradient one more. torch.where's gradient makes a zero on the device
# first, Tensor.masked_fill wants the mask inverted, and t * mask would spread an inf or NaN that is pruned.
masked = torch.ops.aten.threshold_backward.default._op  # without the frame of its __call__, half a microsecond


def select(t: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
    """``t`` where ``mask``, 0 elsewhere, whatever ``t`` is there; ``out`` may be ``t``, if that is contiguous. Sooner
    done than by torch, whose mask goes through a cast, but called from Python."""
    t, mask = t.contiguous(), mask.contiguous()
    out = torch.empty_like(t) if out is None else out
    pointers = t.data_ptr(), mask.data_ptr(), out.data_ptr()
    _native.cuda().masked_select(t.numel(), t.element_size(), *pointers, t.get_device(), stream_of(t))
    return out


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t, mask):
        ctx.save_for_backward(mask)
        return select(t, mask)

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return kept_of(grad, mask), None


def kept_of(t: Tensor, mask: Tensor) -> Tensor:
    """:func:`select`, differentiable, of tensors that may be any."""
    return _Select.apply(t, mask) if may_launch(t, mask) else masked(t, mask, 0)


def dense_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    """``x (W m)^T + b`` by torch's own differentiable ops, outside of autocast: what ``F.linear(x, w * m)`` costs."""
    if weight.numel() >= FEWEST_WEIGHTS and is_captured(stream_of(weight)):
        kept = kept_of(weight, mask)  # a graph's replay runs no Python
    else:
        kept = masked(weight, mask, 0)
    return _linear(x, kept, bias)


def dense_conv(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *geometry: Sequence[int]) -> Tensor:
    """The convolution with the masked weight by torch's own differentiable ops, contiguous, outside of autocast."""
    return F.conv2d(x.contiguous(), masked(weight, mask, 0), bias, *geometry).contiguous()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)


def _exactly(x: Tensor):
    """Without autocast, which would round to half precision what is summed here."""
    is_on = torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if is_on else nullcontext()


# ---- the sparse path


def sparse_product(
    index: MaskIndex, x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False
) -> Tensor:
    shape, device = x.shape, x.get_device()
    n_rows, pointers = weight.shape[-1 if transposed else -2], index.pointers
    y = x.new_empty((*shape[:-1], n_rows))
    packed = x.new_empty(index.kept) if index.kept > PACK_ABOVE else None
    x, weight, bias = x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
    _native.cuda().masked_product(
        shape[0] if len(shape) == 3 else 1,
        shape[-2],
        shape[-1],
        n_rows,
        x.data_ptr(),
        *(pointers[2:] if transposed else pointers[:2]),
        weight.data_ptr(),
        transposed,
        0 if packed is None else packed.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        device,
        torch._C._cuda_getCurrentRawStream(device),
    )
    return y


def sparse_gradients(
    index: MaskIndex, grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Of x and of the kept weights, in one native call. Without the former only the shape of ``weight`` counts."""
    module, shape, device = _native.cuda(), x.shape, x.get_device()
    n, n_out = shape[0] if len(shape) == 3 else 1, weight.shape[-2]
    grad, x = grad.contiguous(), x.contiguous()
    weight = weight.contiguous() if wants_x else weight
    n_columns = module.padded_batch(shape[-2]) * n * n_out if wants_weight else 0
    n_packed = index.kept if wants_x and index.kept > PACK_ABOVE else 0
    scratch = x.new_empty(n_columns + n_packed)  # grad's columns, packed weights
    grad_x = torch.empty_like(x) if wants_x else None
    grad_weight = x.new_empty(weight.shape) if wants_weight else None
    module.masked_backward(
        n,
        shape[-2],
        shape[-1],
        n_out,
        grad.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        *index.pointers,
        scratch.data_ptr() + 4 * n_columns if n_packed > 0 else 0,
        scratch.data_ptr(),
        0 if grad_x is None else grad_x.data_ptr(),
        0 if grad_weight is None else grad_weight.data_ptr(),
        device,
        torch._C._cuda_getCurrentRawStream(device),
    )
    return grad_x, grad_weight


# ---- the three ops; the arguments are checked


def _index_of_op(x: Tensor, mask: Tensor) -> MaskIndex | None:
    """None in a graph: torch.compile captures these unasked, and its replays would not see the mask change."""
    return None if is_captured(stream_of(x)) else layer_index(x, mask)


def product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    index = _index_of_op(x, mask)
    if index is not None:
        return sparse_product(index, x, weight, bias, transposed)
    with torch.no_grad(), _exactly(x):
        kept = select(weight, mask)
        return x @ kept if transposed else _linear(x, kept, bias)


def outer(grad: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    index = _index_of_op(x, mask)
    if index is not None:
        return sparse_gradients(index, grad, x, mask, False, True)[1]
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
