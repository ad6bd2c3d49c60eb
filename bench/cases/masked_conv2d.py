"""3 x 3 convolutions with a masked weight, padding 1: forward alone and with the gradients of x and w, every overhead
included, at layers of VGG16 for images of 32 x 32. "64 x 32 x 32" has 64 channels in and out, on 32 x 32 pixels.
And whole steps of training a network on batches of 128 with random masks, Adam included, against the same network
without masks; BN is with batch norm.

FLOPs are those of kept weights for us, of all for dense; the pixels beyond the border, which are zeros, count too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import peers
import torch
from harness import Case, Contender, differs, fastest
from torch import Tensor, nn

import pns_fast as pns
from pns_fast import ops

TOLERANCE = 1e-4  # relative to the largest entry; sums of up to 131,072 float32 terms in another order
DENSITIES = (0.01, 0.05, 0.1, 0.5, 1.0)
STEP_TOLERANCE = 1e-3  # of the outputs of 16 layers


@dataclass(frozen=True)
class Layer:
    """channels -> channels on size x size pixels."""

    channels: int
    size: int
    batch: int = 128


LAYERS = {"full": (Layer(64, 32), Layer(256, 8), Layer(512, 2)), "quick": (Layer(16, 8, 32), Layer(64, 8))}


@dataclass(frozen=True)
class Network:
    """An image network, and what it is trained on."""

    name: str
    channels: int
    size: int
    batch_norm: bool = False
    batch: int = 128


NETWORKS = {
    "full": (
        Network("vgg16", 3, 32),
        Network("vgg16", 3, 32, batch_norm=True),
        Network("vgg-small", 1, 28),
        Network("vgg-small", 1, 8),
    ),
    "quick": (Network("vgg-small", 1, 8),),
}


@dataclass(frozen=True)
class Job:
    layer: Layer
    density: float
    has_backward: bool

    @property
    def label(self) -> str:
        at = self.layer
        parts = [f"{at.channels} x {at.size} x {at.size}", f"B {at.batch}", f"density {self.density:g}"]
        return ", ".join([*parts, "fwd+bwd" if self.has_backward else "fwd"])


def cases(quick: bool, device: str) -> list[Case]:
    layers, networks = (kinds["quick" if quick else "full"] for kinds in (LAYERS, NETWORKS))
    if device == "cuda":  # ours is torch's convolution there, at any density
        directions, densities, of_steps, budget, of_step = (True,), (0.1,), (0.1,), 0.3, 0.6
    else:
        directions, densities, of_steps, budget, of_step = (False, True), DENSITIES, (0.01, 0.1), 0.6, 2.0
        if quick:
            densities = (0.01, 1.0)
    jobs = [
        Job(layer, density, has_backward) for layer in layers for has_backward in directions for density in densities
    ]
    found = [Case("masked_conv2d", job.label, partial(_contenders, job, device), budget=budget) for job in jobs]
    for network in networks:
        for density in of_steps:
            name = f"{network.name} BN" if network.batch_norm else network.name
            label = f"step, {name}, {network.size} x {network.size}, density {density:g}"
            found.append(
                Case("masked_conv2d", label, partial(_steps, network, density, device), unit="step", budget=of_step)
            )
    return found


def _contenders(job: Job, device: str) -> list[Contender]:
    make = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    n, size, batch = job.layer.channels, job.layer.size, job.layer.batch
    x, grad = (torch.randn(batch, n, size, size, **make) for _ in range(2))
    weight = torch.randn(n, n, 3, 3, **make)
    mask = torch.rand(weight.shape, **make) < job.density
    task = _both if job.has_backward else _forward
    flops = (6.0 if job.has_backward else 2.0) * batch * size * size
    ours = Contender(
        "pns_fast.ops.masked_conv2d",
        task(ops.masked_conv2d, x, weight, mask, grad),
        work=flops * int(mask.sum()),
        is_ours=True,
    )
    forms = peers.mask_forms(mask, weight).items()
    form, dense = fastest({kind: task(peers.dense_conv, x, weight, m, grad) for kind, m in forms}, device)
    dense = Contender("torch F.conv2d(x, w * m)", dense, work=flops * mask.numel(), note=form)
    return [ours, replace(dense, check=partial(_same, ours.run()))]


def _steps(network: Network, density: float, device: str) -> list[Contender]:
    make = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    x = torch.randn(network.batch, network.channels, network.size, network.size, **make)
    labels = torch.arange(network.batch, device=device) % 10
    model = pns.networks.image_network(network.name, 10, network.channels, seed=0, batch_norm=network.batch_norm)
    model = model.to(device)
    masks = pns.prune_module(model, "random", density)
    ours = Contender("pns_fast.nn.mask_model", _step(pns.nn.mask_model(model, masks), x, labels), is_ours=True)
    dense = Contender("torch, no masks", _step(pns.nn.finalize(model, masks), x, labels))
    return [ours, replace(dense, check=partial(_same_outputs, ours.run()))]


def _step(model: nn.Module, x: Tensor, labels: Tensor):
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)  # the fastest form for both

    def run() -> Tensor:
        optimizer.zero_grad()
        output = model(x)
        nn.functional.cross_entropy(output, labels).backward()
        optimizer.step()
        return output.detach()

    return run


def _same_outputs(expected: Tensor, output: Tensor) -> str:
    """Before the first step: zeros without masks train, so that later ones differ."""
    return differs(expected, output, STEP_TOLERANCE, "output of the first step")


def _forward(conv, x: Tensor, weight: Tensor, mask: Tensor, grad: Tensor):
    return lambda: (conv(x, weight, mask, padding=1),)


def _both(conv, x: Tensor, weight: Tensor, mask: Tensor, grad: Tensor):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        y = conv(x, weight, mask, padding=1)
        return y.detach(), *torch.autograd.grad(y, (x, weight), grad)

    return run


def _same(expected: tuple[Tensor, ...], results: tuple[Tensor, ...]) -> str:
    for name, ours, theirs in zip(("output", "gradient of x", "gradient of w"), expected, results, strict=False):
        if problem := differs(ours, theirs, TOLERANCE, name):
            return problem
    return ""
