"""The CUDA side of mlp_trainer: memory, the plan (which networks share a launch) and ranges of epochs.

A call waits for the device once, to learn how many weights can matter, and then once a range of epochs: between ranges
it reports progress and can be interrupted.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .. import _native
from ._library import pointer
from .topk_mask import keep_count

SECONDS_OF_RANGE = 0.25  # of training between two looks at the host
MOST_IMAGE_BYTES = 1 << 33  # networks beyond wait for the next chunk
_N_STREAMS = 8
_CLOCK = 1.5e9  # cycles a second, for the first guess of a range's length
_CLUSTERS = (8, 4, 2)


@dataclass(frozen=True)
class _Group:
    """Networks that share a launch, the longest first."""

    networks: Tensor  # int32 on the device
    residence: int
    shared_bytes: int
    n_threads: int
    n_blocks: int
    cost: float  # of the longest

    def train(self, trainer, stream: torch.cuda.Stream, first: int, last: int) -> None:
        trainer.stream = stream.cuda_stream
        trainer.train(
            networks=pointer(self.networks), n_group=len(self.networks), residence=self.residence,
            shared_bytes=self.shared_bytes, n_threads=self.n_threads, n_blocks=self.n_blocks, first=first, last=last,
        )  # fmt: skip


@cache
def _streams(device: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(_N_STREAMS)]


def run(given: dict[str, Tensor | None], widths: list[int], options: dict, progress) -> tuple[Tensor, ...]:
    """All networks of a call, as many at a time as memory holds.

    Args:
        given: the op's tensors, contiguous, labels int64.
        widths: layer widths.
        options: loss, optimizer and schedule by name, and the numbers of ``ops.mlp_trainer``.
        progress: as in ``ops.mlp_trainer``.

    Returns:
        What ``ops.mlp_trainer`` returns.
    """
    parameters, scores, epochs = given["parameters"], given["scores"], options["epochs"]
    if max(widths) > _native.cuda().MLP_MAX_WIDTH:
        raise ValueError(f"widths: on CUDA at most {_native.cuda().MLP_MAX_WIDTH}, got {widths}")
    n, losses = len(parameters), {"dtype": torch.float64, "device": parameters.device}
    out = {
        "parameters_out": torch.empty_like(parameters),
        "scores_out": parameters.new_empty(0) if scores is None else torch.empty_like(scores),
        "mask_out": torch.empty_like(given["mask"]),
        "train_loss": torch.full((n, epochs), math.nan, **losses),
        "test_loss": torch.full((n, epochs + 1), math.nan, **losses),
        "metric": torch.full((n, epochs + 1), math.nan, **losses),
    }
    if n == 0:
        return tuple(out.values())
    settings = _Settings(given, widths, options)
    counts = settings.measure()
    plans = settings.trainer(given, out).plan(widths, counts.ctypes.data, _shared_bytes(parameters.device))
    image_bytes = np.array([p[0] for p in plans])
    done = 0
    for begin, end in _chunks(image_bytes, parameters.device):
        rows = slice(begin, end)
        part = {name: t if t is None or name not in _PER_NETWORK else t[rows] for name, t in given.items()}
        out_part = {name: t[rows] for name, t in out.items()}
        report = None
        if progress is not None:

            def report(epochs_done, done=done, size=end - begin):
                progress(done + size * epochs_done, n * epochs)

        _train_chunk(settings, part, out_part, plans[rows], report)
        done += (end - begin) * epochs
    if progress is not None:
        progress(n * epochs, n * epochs)
    return tuple(out.values())


_PER_NETWORK = ("parameters", "mask", "scores", "dataset", "keys")


class _Settings:
    """What the networks of a call share, on the device."""

    def __init__(self, given, widths, options):
        self.given, self.widths, self.options = given, widths, options
        self.device = given["parameters"].device
        self.batch_size = min(options["batch_size"], given["x_train"].shape[1])
        self.widths_on_device = torch.tensor(widths, dtype=torch.int32, device=self.device)
        self.n_steps = -(-given["x_train"].shape[1] // self.batch_size)
        self.rates = torch.from_numpy(_rates(options, self.n_steps)).to(self.device)
        self.keep = torch.from_numpy(_keep_counts(options, widths)).to(self.device)

    def trainer(self, given, out):
        """The native trainer of some or all networks, without images."""
        t, options = _native.cuda().MlpTrainer(), self.options
        n, n_neurons = len(given["parameters"]), sum(self.widths)
        t.n_networks, t.n_layers, t.n_parameters = n, len(self.widths) - 1, given["parameters"].shape[1]
        t.n_train, t.n_test = given["x_train"].shape[1], given["x_test"].shape[1]
        t.loss, t.optimizer = _native.cpu.LOSSES[options["loss"]], _native.cpu.OPTIMIZERS[options["optimizer"]]
        t.batch_size = self.batch_size
        for name in ("epochs", "beta1", "beta2", "eps", "weight_decay", "dense_from"):
            setattr(t, name, options[name])
        t.one_minus_beta1, t.one_minus_beta2 = 1 - options["beta1"], 1 - options["beta2"]  # rounded once
        self.scratch = {
            "flags": torch.empty(n * 2 * n_neurons, dtype=torch.uint8, device=self.device),
            "ranks": torch.empty(n * n_neurons, dtype=torch.int32, device=self.device),
            "counts": torch.empty(n, len(self.widths) - 1, 2, dtype=torch.int32, device=self.device),
            "stopped": torch.zeros(n, dtype=torch.int32, device=self.device),
        }
        shared = {"widths": self.widths_on_device, "rates": self.rates, "keep": self.keep}
        for name, tensor in (given | out | self.scratch | shared).items():
            setattr(t, name, pointer(tensor))
        t.device = self.device.index
        t.stream = torch.cuda.current_stream(self.device).cuda_stream
        return t

    def measure(self) -> np.ndarray:
        """Live neurons and kept weights between them, int32 [N, layers, 2]; waits for the device."""
        self.trainer(self.given, {}).measure()
        return self.scratch["counts"].cpu().numpy()


def _rates(options: dict, n_steps: int) -> np.ndarray:
    """lr, Adam's step size and second correction of every step: float32 [epochs * n_steps, 3]."""
    epoch = np.arange(options["epochs"])
    lr = np.full(len(epoch), options["lr"], dtype=np.float64)
    if options["schedule"] == "cosine":
        lr *= 0.5 * (1 + np.cos(np.pi * epoch / max(1, options["epochs"])))
    elif options["schedule"] == "step":
        lr *= options["gamma"] ** (epoch // options["step_epochs"]).astype(np.float64)
    lr = np.repeat(lr, n_steps)
    step = np.arange(1, len(lr) + 1)
    correction1, correction2 = (1 - options[beta] ** step.astype(np.float64) for beta in ("beta1", "beta2"))
    return np.stack([lr, lr / correction1, 1 / np.sqrt(correction2)], axis=1).astype(np.float32)


def _keep_counts(options: dict, widths: list[int]) -> np.ndarray:
    """Edge-popup: how many weights and biases of each layer are kept in each epoch, int32 [epochs or 1, 2 L]."""
    epochs, density = options["epochs"], options["density"]
    counts = []
    for epoch in range(max(1, epochs)):
        now = density ** ((epoch + 1) / epochs) if options["anneal"] and epochs > 0 else density
        parts = ((n_in * n_out, n_out) for n_in, n_out in itertools.pairwise(widths))
        counts.append([keep_count(float(now), n) for part in parts for n in part])
    return np.array(counts, dtype=np.int32)


def _shared_bytes(device: torch.device) -> int:
    """Dynamic shared memory that a block may take: the kernels have some of their own."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin - _STATIC_BYTES


_STATIC_BYTES = 8704


def _chunks(image_bytes: np.ndarray, device: torch.device):
    """Ranges of networks whose images fit into memory together."""
    limit = min(MOST_IMAGE_BYTES, torch.cuda.mem_get_info(device)[0] // 2)
    begin, total = 0, 0
    for i, size in enumerate(image_bytes.tolist()):
        if i > begin and total + size > limit:
            yield begin, i
            begin, total = i, 0
        total += size
    yield begin, len(image_bytes)


def _groups(plans: list[tuple], device: torch.device) -> list[_Group]:
    """Networks of one residence and about one size share a launch; the longest networks are launched first."""
    members, properties = defaultdict(list), torch.cuda.get_device_properties(device)
    for i, (_, _, residence, n_threads, _) in enumerate(plans):
        members[residence, n_threads].append(i)
    groups = []
    for (residence, n_threads), indices in members.items():
        indices.sort(key=lambda i: -plans[i][4])
        n_blocks = 1
        if residence == _native.cuda().MLP_GLOBAL:
            if properties.major >= 9:
                n_blocks = next((c for c in _CLUSTERS if c * len(indices) <= properties.multi_processor_count), 1)
        elif len(plans) <= properties.multi_processor_count:  # nobody to share a multiprocessor with
            n_threads = _native.cuda().MLP_MOST_THREADS[residence]
        networks = torch.tensor(indices, dtype=torch.int32, device=device)
        shared_bytes = max(plans[i][1] for i in indices)
        groups.append(_Group(networks, residence, shared_bytes, n_threads, n_blocks, plans[indices[0]][4]))
    return sorted(groups, key=lambda g: -g.cost)


def _train_chunk(settings: _Settings, given, out, plans, report) -> None:
    device, epochs = settings.device, settings.options["epochs"]
    sizes = np.array([p[0] for p in plans])
    images = torch.zeros(int(sizes.sum()), dtype=torch.uint8, device=device)
    image_at = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)[:-1]])).to(device)
    trainer = settings.trainer(given, out)
    trainer.images, trainer.image_at = pointer(images), pointer(image_at)
    trainer.measure()
    trainer.build()
    groups, main, streams = _groups(plans, device), torch.cuda.current_stream(device), _streams(device.index)
    n_processors = torch.cuda.get_device_properties(device).multi_processor_count
    cycles = max(sum(p[4] for p in plans) / n_processors, max(p[4] for p in plans)) * settings.n_steps
    seconds_an_epoch, first = cycles / _CLOCK, 0
    while first < max(1, epochs):
        n_epochs = max(1, int(SECONDS_OF_RANGE / seconds_an_epoch))
        last = min(epochs, first + n_epochs)
        begin = time.perf_counter()
        _train_range(trainer, groups, main, streams, first, last)
        first += n_epochs
        if first < epochs:
            main.synchronize()
            seconds_an_epoch = max(1e-6, (time.perf_counter() - begin) / (last - first + n_epochs))
            if report is not None:
                report(last)
    trainer.stream = main.cuda_stream
    trainer.store()
    if report is not None:
        main.synchronize()


def _train_range(trainer, groups, main, streams, first: int, last: int) -> None:
    """Groups run beside each other; `main` goes on when all are done, also after an exception."""
    used = streams[: len(groups)]
    for stream in used:
        stream.wait_stream(main)
    try:
        for i, group in enumerate(groups):
            group.train(trainer, used[i % len(used)], first, last)
    finally:
        for stream in used:
            main.wait_stream(stream)
