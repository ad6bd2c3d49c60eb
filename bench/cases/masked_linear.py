"""x (w m)^T with x [B, N], w [N, N], forward alone and with the gradients of x and w.

FLOPs are those of kept weights for us and CSR, of all for dense: dense GFLOP/s says at which rate MKL ran (about half
of FMA peak on AMD). CSR patterns are built before the clock starts, as for a mask that stays.
"""

from __future__ import annotations

from functools import partial

import peers
import torch
from harness import Case, Contender, differs, fastest
from torch import Tensor

from pns_fast import ops

DENSITIES = (0.01, 0.05, 0.1, 0.5, 1.0)
TOLERANCE = 1e-4  # relative to the largest entry; sums of 4,096 float32 terms in another order


def cases(quick: bool, device: str) -> list[Case]:
    shapes = [(128, 32), (128, 256), (1024, 256)] + ([] if quick else [(4096, 256)])
    return [
        Case(
            "masked_linear",
            f"N = {n}, B = {batch}, density {density:g}, {'fwd+bwd' if backward else 'fwd'}",
            partial(_contenders, n, batch, density, backward),
            budget=0.6,
        )
        for n, batch in shapes
        for backward in (False, True)
        for density in (DENSITIES[::2] if quick else DENSITIES)
    ]


def _contenders(n: int, batch: int, density: float, backward: bool) -> list[Contender]:
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(shape, generator=generator) for shape in ((batch, n), (n, n), (batch, n)))
    mask = torch.rand(n, n, generator=generator) < density
    task = _both if backward else _forward
    ours = task(ops.masked_linear, x, weight, mask, grad)
    dense = task(peers.dense_linear, x, weight, mask, grad)
    form, csr = fastest((_csr_both if backward else _csr_forward)(x, weight, mask, grad))
    products = (6.0 if backward else 2.0) * batch
    check, kept = partial(_same, ours(), mask), products * int(mask.sum())
    contenders = [
        Contender("pns_fast.ops.masked_linear", ours, work=kept, is_ours=True),
        Contender("torch F.linear(x, w * m)", dense, check=check, work=products * n * n),
        Contender("torch CSR", csr, check=check, work=kept, note=f"prebuilt, {form}"),
    ]
    if backward:
        three = partial(peers.CsrProducts(weight, mask), x.t().contiguous(), grad.t().contiguous())
        note = "prebuilt, no autograd"
        contenders.append(Contender("torch CSR, three products", three, check=check, work=kept, note=note))
    return contenders


def _forward(linear, x: Tensor, weight: Tensor, mask: Tensor, grad: Tensor):
    return lambda: (linear(x, weight, mask),)


def _both(linear, x: Tensor, weight: Tensor, mask: Tensor, grad: Tensor):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        y = linear(x, weight, mask)
        return y.detach(), *torch.autograd.grad(y, (x, weight), grad)

    return run


def _csr_forward(x: Tensor, weight: Tensor, mask: Tensor, grad: Tensor) -> dict:
    """Activations as rows, as the others have them, or as columns: CSR likes that, and transposing is free."""
    csr, columns = peers.to_csr(weight, mask), x.t().contiguous()
    return {"x as rows": lambda: ((csr @ x.t()).t(),), "x as columns": lambda: (csr @ columns,)}


def _csr_both(x: Tensor, weight: Tensor, mask: Tensor, grad: Tensor) -> dict:
    csr = peers.to_csr(weight, mask).requires_grad_()

    def run(x_columns: Tensor, grad_columns: Tensor) -> tuple[Tensor, ...]:
        y = csr @ x_columns
        grad_weight, grad_x = torch.autograd.grad(y, (csr, x_columns), grad_columns)
        return y.detach(), grad_x, grad_weight

    return {
        "x as rows": partial(run, x.t().requires_grad_(), grad.t()),
        "x as columns": partial(run, x.t().contiguous().requires_grad_(), grad.t().contiguous()),
    }


def _same(expected: tuple[Tensor, ...], mask: Tensor, results: tuple[Tensor, ...]) -> str:
    """Activations may be columns; torch's gradient of a CSR weight is dense, so it counts at kept entries only."""
    for name, ours, theirs in zip(("output", "gradient of x", "gradient of w"), expected, results, strict=False):
        if name == "gradient of w":
            theirs = theirs.to_dense() * mask
        elif theirs.shape != ours.shape:
            theirs = theirs.t()
        if problem := differs(ours, theirs, TOLERANCE, name):
            return problem
    return ""
