"""x (w m)^T with x [B, N], w [N, N], forward alone and with the gradients of x and w, every overhead included.

FLOPs are those of kept weights for us and CSR, of all for dense: dense GFLOP/s says at which rate MKL ran (about half
of FMA peak on AMD). CSR patterns are built before the clock starts, as for a mask that stays. On CUDA, "new mask": ours
takes every call's mask for another one and indexes it again; "CUDA graph": every contender is captured and replayed,
which leaves out Python and the launches one by one. And a small network of such layers, with ReLUs between them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import peers
import torch
from harness import Case, Contender, captured_or_why, differs, fastest
from torch import Tensor, nn

import pns_fast as pns
from pns_fast import ops

TOLERANCE = 1e-4  # relative to the largest entry; sums of 4,096 float32 terms in another order


@dataclass(frozen=True)
class Layer:
    """Shape, and the densities timed."""

    width: int
    batch: int
    forward: tuple[float, ...] = (0.01, 0.1, 0.5)
    both: tuple[float, ...] = (0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


MLP, MLP_BATCH = (2, 100, 100, 100, 4), 32
QUICK = {"forward": (0.1,), "both": (0.01, 0.1, 1.0)}
LAYERS = {
    "full": (Layer(4, 3, (0.5,), (0.5,)), Layer(100, 32), Layer(1024, 256), Layer(4096, 256)),  # the first: overhead
    "quick": (Layer(4, 3, (0.5,), (0.5,)), Layer(100, 32, **QUICK), Layer(1024, 256, **QUICK)),
}


@dataclass(frozen=True)
class Job:
    n: int
    batch: int
    density: float
    has_backward: bool = True
    networks: int | None = None
    is_new: bool = False  # the mask, in every call
    is_graph: bool = False

    @property
    def label(self) -> str:
        parts = [f"{self.networks} networks"] if self.networks else []
        parts += [f"N = {self.n}", f"B = {self.batch}", f"density {self.density:g}"]
        parts.append("fwd+bwd" if self.has_backward else "fwd")
        return ", ".join(parts + ["new mask"] * self.is_new + ["CUDA graph"] * self.is_graph)


def cases(quick: bool, device: str) -> list[Case]:
    jobs, budget = (_cuda_jobs(quick), 0.14) if device == "cuda" else (_cpu_jobs(quick), 0.6)
    found = [Case("masked_linear", job.label, partial(_contenders, job, device), budget=budget) for job in jobs]
    for density in (0.1,) if quick or device == "cuda" else (0.01, 0.1, 1.0):
        label = f"MLP {'-'.join(map(str, MLP))}, density {density:g}, fwd+bwd"
        found.append(Case("masked_linear", label, partial(_mlp, density, device), budget=budget))
    return found


def _cpu_jobs(quick: bool) -> list[Job]:
    return [
        Job(layer.width, layer.batch, density, has_backward)
        for layer in LAYERS["quick" if quick else "full"]
        for has_backward, densities in ((False, layer.forward), (True, layer.both))
        for density in densities
    ]


def _cuda_jobs(quick: bool) -> list[Job]:
    small, middle, large = partial(Job, 100, 32), partial(Job, 1024, 256), partial(Job, 4096, 256)
    networks = partial(small, networks=32)
    if quick:
        jobs = [small(0.1, False), small(0.1), networks(0.1), middle(0.1, False)]
        jobs += [*map(middle, (0.01, 0.1, 1.0)), *map(large, (0.1, 1.0))]
        return jobs + [layer(0.1, is_graph=True) for layer in (middle, large)]
    jobs = [small(0.1, False), small(0.1), small(1.0), networks(0.1), networks(0.1, is_graph=True)]
    for layer in (middle, large):
        jobs += [layer(0.1, False), *map(layer, (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)), layer(0.05, is_new=True)]
        jobs += [layer(density, is_graph=True) for density in (0.01, 0.1, 0.5, 1.0)]
    return jobs


def _indexed_anew(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    torch.autograd.graph.increment_version(mask)  # what any in-place operation does, without its time
    return ops.masked_linear(x, weight, mask)


def _contenders(job: Job, device: str) -> list[Contender]:
    generator = torch.Generator(device).manual_seed(0)
    make, n, lead = {"generator": generator, "device": device}, job.n, (job.networks,) if job.networks else ()
    shapes = (*lead, job.batch, n), (*lead, n, n), (*lead, job.batch, n)
    x, weight, grad = (torch.randn(shape, **make) for shape in shapes)
    mask = torch.rand(weight.shape, **make) < job.density
    task = _both if job.has_backward else _forward
    ours = task(_indexed_anew if job.is_new else ops.masked_linear, x, weight, mask, grad)
    dense = partial(task, peers.dense_networks if lead else peers.dense_linear, x, weight, grad=grad)
    form, dense = fastest({kind: dense(mask=m) for kind, m in peers.mask_forms(mask, weight).items()}, device)
    products = (6.0 if job.has_backward else 2.0) * job.batch
    kept, name = products * int(mask.sum()), "torch bmm(x, w * m)" if lead else "torch F.linear(x, w * m)"
    found = [
        Contender("pns_fast.ops.masked_linear", ours, work=kept, is_ours=True),
        Contender(name, dense, work=products * mask.numel(), note=form),
    ]
    if lead:
        found.append(Contender("torch CSR", None, note="CSR has no batched product"))
    else:
        found += _csr_contenders(job, device, kept, x, weight, mask, grad)
    if job.is_graph:
        found = [_captured(c) for c in found]
    check = partial(_same, found[0].run(), mask)
    return [c if c.is_ours else replace(c, check=check) for c in found]


def _mlp(density: float, device: str) -> list[Contender]:
    torch.manual_seed(0)
    modules = [m for n_in, n_out in pairwise(MLP) for m in (nn.Linear(n_in, n_out), nn.ReLU())]
    plain = nn.Sequential(*modules[:-1]).to(device)
    masks = {name: torch.rand_like(p) < density for name, p in plain.named_parameters()}
    x, grad = torch.randn(MLP_BATCH, MLP[0], device=device), torch.randn(MLP_BATCH, MLP[-1], device=device)
    factors = {name: mask.float() for name, mask in masks.items()}
    parameters = dict(plain.named_parameters())

    def dense() -> Tensor:
        masked, y = {name: p * factors[name] for name, p in parameters.items()}, x
        for i in range(0, len(plain), 2):
            y = nn.functional.linear(y, masked[f"{i}.weight"], masked[f"{i}.bias"])
            y = nn.functional.relu(y) if i + 1 < len(plain) else y
        return y

    def both(forward, inputs):
        def run() -> tuple[Tensor, ...]:
            y = forward()
            return y.detach(), *torch.autograd.grad(y, inputs, grad)

        return run

    model = pns.nn.mask_model(plain, masks)
    ours = both(lambda: model(x), list(model.parameters()))
    found = [
        Contender("pns_fast.nn.mask_model", ours, is_ours=True),
        Contender("torch F.linear(x, w * m)", both(dense, list(parameters.values()))),
        Contender("torch, no masks", both(lambda: plain(x), list(parameters.values()))),
    ]
    expected = ours()

    def same(results: tuple[Tensor, ...]) -> str:
        names = ("output", *parameters)
        return next(filter(None, map(differs, expected, results, (TOLERANCE,) * len(names), names)), "")

    return [found[0], replace(found[1], check=same), found[2]]


def _csr_contenders(job: Job, device: str, kept: float, *inputs: Tensor) -> list[Contender]:
    x, weight, mask, grad = inputs
    found = []
    if not job.is_graph:  # of its autograd; the products alone are faster
        form, csr = fastest((_csr_both if job.has_backward else _csr_forward)(*inputs), device)
        found.append(Contender("torch CSR", csr, work=kept, note=f"prebuilt, {form}"))
    if job.has_backward:
        three = partial(peers.CsrProducts(weight, mask), x.t().contiguous(), grad.t().contiguous())
        note = "prebuilt, no autograd, gradient of w at kept entries only"
        found.append(Contender("torch CSR, three products", three, work=kept, note=note))
    return found


def _captured(contender: Contender) -> Contender:
    if contender.run is None:
        return contender
    run, why_not = captured_or_why(contender.run)
    if run is None and contender.is_ours:
        raise RuntimeError(f"{contender.name}: {why_not}")
    return replace(contender, run=run, note=why_not or contender.note)


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
