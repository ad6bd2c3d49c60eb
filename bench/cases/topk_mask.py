"""Scores -> 0/1 mask with exactly k ones, and the k-th largest score.

Rates count a score read once and a mask entry written once: 5 bytes a float32 score, 4 without a mask. "drifting":
every call ranks other scores, a relative 1e-3 away from those before, and we are given the last threshold as a hint.
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

from pns_fast import ops

SIZES = {"full": (10_000, 1_000_000, 10_000_000), "quick": (10_000, 1_000_000)}
FRACTIONS = {"full": (0.01, 0.1, 0.5), "quick": (0.1,)}
LARGE = 100_000_000
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
    mode = "quick" if quick else "full"
    sizes, large = SIZES[mode], () if quick else (LARGE,)
    jobs = [Job(n, fraction) for n in sizes for fraction in FRACTIONS[mode]] + [Job(n) for n in large]
    jobs.append(Job(sizes[1], 0.5, zeros=0.9))
    if device == "cpu":
        jobs += [Job(n, drifts=True) for n in (*sizes[1:], *large)]
        jobs += [Job(sizes[-1], dtype=torch.bfloat16), Job(sizes[-1], reuses_mask=True)]
    make = partial(Case, "topk_mask", ceiling="read")
    rows = [make(job.label, partial(_mask, job, device)) for job in jobs]
    if device == "cpu":
        rows += [make(f"kth_largest, n = {n:,}, k = 10%", partial(_kth, n)) for n in sizes]
    return rows


def _scores(job: Job, device: str) -> Tensor:
    """Magnitudes, as pruners rank; with ties nine of ten are zero, as SynFlow's are after a first round."""
    scores = torch.randn(job.n, generator=torch.Generator().manual_seed(0)).abs()
    if job.zeros:
        scores[torch.rand(job.n, generator=torch.Generator().manual_seed(1)) < job.zeros] = 0.0
    return scores.to(device, job.dtype)


def _versions(job: Job, device: str) -> list[Tensor]:
    """What the calls rank in turn: from one to the next every score changes at random, and all of them grow."""
    versions = [_scores(job, device)]
    if job.drifts:
        for seed in range(1 if job.n >= LARGE else 3):
            noise = torch.randn(job.n, generator=torch.Generator().manual_seed(2 + seed))
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
    out = torch.zeros(job.n, dtype=torch.bool) if job.reuses_mask else None
    make = partial(Contender, check=lambda pair: _is_top(keep, *pair), work=(1.0 + job.dtype.itemsize) * job.n)

    def partition(scores: Tensor) -> Tensor:
        # NumPy has no bfloat16, but the bits of magnitudes rank like them
        return peers.mask_by_partition(scores.view(torch.int16) if job.dtype == torch.bfloat16 else scores, keep, out)

    is_cpu, is_large = device == "cpu", job.n >= LARGE and device == "cpu"
    return [
        make("pns_fast.ops.topk_mask", _in_turn(Ours(job, out), versions), is_ours=True),
        make("torch.kthvalue, compare", _in_turn(partial(peers.mask_by_kthvalue, keep=keep), versions)),
        make("torch.topk, scatter", _in_turn(partial(peers.mask_by_topk, keep=keep), versions)),
        make(
            "numpy.partition, compare",
            _in_turn(partition, versions) if is_cpu else None,
            note="1 thread" if is_cpu else "CPU only",
        ),
        make(
            "torch.sort, scatter",
            None if is_large else _in_turn(partial(peers.mask_by_sort, keep=keep), versions),
            note="left out: 10 s a call" if is_large else "",
        ),
    ]


def _kth(n: int) -> list[Contender]:
    scores, k = _scores(Job(n), "cpu"), n // 10
    expected = float(scores.sort(descending=True).values[k - 1])

    def is_kth(value) -> str:
        return "" if float(value) == expected else f"{float(value)} instead of {expected}"

    make = partial(Contender, check=is_kth, work=4.0 * n)
    values = scores.numpy()
    return [
        make("pns_fast.ops.kth_largest", partial(ops.kth_largest, scores, k), is_ours=True),
        make("torch.kthvalue", lambda: scores.kthvalue(n - k + 1).values),
        make("numpy.partition", lambda: np.partition(values, n - k)[n - k], note="1 thread"),
    ]
