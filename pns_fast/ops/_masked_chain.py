"""Masked layers one behind the other, each with a ReLU behind it or not, in one native call forward and one backward:
in a small network the layers' own steps through Python and autograd take longer than their products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _native
from . import _masked_plain, _memory
from ._library import pointer
from .masked_linear import masked_layer

_FORWARD = {torch.float32: _native.cpu.masked_chain_forward_f32, torch.float64: _native.cpu.masked_chain_forward_f64}
_BACKWARD = {torch.float32: _native.cpu.masked_chain_backward_f32, torch.float64: _native.cpu.masked_chain_backward_f64}


class Layer(NamedTuple):
    weight: Tensor  # [O, I]
    mask: Tensor
    bias: Tensor | None
    bias_mask: Tensor | None
    has_relu: bool


def masked_chain(x: Tensor, layers: Sequence[Layer]) -> Tensor | None:
    """``relu(x (W m)^T + b)`` of one layer after the other, of b what its bool mask keeps; None, and nothing done,
    where not all are plain tensors on the CPU that fit, or a weight is computed from others. Who computes weights often
    differentiates twice (GraSP, meta-learning), for which a chain runs forward again, and rounds in another order."""
    if not _is_plain(x, layers):
        return None
    parameters = [t for layer in layers for t in layer[:4]]
    relus = tuple(layer.has_relu for layer in layers)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *parameters)):
        return _chain(x, relus, *parameters)
    return _outputs(x, layers)[-1]


def _is_plain(x: Tensor, layers: Sequence[Layer]) -> bool:
    if not _masked_plain.is_plain_batch(x):
        return False
    n_in, dtype = x.shape[1], x.dtype
    for weight, mask, bias, bias_mask, _ in layers:
        if not (weight.is_leaf and _masked_plain.is_plain_layer(n_in, dtype, weight, mask, bias, bias_mask)):
            return False
        n_in = weight.shape[0]
    return True


def _outputs(x: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """Of every layer."""
    batch, dtype, outputs, described = x.shape[0], x.dtype, [], []
    for weight, mask, bias, bias_mask, has_relu in layers:
        n_out, n_in = weight.shape
        y = _memory.empty((batch, n_out), dtype)
        read = weight.data_ptr(), mask.data_ptr(), pointer(bias), pointer(bias_mask)
        described.append((n_in, n_out, *read, has_relu, y.data_ptr()))
        outputs.append(y)
    _FORWARD[dtype](batch, x.data_ptr(), described, torch.get_num_threads())
    return outputs


class _Chain(torch.autograd.Function):
    """Of plain tensors that fit; ``parameters`` are those of a Layer, layer by layer."""

    @staticmethod
    def forward(ctx, x, relus, *parameters):
        outputs = _outputs(x, _layers(parameters, relus))
        ctx.relus = relus
        saved = (x, *outputs, *parameters) if relus[-1] else (x, *outputs[:-1], None, *parameters)
        ctx.save_for_backward(*saved)
        ctx.addresses = [pointer(t) for t in saved]
        return outputs[-1]

    @staticmethod
    def backward(ctx, grad):
        saved, n = ctx.saved_tensors, len(ctx.relus)
        x, outputs, layers = saved[0], saved[1 : n + 1], _layers(saved[n + 1 :], ctx.relus)
        if (
            not torch.is_grad_enabled()
            and not _masked_plain.has_mode()
            and _masked_plain.is_plain(grad)
            and grad.dtype is x.dtype
            and grad.shape == (x.shape[0], layers[-1].weight.shape[0])
            # A hook on saved tensors may have brought others than were checked.
            and [pointer(t) for t in saved] == ctx.addresses
        ):
            return _gradients(grad, x, outputs, layers, ctx.needs_input_grad)
        inputs = x, None, *saved[n + 1 :]
        wanted = [t for t, is_wanted in zip(inputs, ctx.needs_input_grad, strict=True) if is_wanted]
        is_differentiated = torch.is_grad_enabled()
        y = x
        with torch.enable_grad():
            for *parameters, has_relu in layers:
                y = masked_layer(y, *parameters)
                y = F.relu(y) if has_relu else y
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=is_differentiated))
        return tuple(next(found) if is_wanted else None for is_wanted in ctx.needs_input_grad)


# Without what Function.apply does for transforms, see masked_linear.
_chain = super(torch.autograd.Function, _Chain).apply


def _layers(parameters: Sequence[Tensor | None], relus: Sequence[bool]) -> list[Layer]:
    return [Layer(*parameters[4 * i : 4 * i + 4], relu) for i, relu in enumerate(relus)]


def _gradients(
    grad: Tensor, x: Tensor, outputs: Sequence[Tensor], layers: Sequence[Layer], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Of x and of each layer's parameters, None where not wanted, as ``wanted`` counts the inputs of _Chain."""
    wants_x, _, *wanted = wanted
    # Below the lowest layer that wants something there is nothing to do.
    first = 0 if wants_x else next(i for i in range(len(layers)) if any(wanted[4 * i : 4 * i + 4]))
    found, described = [None] * len(wanted), []
    for i in range(first, len(layers)):
        weight, mask, _, bias_mask, has_relu = layers[i]
        n_out, n_in = weight.shape
        if wanted[4 * i]:
            found[4 * i] = _memory.empty_like(weight)
        if wanted[4 * i + 2]:
            found[4 * i + 2] = _memory.empty((n_out,), x.dtype)
        y, below = pointer(outputs[i] if has_relu else None), (x, *outputs)[i].data_ptr()
        read = y, below, weight.data_ptr(), mask.data_ptr(), pointer(bias_mask)
        described.append((n_in, n_out, *read, pointer(found[4 * i]), pointer(found[4 * i + 2])))
    grad_x = _memory.empty_like(x) if wants_x else None
    _BACKWARD[x.dtype](x.shape[0], grad.data_ptr(), described, pointer(grad_x), torch.get_num_threads())
    return grad_x, None, *found
