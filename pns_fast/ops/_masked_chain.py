"""Masked layers one behind the other, each with a ReLU behind it or not, in one native call forward and one backward:
in a small network the layers' own steps through Python and autograd take longer than their products. A microsecond
counts here, see _masked_plain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _masked_plain
from .masked_linear import masked_layer

# (weight [O, I], mask, bias or None, its bool mask or None, whether a ReLU follows)
Layer = tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool]


def masked_chain(x: Tensor, layers: Sequence[Layer]) -> Tensor | None:
    """``relu(x (W m)^T + b)`` of one layer after the other, of b what its mask keeps; None, and nothing done, where not
    all are plain tensors on the CPU that fit, or a weight is computed from others. Who computes weights often
    differentiates twice (GraSP, meta-learning), for which a chain runs forward again, and rounds in another order."""
    if torch.compiler.is_compiling():
        return None
    return _masked_plain.plain_layers(_chain, x, layers, True)


class _Chain(torch.autograd.Function):
    """Of plain tensors that fit; ``trained``: weights and biases."""

    forward = staticmethod(_masked_plain.forward)

    @staticmethod
    def backward(ctx, grad):
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad
        grads = ctx.run.backward(grad, saved, wanted)
        return _differentiable_gradients(ctx.run.kinds, grad, saved, wanted) if grads is None else grads


# Without what Function.apply does for transforms, see masked_linear.
_chain = super(torch.autograd.Function, _Chain).apply


def _differentiable_gradients(
    kinds: Sequence[tuple[bool, bool, bool]], grad: Tensor, saved: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The same by autograd, layer by layer, and differentiable where that is asked for. Of views, one for each place: a
    layer that is there twice gets what each place gives it, not twice what both give."""
    x, *kept = saved
    is_differentiated = torch.is_grad_enabled()
    with torch.enable_grad():
        x, rest = x.view_as(x), iter([t.view_as(t) for t in kept])
        y, trained = x, []
        for has_bias, has_bias_mask, has_relu in kinds:
            weight, mask = next(rest), next(rest)
            bias = next(rest) if has_bias else None
            bias_mask = next(rest) if has_bias_mask else None
            trained += (weight, bias) if has_bias else (weight,)
            y = masked_layer(y, weight, mask, bias, bias_mask)
            y = F.relu(y) if has_relu else y
    inputs = [t for t, is_wanted in zip((None, None, x, *trained), wanted, strict=True) if is_wanted]
    found = iter(torch.autograd.grad(y, inputs, grad, create_graph=is_differentiated))
    return tuple(next(found) if is_wanted else None for is_wanted in wanted)
