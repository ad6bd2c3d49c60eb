"""Circle networks (2, 100, 100, 100, 4), one epoch of 9,000 samples, batch 32: time of a step of one network.

FLOPs are those of the products, over kept weights for us and over all for the peers; the time is the whole step's.
Edge-popup needs the gradient of every score, so its work does not follow density.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise

import peers
import peers_jax
import torch
from harness import Case, Contender, differs, fastest
from peers import Training
from torch import Tensor

import pns_fast as pns
from pns_fast import ops

WIDTHS = (2, 100, 100, 100, 4)
N_PARAMETERS = sum((i + 1) * o for i, o in pairwise(WIDTHS))
DENSITIES = (1.0, 0.5, 0.1, 0.01, 0.005)
STACKED = 8  # networks of the batched products
LOSS_TOLERANCE = 1e-3  # of the mean loss over up to 60 steps
EPOCH_TOLERANCE = 1e-2  # over 282 steps: one ReLU that rounding flips moves a network's loss by about 1e-3
POPUP_TOLERANCE = 5e-3  # a score that crosses the threshold a step earlier changes the network


def cases(quick: bool, device: str) -> list[Case]:
    n, steps = (8, 20) if quick else (16, 60)
    make = partial(Case, "mlp_trainer", unit="network-step", budget=2.0)
    densities = DENSITIES[::2] if quick else DENSITIES
    train = [
        make(
            f"{n} networks, Adam, density {d:g}",
            partial(_train, n, steps, d),
            curve=("kept parameters of a network", d * N_PARAMETERS),
        )
        for d in densities
    ]
    popup = (0.1,) if quick else (0.1, 0.5)
    train += [make(f"{n} networks, edge-popup, density {d:g}", partial(_popup, n, steps, d)) for d in popup]
    return train


@cache
def _data() -> pns.tasks.Data:
    return pns.tasks.get("circle").sample(n=10_000, seed=0)


def _job(n: int, n_samples: int, density: float, lr: float) -> Training:
    """The first ``n_samples`` of Circle in the trainer's own batch order."""
    parameters = pns.init_population(WIDTHS, n=n, seed=0).flatten()
    mask = torch.rand(parameters.shape, generator=torch.Generator().manual_seed(0)) < density
    order = torch.stack([ops.batch_order(n_samples, (0, i), 0) for i in range(n)])
    x, y = _data().x_train[:n_samples], _data().y_train[:n_samples]
    return Training(WIDTHS, parameters * mask, mask, x, y, order, lr=lr)


def _ours(job: Training, **options) -> Tensor:
    """Trains one epoch; mean losses [N]. The test set is one batch: its evaluation costs two steps of 282."""
    n = len(job.parameters)
    keys = torch.stack([torch.zeros(n, dtype=torch.int64), torch.arange(n)], dim=1)
    samples = job.x[None], job.y[None], job.x[None, : job.batch_size], job.y[None, : job.batch_size]
    results = ops.mlp_trainer(
        job.parameters, job.mask, WIDTHS, *samples, torch.zeros(n, dtype=torch.int64), keys,
        loss="cross_entropy", epochs=1, batch_size=job.batch_size, lr=job.lr, **options,
    )  # fmt: skip
    return results[3][:, 0]


def _kept_weights(mask: Tensor) -> tuple[float, float]:
    """Mean kept weights of a network: of all layers, and of the first, whose input needs no gradient."""
    kept, at = [], 0
    for n_in, n_out in pairwise(WIDTHS):
        kept.append(float(mask[:, at : at + n_in * n_out].sum()) / len(mask))
        at += (n_in + 1) * n_out
    return sum(kept), kept[0]


def _work(job: Training, mask: Tensor) -> float:
    """FLOPs of one step: forward, gradient of the weights, gradient of the layer's input."""
    kept, first = _kept_weights(mask)
    return (6 * kept - 2 * first) * len(job.x) / job.steps


def _loss_check(expected: Tensor, tolerance: float, losses: Tensor) -> str:
    return differs(expected[: len(losses)].double(), losses.double(), tolerance, "loss of the epoch")


def _peer(name: str, run, network_steps: int, expected: Tensor, tolerance: float, **options) -> Contender:
    check = partial(_loss_check, expected, tolerance)
    return Contender(name, run, check=check, units=float(network_steps), **options)


_fastest_threads: dict[str, int] = {}


def _threads(name: str, run) -> tuple[str, object]:
    """On one thread or on all: products this small may be faster on one. Searched once, density changes no shape."""
    forms = {n: peers.on_threads(run, n) for n in (1, torch.get_num_threads())}
    if name not in _fastest_threads:
        _fastest_threads[name] = fastest(forms)[0]
    n = _fastest_threads[name]
    return f"{n} thread{'s' * (n > 1)}", forms[n]


def _train(n: int, steps: int, density: float) -> list[Contender]:
    job, part = _job(n, 9000, density, 1e-3), _job(STACKED, 32 * steps, density, 1e-3)
    adam = {"optimizer": "adam", "beta1": 0.9}
    full_losses, part_losses = _ours(job, **adam), _ours(part, **adam)
    dense = _work(job, torch.ones_like(job.mask))
    loop_threads, loop = _threads("loop", partial(peers.train_loop, part))
    stack_threads, stack = _threads("stacked", partial(peers.train_stacked, part))
    contenders = [
        Contender(
            "pns_fast.ops.mlp_trainer",
            partial(_ours, job, **adam),
            units=float(n * job.steps),
            work=_work(job, job.mask),
            is_ours=True,
        ),
        _peer(
            "torch loop, 1 network", loop, part.steps, part_losses, LOSS_TOLERANCE,
            work=dense, note=f"{steps} of {job.steps} steps, {loop_threads}",
        ),
        _peer(
            f"torch baddbmm, {STACKED} networks", stack, STACKED * part.steps, part_losses, LOSS_TOLERANCE,
            work=dense, note=f"{steps} of {job.steps} steps, {stack_threads}",
        ),
    ]  # fmt: skip
    for name, (run, note) in peers_jax.trainers(job, torch.get_num_threads()).items():
        contenders.append(_peer(name, run, n * job.steps, full_losses, EPOCH_TOLERANCE, work=dense, note=note))
    return contenders


def _popup(n: int, steps: int, density: float) -> list[Contender]:
    job, part = (_job(count, size, 1.0, 0.1) for count, size in ((n, 9000), (1, 32 * steps)))
    scores = 0.1 * torch.randn(job.parameters.shape, generator=torch.Generator().manual_seed(1))
    sgd = {"optimizer": "sgd", "beta1": 0.9, "weight_decay": 5e-4, "density": density}
    part_losses = _ours(part, scores=scores[:1], **sgd)
    threads, loop = _threads("edge-popup", partial(peers.edge_popup_loop, part, scores[:1], density))
    kept, first = _kept_weights(job.mask)
    work = (2 * density * (2 * kept - first) + 2 * kept) * len(job.x) / job.steps
    return [
        Contender(
            "pns_fast.ops.mlp_trainer",
            partial(_ours, job, scores=scores, **sgd),
            units=float(n * job.steps),
            work=work,
            is_ours=True,
        ),
        _peer(
            "torch loop, 1 network", loop, part.steps, part_losses, POPUP_TOLERANCE,
            note=f"{steps} of {job.steps} steps, {threads}",
        ),
    ]  # fmt: skip
