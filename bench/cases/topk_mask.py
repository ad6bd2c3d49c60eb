"""Scores -> 0/1 mask with exactly k ones, and the k-th largest score.

Rates count a score read once and a mask entry written once: 5 bytes a float32 score, 4 without a mask.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import peers
import torch
from harness import Case, Contender
from torch import Tensor

from pns_fast import ops

SIZES = {"full": (10_000, 1_000_000, 10_000_000), "quick": (10_000, 1_000_000)}
FRACTIONS = {"full": (0.01, 0.1, 0.5), "quick": (0.1,)}


def cases(quick: bool, device: str) -> list[Case]:
    mode = "quick" if quick else "full"
    sizes = SIZES[mode] + ((100_000_000,) if device == "cuda" and not quick else ())
    make = partial(Case, "topk_mask", ceiling="read")
    rows = [
        make(f"n = {n:,}, k = {fraction:.0%}", partial(_mask, n, fraction, device, ties=False))
        for n in sizes
        for fraction in FRACTIONS[mode]
    ]
    ties = sizes[1]
    rows.append(make(f"n = {ties:,}, k = 50%, 90% zeros", partial(_mask, ties, 0.5, device, ties=True)))
    if device == "cpu":
        rows += [make(f"kth_largest, n = {n:,}, k = 10%", partial(_kth, n)) for n in sizes]
    return rows


def _scores(n: int, device: str, ties: bool) -> Tensor:
    """Magnitudes, as pruners rank; with ties nine of ten are zero, as SynFlow's are after a first round."""
    scores = torch.randn(n, generator=torch.Generator().manual_seed(0)).abs()
    if ties:
        scores[torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.9] = 0.0
    return scores.to(device)


def _is_top(scores: Tensor, keep: int, mask: Tensor) -> str:
    """Exactly ``keep`` ones, and none of them below a zero; which of equal scores is kept is left open."""
    if (kept := int(mask.sum())) != keep:
        return f"keeps {kept:,} instead of {keep:,}"
    return "" if scores[mask].min() >= scores[~mask].max() else "keeps a score below one it cuts"


def _mask(n: int, fraction: float, device: str, ties: bool) -> list[Contender]:
    scores, keep = _scores(n, device, ties), round(fraction * n)
    make = partial(Contender, check=partial(_is_top, scores, keep), work=5.0 * n)
    partition = partial(peers.mask_by_partition, scores, keep) if device == "cpu" else None
    return [
        make("pns_fast.ops.topk_mask", partial(ops.topk_mask, scores, keep), is_ours=True),
        make("torch.kthvalue, compare", partial(peers.mask_by_kthvalue, scores, keep)),
        make("torch.topk, scatter", partial(peers.mask_by_topk, scores, keep)),
        make("numpy.partition, compare", partition, note="1 thread" if partition else "CPU only"),
        make("torch.sort, scatter", partial(peers.mask_by_sort, scores, keep)),
    ]


def _kth(n: int) -> list[Contender]:
    scores, k = _scores(n, "cpu", ties=False), n // 10
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
