"""Circle networks (2, 100, 100, 100, 4), epochs of 9,000 samples, batch 32: time of a step of one network.

Of Adam ours trains ten epochs a call, as sweeps do, and peers the first or a part of it: in one native call drawing the
networks in and handing them out again is part of the time, which peers have done before the clock starts.
FLOPs are those of the products, over kept weights for us and over all for the peers; the time is the whole step's.
Edge-popup needs the gradient of every score, so its work does not follow density. Cost curves vary one thing at a
time, over at most 60 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import peers
import peers_jax
import torch
from harness import Case, Contender, Point, differs, fastest
from masks import make_mask, n_kept_and_live
from peers import Training
from torch import Tensor

import pns_fast as pns
from pns_fast import ops

WIDTHS = (2, 100, 100, 100, 4)
DENSITIES = (1.0, 0.5, 0.1, 0.01, 0.005)
OTHER_MASKS = [(20, "pruned", "pruners' masks", d) for d in (0.1, 0.01)]  # four of each
OTHER_MASKS += [(16, "random", "random mask", d) for d in (0.1, 0.01, 0.005)]
STACKED = {"cpu": 8, "cuda": 528}  # networks of the batched products
ON_GPU = 528  # networks: four a multiprocessor of an H100 or H200
LOSS_TOLERANCE = 1e-3  # of the mean loss over up to 60 steps
EPOCH_TOLERANCE = 1e-2  # over 282 steps: one ReLU that rounding flips moves a network's loss by about 1e-3
POPUP_TOLERANCE = 5e-3  # a score that crosses the threshold a step earlier changes the network
DISTINCT = 20  # more networks are these again, in other batch orders: they take long to draw
# At 1e-4 a ReLU that rounding flips moves a loss of 20 layers by 1% within 60 steps, at 1e-5 by 4e-5.
CURVE_STEPS, CURVE_LR = 60, 1e-5
CURVE_SAMPLES = 8960  # at most; 35 batches of 256
JAX_NETWORK_STEPS = 4000  # in a curve, beyond these JAX would take the case's time for itself
LARGEST_BYTES = 6 << 30  # of memory that a case of 10,000 networks takes
KEPT, WIDTH, DEPTH = "kept parameters of a network", "width of 3 hidden layers", "neuron layers of width 100"
NETWORKS, THREADS, BATCH = "networks in a call", "threads", "samples a batch"
OURS = "pns_fast.ops.mlp_trainer"
EPOCHS = 10


def cases(quick: bool, device: str) -> list[Case]:
    make = partial(Case, "mlp_trainer", unit="network-step")
    if device == "cuda":
        return _cuda_cases(quick, make)
    n, steps = (8, 20) if quick else (16, 60)
    train = [
        make(
            f"{_networks(n)}, Adam, density {d:g}",
            partial(_train, n, steps, d, "connected"),
            budget=2.0,
            points=(Point(KEPT, n_kept_and_live(make_mask("connected", WIDTHS, n, d), WIDTHS)[0]),),
        )
        for d in (DENSITIES[::2] if quick else DENSITIES)
    ]
    train += [
        make(f"{_networks(count)}, {words}, density {d:g}", partial(_train, count, steps, d, kind), budget=2.0)
        for count, kind, words, d in ([(n, "random", "random mask", 0.005)] if quick else OTHER_MASKS)
    ]
    popup = [(n, 0.1), (1, 0.1)] if quick else [(16, 0.1), (16, 0.5), (1, 0.1), (1, 0.5)]
    train += [
        make(f"{_networks(count)}, edge-popup, density {d:g}", partial(_popup, count, steps, d), budget=2.0)
        for count, d in popup
    ]
    return train + _curves(quick, make)


def _cuda_cases(quick: bool, make) -> list[Case]:
    """As on the CPU, with as many networks as a GPU wants; and one, which it does not."""
    n, found = ON_GPU, []
    for density in (1.0, 0.1) if quick else (1.0, 0.5, 0.1, 0.01):
        build = partial(_train, n, 20, density, "connected", "cuda")
        found.append(make(f"{_networks(n)}, Adam, density {density:g}", build, budget=1.5))
    if not quick:
        found.append(make(f"{_networks(n)}, random mask, density 0.1", partial(_train, n, 20, 0.1, "random", "cuda")))
    for count, density in ((n, 0.1),) if quick else ((n, 0.1), (n, 0.5), (1, 0.1)):
        label = f"{_networks(count)}, edge-popup, density {density:g}"
        found.append(make(label, partial(_popup, count, 20, density, "cuda")))
    for count in (1, 1000) if quick else (1, 16, 132, 1000, 10_000):
        build = partial(_curve, density=0.1, jax=False, n=count, device="cuda")
        points = (Point(NETWORKS, count),)
        found.append(make(f"{_networks(count)}, density 0.1", build, budget=0.3, points=points, compared=False))
    for width in () if quick else (32, 100, 300):
        build = partial(_curve, density=0.1, jax=False, widths=(2, *[width] * 3, 4), n=132, device="cuda")
        points = (Point(WIDTH, width, "density 0.1"),)
        found.append(make(f"132 networks, width {width}", build, budget=0.3, points=points, compared=False))
    return found


def _networks(n: int) -> str:
    return f"{n:,} network{'s' * (n > 1)}"


def _curves(quick: bool, make) -> list[Case]:
    """One thing changes at a time: width, depth, networks, threads, batch. All cross in one case a density."""
    found = []

    def add(label: str, density: float, at: dict[str, float], **settings) -> None:
        points = tuple(Point(axis, x, "" if axis == NETWORKS else f"density {density:g}") for axis, x in at.items())
        build = partial(_curve, density=density, jax=not quick, **settings)
        found.append(make(f"{label}, density {density:g}", build, budget=0.3, points=points, compared=False))

    for d in (0.1,) if quick else (1.0, 0.1):
        crossing = {WIDTH: 100, DEPTH: len(WIDTHS), BATCH: 32, THREADS: torch.get_num_threads()}
        add(f"16 networks, {CURVE_STEPS} steps", d, {**crossing, **({NETWORKS: 16} if d == 0.1 else {})})
        for width in (32, 300) if quick else (32, 300, 1000):
            add(f"width {width}", d, {WIDTH: width}, widths=(2, *[width] * 3, 4), n=2 if width == 1000 else 16)
        for depth in (10,) if quick else (3, 10, 20):
            add(f"depth {depth}", d, {DEPTH: depth}, widths=(2, *[100] * (depth - 2), 4))
        for size in (128,) if quick else (8, 128, 512):
            add(f"batch {size}", d, {BATCH: size}, batch_size=size)
        for n in _fewer_threads(quick):
            add(f"{n} thread{'s' * (n > 1)}", d, {THREADS: n}, n_threads=n)
    for n in (1, 64) if quick else (1, 4, 64, 256, 1000, *([10_000] if _free_bytes() > LARGEST_BYTES else [])):
        add(_networks(n), 0.1, {NETWORKS: n}, n=n)
    return found


def _fewer_threads(quick: bool) -> list[int]:
    """Powers of two below the threads that all other cases run on."""
    n = torch.get_num_threads()
    return [1 << i for i in range(n.bit_length()) if 1 << i < n][: 1 if quick else None]


def _free_bytes() -> int:
    """What Linux says is available; 0 where it does not say."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0


@cache
def _samples(device: str) -> tuple[Tensor, Tensor]:
    data = pns.tasks.get("circle").sample(n=10_000, seed=0)
    return data.x_train.to(device), data.y_train.to(device)


def _job(
    n: int,
    n_samples: int,
    mask: Tensor,
    lr: float,
    widths: Sequence[int] = WIDTHS,
    batch_size: int = 32,
    n_orders: int | None = None,
    device: str = "cpu",
) -> Training:
    """The first ``n_samples`` of Circle in the trainer's own batch order; ``n_orders``: where peers train fewer."""
    parameters = pns.init_population(widths, n=min(n, DISTINCT), seed=0).flatten().repeat(-(-n // DISTINCT), 1)[:n]
    order = torch.stack([ops.batch_order(n_samples, (0, i), 0) for i in range(n if n_orders is None else n_orders)])
    x, y = (part[:n_samples] for part in _samples(device))
    parameters, mask = parameters.mul_(mask).to(device), mask.to(device)
    return Training(tuple(widths), parameters, mask, x, y, order.to(device), batch_size, lr)


def _ours(job: Training, epochs: int = 1, **options) -> Tensor:
    """Mean losses of the first epoch, [N]. The test set is 32 samples: its evaluation costs less than a step."""
    number = torch.arange(len(job.parameters), device=job.x.device)
    keys = torch.stack([number * 0, number], dim=1)
    samples = job.x[None], job.y[None], job.x[None, :32], job.y[None, :32]
    results = ops.mlp_trainer(
        job.parameters, job.mask, job.widths, *samples, number * 0, keys,
        loss="cross_entropy", epochs=epochs, batch_size=job.batch_size, lr=job.lr, **options,
    )  # fmt: skip
    return results[3][:, 0]


def _kept_weights(mask: Tensor, widths: Sequence[int]) -> tuple[float, float]:
    """Mean kept weights of a network: of all layers, and of the first, whose input needs no gradient."""
    kept, at = [], 0
    for n_in, n_out in pairwise(widths):
        kept.append(float(mask[:, at : at + n_in * n_out].sum()) / len(mask))
        at += (n_in + 1) * n_out
    return sum(kept), kept[0]


def _work(job: Training, mask: Tensor) -> float:
    """FLOPs of one step: forward, gradient of the weights, gradient of the layer's input."""
    kept, first = _kept_weights(mask, job.widths)
    return (6 * kept - 2 * first) * len(job.x) / job.steps


def _dense_work(job: Training) -> float:
    return _work(job, torch.ones_like(job.mask[:1]))


def _kept_note(job: Training) -> str:
    """How many parameters are kept, and how many of them do anything."""
    kept, live = (round(count) for count in n_kept_and_live(job.mask, job.widths))
    return f"{kept:,} kept, {'all' if live == kept else format(live, ',')} live"


def _loss_check(expected: Tensor, tolerance: float, losses: Tensor) -> str:
    return differs(expected[: len(losses)].double().cpu(), losses.double().cpu(), tolerance, "loss of the epoch")


def _own(job: Training, epochs: int = 1, **options) -> Contender:
    units = float(len(job.parameters) * job.steps * epochs)
    return Contender(OURS, partial(_ours, job, epochs, **options), units=units, is_ours=True)


def _peer(name: str, run, network_steps: int, expected: Tensor, tolerance: float, **options) -> Contender:
    check = partial(_loss_check, expected, tolerance)
    return Contender(name, run, check=check, units=float(network_steps), **options)


_fastest_threads: dict[str, int] = {}


def _threads(name: str, run, device: str) -> tuple[str, object]:
    """On one thread or on all: products this small may be faster on one. Searched once, density changes no shape."""
    if device == "cuda":
        return "eager", run
    forms = {n: peers.on_threads(run, n) for n in (1, torch.get_num_threads())}
    if name not in _fastest_threads:
        _fastest_threads[name] = fastest(forms)[0]
    n = _fastest_threads[name]
    return f"{n} thread{'s' * (n > 1)}", forms[n]


ADAM = {"optimizer": "adam", "beta1": 0.9}


def _many_masks(kind: str, widths: tuple[int, ...], n: int, density: float) -> Tensor:
    """Of n networks, of which some may be the same: they take long to draw."""
    return make_mask(kind, widths, min(n, DISTINCT), density).repeat(-(-n // DISTINCT), 1)[:n]


def _train(n: int, steps: int, density: float, kind: str, device: str = "cpu") -> list[Contender]:
    mask, n_stacked = _many_masks(kind, WIDTHS, n, density), STACKED[device]
    job = _job(n, 9000, mask, 1e-3, device=device)
    part = _job(n_stacked, 32 * steps, mask[:n_stacked], 1e-3, device=device)
    full_losses, part_losses = _ours(job, **ADAM), _ours(part, **ADAM)
    dense = _dense_work(job)
    loop_threads, loop = _threads("loop", partial(peers.train_loop, part), device)
    stack_threads, stack = _threads("stacked", partial(peers.train_stacked, part), device)
    contenders = [
        replace(
            _own(job, EPOCHS, **ADAM),
            work=_work(job, job.mask) if kind == "connected" else None,  # a rate over skipped weights would say nothing
            note=f"{EPOCHS} epochs, {_kept_note(job)}",
        ),
        _peer(
            "torch loop, 1 network", loop, part.steps, part_losses, LOSS_TOLERANCE,
            work=dense, note=f"{steps} of {job.steps} steps, {loop_threads}",
        ),
        _peer(
            f"torch baddbmm, {n_stacked} networks", stack, n_stacked * part.steps, part_losses, LOSS_TOLERANCE,
            work=dense, note=f"{steps} of {job.steps} steps, {stack_threads}",
        ),
    ]  # fmt: skip
    names = (
        peers_jax.NAMES if device == "cpu" else peers_jax.NAMES[:1]
    )  # the others are for several devices or few networks
    for name, (run, note) in peers_jax.trainers(job, torch.get_num_threads(), names).items():
        note = note if run is None else f"1 epoch, {note}"
        contenders.append(_peer(name, run, n * job.steps, full_losses, EPOCH_TOLERANCE, work=dense, note=note))
    return contenders


def _curve(
    density: float,
    jax: bool,
    widths: tuple[int, ...] = WIDTHS,
    n: int = 16,
    batch_size: int = 32,
    n_threads: int | None = None,
    device: str = "cpu",
) -> list[Contender]:
    """Ours, and JAX where it takes few steps and runs on as many threads."""
    steps = min(CURVE_STEPS, CURVE_SAMPLES // batch_size)
    jax = jax and n_threads is None and n * steps <= JAX_NETWORK_STEPS and max(widths) < 1000
    mask = _many_masks("connected", widths, n, density)
    job = _job(n, batch_size * steps, mask, CURVE_LR, widths, batch_size, n_orders=n if jax else 1, device=device)
    some = replace(job, mask=job.mask[:DISTINCT])
    ours = replace(_own(job, **ADAM), work=_work(some, some.mask), note=_kept_note(some))
    if n_threads is not None:
        ours = replace(ours, run=peers.on_threads(ours.run, n_threads))
    if not jax:
        return [ours]
    by_vmap = peers_jax.NAMES[:1]
    losses, dense = _ours(job, **ADAM), _dense_work(job)
    return [
        ours,
        *(
            _peer(name, run, n * steps, losses, EPOCH_TOLERANCE, work=dense, note=note)
            for name, (run, note) in peers_jax.trainers(job, torch.get_num_threads(), by_vmap).items()
        ),
    ]


def _popup(n: int, steps: int, density: float, device: str = "cpu") -> list[Contender]:
    mask = make_mask("connected", WIDTHS, n, 1.0)
    job, part = _job(n, 9000, mask, 0.1, device=device), _job(1, 32 * steps, mask[:1], 0.1, device=device)
    scores = 0.1 * torch.randn(job.parameters.shape, generator=torch.Generator().manual_seed(1)).to(device)
    sgd = {"optimizer": "sgd", "beta1": 0.9, "weight_decay": 5e-4, "density": density}
    losses = _ours(part, scores=scores[:1], **sgd)
    kept, first = _kept_weights(job.mask, WIDTHS)
    work = (2 * density * (2 * kept - first) + 2 * kept) * len(job.x) / job.steps
    contenders = [replace(_own(job, scores=scores, **sgd), work=work)]
    loops = {"torch loop, topk": peers.edge_popup_loop, "torch loop, public code": peers.edge_popup_public}
    for name, loop in loops.items():
        threads, run = _threads(name, partial(loop, part, scores[:1], density), device)
        note = f"1 network, {steps} of {job.steps} steps, {threads}"
        contenders.append(_peer(name, run, part.steps, losses, POPUP_TOLERANCE, note=note))
    return contenders
