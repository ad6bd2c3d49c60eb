"""x (w m)^T with x [B, N], w [N, N], forward alone and with the gradients of x and w, every overhead included.

FLOPs are those of kept weights for us and CSR, of all for dense: dense GFLOP/s says at which rate MKL ran (about half
of FMA peak on AMD). CSR patterns are built before the clock starts, as for a mask that stays; "new mask" (CUDA): ours
takes every call's mask for another one and indexes it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import peers
import torch
from harness import Case, Contender, differs, fastest
from torch import Tensor

from pns_fast import ops

TOLERANCE = 1e-4  # relative to the largest entry; sums of 4,096 float32 terms in another order


@dataclass(frozen=True)
class Layer:
    """Shape, and the densities timed."""

    width: int
    batch: int
    forward: tuple[float, ...] = (0.01, 0.1, 0.5)
    both: tuple[float, ...] = (0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


QUICK = {"forward": (0.1,), "both": (0.01, 0.1, 1.0)}
NEW_MASK = 0.05
LAYERS = {
    "full": (Layer(4, 3, (0.5,), (0.5,)), Layer(100, 32), Layer(1024, 256), Layer(4096, 256)),  # the first: overhead
    "quick": (Layer(4, 3, (0.5,), (0.5,)), Layer(100, 32, **QUICK), Layer(1024, 256, **QUICK)),
}


def cases(quick: bool, device: str) -> list[Case]:
    layers = LAYERS["quick" if quick else "full"]
    rows = [
        Case(
            "masked_linear",
            f"N = {layer.width}, B = {layer.batch}, density {density:g}, {task}",
            partial(_contenders, layer.width, layer.batch, density, task == "fwd+bwd", device),
            budget=0.6 if device == "cpu" else 0.22,
        )
        for layer in (layers if device == "cpu" else layers[1:])
        for task, densities in (("fwd", layer.forward), ("fwd+bwd", layer.both))
        for density in densities
    ]
    if device == "cuda":
        rows += [
            Case(
                "masked_linear",
                f"N = {layer.width}, B = {layer.batch}, density {NEW_MASK:g}, fwd+bwd, new mask",
                partial(_contenders, layer.width, layer.batch, NEW_MASK, True, device, True),
                budget=0.22,
            )
            for layer in layers[2:]
        ]
    return rows


def _indexed_anew(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    torch.autograd.graph.increment_version(mask)  # what any in-place operation does, without its time
    return ops.masked_linear(x, weight, mask)


def _contenders(
    n: int, batch: int, density: float, backward: bool, device: str, is_new: bool = False
) -> list[Contender]:
    generator = torch.Generator(device).manual_seed(0)
    make = {"generator": generator, "device": device}
    x, weight, grad = (torch.randn(shape, **make) for shape in ((batch, n), (n, n), (batch, n)))
    mask = torch.rand(n, n, **make) < density
    task = _both if backward else _forward
    ours = task(_indexed_anew if is_new else ops.masked_linear, x, weight, mask, grad)
    dense = task(peers.dense_linear, x, weight, mask, grad)
    form, csr = fastest((_csr_both if backward else _csr_forward)(x, weight, mask, grad), device)
    products = (6.0 if backward else 2.0) * batch
    check, kept = partial(_same, ours(), mask), products * int(mask.sum())
    contenders = [
        Contender("pns_fast.ops.masked_linear", ours, work=kept, is_ours=True),
        Contender("torch F.linear(x, w * m)", dense, check=check, work=products * n * n),
        Contender("torch CSR", csr, check=check, work=kept, note=f"prebuilt, {form}"),
    ]
    if backward:
        three = partial(peers.CsrProducts(weight, mask), x.t().contiguous(), grad.t().contiguous())
        note = "prebuilt, no autograd, gradient of w at kept entries only"
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
