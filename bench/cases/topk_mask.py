"""Scores -> 0/1 mask with exactly k ones, and the k-th largest score.

Rates count a score read once and a mask entry written once: 5 bytes a float32 score, 4 without a mask. "drifting":
every call ranks other scores, a relative 1e-3 away from those before, and we are given the last threshold as a hint.
The ceiling is a read on the CPU and a copy on a GPU, whose rate counts bytes read and bytes written as ours does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
import peers
import torch
from harness import Case, Contender
from torch import Tensor

from pns_fast import _cpu as native
from pns_fast import ops

SIZES = {"full": (10_000, 1_000_000, 10_000_000), "quick": (10_000, 1_000_000)}
FRACTIONS = {"full": (0.01, 0.1, 0.5), "quick": (0.1,)}
LARGE, LARGEST = 100_000_000, 1_000_000_000
DRIFT = 1e-3


@dataclass(frozen=True)
class Job:
    n: int
    fraction: float = 0.1
    dtype: torch.dtype = torch.float32
    zeros: float = 0.0  # of the scores
    drifts: bool = False
    reuses_mask: bool = False

    @property
    def label(self) -> str:
        extras = {"bfloat16": self.dtype == torch.bfloat16, f"{self.zeros:.0%} zeros": self.zeros > 0}
        extras |= {"drifting, hint": self.drifts, "out=": self.reuses_mask}
        return ", ".join([f"n = {self.n:,}", f"k = {self.fraction:.0%}", *(e for e, is_on in extras.items() if is_on)])

    @property
    def keep(self) -> int:
        return round(self.fraction * self.n)


def cases(quick: bool, device: str) -> list[Case]:
    return _cuda_cases(quick) if device == "cuda" else _cpu_cases("quick" if quick else "full")


def _cpu_cases(mode: str) -> list[Case]:
    sizes, large = SIZES[mode], () if mode == "quick" else (LARGE,)
    jobs = [Job(n, fraction) for n in sizes for fraction in FRACTIONS[mode]] + [Job(n) for n in large]
    jobs.append(Job(sizes[1], 0.5, zeros=0.9))
    jobs += [Job(n, drifts=True) for n in (*sizes[1:], *large)]
    jobs += [Job(sizes[-1], dtype=torch.bfloat16), Job(sizes[-1], reuses_mask=True)]
    make = partial(Case, "topk_mask", ceiling="read")
    rows = [make(job.label, partial(_mask, job, "cpu")) for job in jobs]
    return rows + [make(f"kth_largest, n = {n:,}, k = 10%", partial(_kth, n, "cpu")) for n in sizes]


def _cuda_cases(quick: bool) -> list[Case]:
    sizes = (*SIZES["full"], LARGE)
    jobs = [Job(n) for n in sizes] + [Job(n, drifts=True) for n in sizes[2:]] + [Job(LARGE, 0.5, zeros=0.9)]
    if not quick:
        jobs += [Job(LARGE, 0.5), Job(LARGE, dtype=torch.bfloat16), Job(LARGEST)]
    make = partial(Case, "topk_mask", ceiling="copy", budget=0.5)
    rows = [make(job.label, partial(_mask, job, "cuda")) for job in jobs]
    return [*rows, make(f"kth_largest, n = {LARGE:,}, k = 10%", partial(_kth, LARGE, "cuda"))]


def _generator(device: str, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _scores(job: Job, device: str) -> Tensor:
    """Magnitudes, as pruners rank; with ties nine of ten are zero, as SynFlow's are after a first round."""
    scores = torch.randn(job.n, generator=_generator(device, 0), device=device).abs_()
    if job.zeros:
        scores[torch.rand(job.n, generator=_generator(device, 1), device=device) < job.zeros] = 0.0
    return scores.to(job.dtype)


def _versions(job: Job, device: str) -> list[Tensor]:
    """What the calls rank in turn: from one to the next every score changes at random, and all of them grow."""
    versions = [_scores(job, device)]
    if job.drifts:
        for seed in range(1 if job.n >= LARGE else 3):
            noise = torch.randn(job.n, generator=_generator(device, 2 + seed), device=device)
            versions.append(versions[-1] * noise.mul_(DRIFT).add_(1 + DRIFT))
        versions += versions[-2:0:-1]  # and back again
    return versions


def _is_top(keep: int, scores: Tensor, mask: Tensor) -> str:
    """Exactly ``keep`` ones, and none of them below a zero; which of equal scores is kept is left open."""
    if (kept := int(mask.sum())) != keep:
        return f"keeps {kept:,} instead of {keep:,}"
    return "" if scores[mask].min() >= scores[~mask].max() else "keeps a score below one it cuts"


class Ours:
    """With the last call's threshold as a hint where the scores drift."""

    def __init__(self, job: Job, mask: Tensor | None):
        self.keep, self.drifts, self.threshold = job.keep, job.drifts, None
        self.out = {} if mask is None else {"out": mask}

    def __call__(self, scores: Tensor) -> Tensor:
        if not self.drifts:
            return ops.topk_mask(scores, self.keep, **self.out)
        mask, self.threshold = ops.topk_mask(scores, self.keep, hint=self.threshold, return_threshold=True, **self.out)
        return mask


def _in_turn(rank: Callable[[Tensor], Tensor], versions: list[Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    turns = cycle(versions)

    def call() -> tuple[Tensor, Tensor]:
        scores = next(turns)
        return scores, rank(scores)

    return call


def _mask(job: Job, device: str) -> list[Contender]:
    versions, keep = _versions(job, device), job.keep
    out = torch.zeros(job.n, dtype=torch.bool, device=device) if job.reuses_mask else None
    make = partial(Contender, check=lambda pair: _is_top(keep, *pair), work=(1.0 + job.dtype.itemsize) * job.n)

    def partition(scores: Tensor) -> Tensor:
        # NumPy has no bfloat16, but the bits of magnitudes rank like them
        return peers.mask_by_partition(scores.view(torch.int16) if job.dtype == torch.bfloat16 else scores, keep, out)

    is_cpu = device == "cpu"

    def peer(name: str, rank, reasons: dict[int, str]) -> Contender:
        """reasons: from which size on it is left out, and why."""
        why = [reason for n, reason in reasons.items() if job.n >= n]
        if why:
            return make(name, None, note=f"left out: {why[-1]}")
        return make(name, _in_turn(partial(rank, keep=keep), versions))

    by_partition = _in_turn(partition, versions) if is_cpu else None
    not_sorted = {LARGE: "10 s a call"} if is_cpu else {LARGEST: "40 GB of memory"}
    # As long whatever the scores are: once is enough.
    by_kthvalue = {} if is_cpu or job == Job(LARGE) else {LARGE: "0.7 s and more a call"}
    return [
        make("pns_fast.ops.topk_mask", _in_turn(Ours(job, out), versions), is_ours=True),
        peer("torch.kthvalue, compare", peers.mask_by_kthvalue, by_kthvalue),
        peer("torch.topk, scatter", peers.mask_by_topk, {}),
        make("numpy.partition, compare", by_partition, note="1 thread" if is_cpu else "CPU only"),
        peer("torch.sort, scatter", peers.mask_by_sort, not_sorted),
        *([_read(versions[0])] if is_cpu and job.n >= LARGE else []),
    ]


def _read(scores: Tensor) -> Contender:
    """What the memory gives in these turns: on a shared machine that halves and doubles within a minute."""
    n_bytes = scores.nbytes
    read = partial(native.read_bandwidth, scores.data_ptr(), n_bytes, torch.get_num_threads())
    return Contender("one pass that reads them", lambda: (scores, read()), work=n_bytes, is_ceiling=True)


def _kth(n: int, device: str) -> list[Contender]:
    scores, k = _scores(Job(n), device), n // 10
    expected = float(scores.sort(descending=True).values[k - 1])

    def is_kth(value) -> str:
        return "" if float(value) == expected else f"{float(value)} instead of {expected}"

    make = partial(Contender, check=is_kth, work=4.0 * n)
    values = scores.numpy() if device == "cpu" else None
    by_partition = None if values is None else lambda: np.partition(values, n - k)[n - k]
    by_topk = [make("torch.topk", lambda: scores.topk(k, sorted=False).values.min())] if device == "cuda" else []
    return [
        make("pns_fast.ops.kth_largest", partial(ops.kth_largest, scores, k), is_ours=True),
        make("torch.kthvalue", lambda: scores.kthvalue(n - k + 1).values),
        *by_topk,
        make("numpy.partition", by_partition, note="1 thread" if device == "cpu" else "CPU only"),
    ]
