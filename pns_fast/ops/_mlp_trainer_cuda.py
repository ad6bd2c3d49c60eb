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
from ._keep import keep_count
from ._library import pointer

SECONDS_OF_RANGE = 0.25  # of training between two looks at the host
MOST_IMAGE_BYTES = 1 << 33  # networks beyond wait for the next chunk
_N_STREAMS = 8
_CLOCK = 1.5e9  # cycles a second, for the first guess of a range's length
_CLUSTERS = (8, 4, 2)
_STATIC_BYTES = 8704  # of shared memory that the kernels have beside the dynamic


@dataclass(frozen=True)
class _Group:
    """Networks that share a launch, the longest first."""

    networks: Tensor  # int32 on the device
    residence: int
    shared_bytes: int
    n_threads: int
    n_blocks: int
    cost: float  # of the longest

    def train(self, native, stream: torch.cuda.Stream, first: int, last: int) -> None:
        native.stream = stream.cuda_stream
        native.train(
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
    call = _Call(given, out, widths, options)
    plans = call.plan()
    image_bytes = np.array([p[0] for p in plans])
    stream = torch.cuda.current_stream(parameters.device)
    for begin, end in _chunks(image_bytes, parameters.device):

        def report(epochs_done: int, begin=begin, end=end) -> None:
            """Waits for the device: what follows is not enqueued for long before, so that Ctrl-C is heard."""
            stream.synchronize()
            if progress is not None:
                progress(begin * epochs + (end - begin) * epochs_done, n * epochs)

        call.train(slice(begin, end), plans[begin:end], report)
        if end < n or progress is not None:
            report(epochs)
    return tuple(out.values())


class _Call:
    """The tensors of a call: a row a network, and what all networks share."""

    def __init__(self, given: dict[str, Tensor | None], out: dict[str, Tensor], widths: list[int], options: dict):
        self.widths, self.options = widths, options
        self.device = given["parameters"].device
        n, n_layers, n_neurons = len(given["parameters"]), len(widths) - 1, sum(widths)

        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=self.device)

        names = ("parameters", "mask", "scores", "dataset", "keys")
        self.rows = {name: given[name] for name in names} | out
        self.rows["flags"], self.rows["ranks"] = empty(n, 2 * n_neurons, dtype=torch.uint8), empty(n, n_neurons)
        self.rows["counts"], self.rows["stopped"] = empty(n, n_layers, 2), empty(n).zero_()
        self.shared = {name: t for name, t in given.items() if name not in names}
        self.batch_size = min(options["batch_size"], given["x_train"].shape[1])
        self.n_steps = -(-given["x_train"].shape[1] // self.batch_size)
        self.shared["widths"] = torch.tensor(widths, dtype=torch.int32, device=self.device)
        self.shared["rates"] = torch.from_numpy(_rates(options, self.n_steps)).to(self.device)
        self.shared["keep"] = torch.from_numpy(_keep_counts(options, widths)).to(self.device)

    def native(self, rows: slice):
        """The native trainer of some networks, without images."""
        t, options = _native.cuda().MlpTrainer(), self.options
        parts = {name: part if part is None or part.numel() == 0 else part[rows] for name, part in self.rows.items()}
        t.n_networks, t.n_parameters = parts["parameters"].shape
        t.n_layers, t.batch_size = len(self.widths) - 1, self.batch_size
        t.n_train, t.n_test = self.shared["x_train"].shape[1], self.shared["x_test"].shape[1]
        t.loss, t.optimizer = _native.cpu.LOSSES[options["loss"]], _native.cpu.OPTIMIZERS[options["optimizer"]]
        for name in ("epochs", "beta1", "beta2", "eps", "weight_decay", "dense_from"):
            setattr(t, name, options[name])
        t.one_minus_beta1, t.one_minus_beta2 = 1 - options["beta1"], 1 - options["beta2"]  # rounded once
        for name, tensor in (parts | self.shared).items():
            setattr(t, name, pointer(tensor))
        t.device = self.device.index
        t.stream = torch.cuda.current_stream(self.device).cuda_stream
        return t

    def plan(self) -> list[tuple]:
        """What each network needs (``bind_mlp_trainer_cuda.cpp``); waits for the device."""
        native = self.native(slice(None))
        native.measure()
        counts = self.rows["counts"].cpu()
        shared_bytes = torch.cuda.get_device_properties(self.device).shared_memory_per_block_optin - _STATIC_BYTES
        return native.plan(self.widths, pointer(counts), shared_bytes)

    def train(self, rows: slice, plans: list[tuple], report) -> None:
        """Builds, trains in ranges of epochs and stores these networks; between ranges it waits and reports."""
        epochs, main = self.options["epochs"], torch.cuda.current_stream(self.device)
        sizes = np.array([p[0] for p in plans])
        images = torch.zeros(int(sizes.sum()), dtype=torch.uint8, device=self.device)
        image_at = torch.from_numpy(np.cumsum(sizes) - sizes).to(self.device)
        native = self.native(rows)
        native.images, native.image_at = pointer(images), pointer(image_at)
        native.build()
        groups = _groups(plans, self.device)
        n_processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        cycles = max(sum(p[4] for p in plans) / n_processors, groups[0].cost) * self.n_steps
        seconds_an_epoch, first = cycles / _CLOCK, 0
        while first < max(1, epochs):
            begin, last = time.perf_counter(), min(epochs, first + max(1, int(SECONDS_OF_RANGE / seconds_an_epoch)))
            _train_range(native, groups, main, _streams(self.device.index), first, last)
            if last < epochs:
                report(last)
                seconds_an_epoch = max(1e-6, (time.perf_counter() - begin) / (last - first))
            first = max(last, 1)
        native.stream = main.cuda_stream
        native.store()


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


def _train_range(native, groups, main, streams, first: int, last: int) -> None:
    """Groups run beside each other; `main` goes on when all are done, also after an exception."""
    used = streams[: len(groups)]
    for stream in used:
        stream.wait_stream(main)
    try:
        for i, group in enumerate(groups):
            group.train(native, used[i % len(used)], first, last)
    finally:
        for stream in used:
            main.wait_stream(stream)
