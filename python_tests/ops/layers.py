"""A masked layer's arguments, and how its results and gradients are compared."""

from __future__ import annotations

import torch
from tolerances import TOLERANCES

F32, F64 = torch.float32, torch.float64


def layer(batch=5, n_in=4, n_out=3, n=None, dtype=F64, density=0.5, seed=0):
    """(x, weight, mask, bias); with ``n`` for n networks."""
    g = torch.Generator().manual_seed(seed)
    lead = () if n is None else (n,)
    x, weight, bias = (
        torch.randn(*lead, *shape, generator=g, dtype=F64).to(dtype)
        for shape in ((batch, n_in), (n_out, n_in), (n_out,))
    )
    return x, weight, torch.rand(weight.shape, generator=g) < density, bias


def assert_close(got, expected, name, scale=None):
    rtol, atol = TOLERANCES[name]
    scale = float(expected.detach().abs().max()) if scale is None and expected.numel() else (scale or 0.0)
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol + rtol * scale)


def gradients(function, x, weight, mask, bias):
    """Of a non-linear function of the output, so that the upstream gradient is no constant."""
    inputs = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    (function(inputs[0], inputs[1], mask, inputs[2]).sin() + 0.1).square().sum().backward()
    return [t.grad for t in inputs]
