"""The best match among random neurons that are drawn and forgotten, and how many lie within eps.

Times are for 10^9 candidates, extrapolated for peers; each draws its own, so estimates of p are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import peers
import torch
from harness import Case, Contender, fastest
from torch import Tensor

from pns_fast import ops

UNIT = 1e9
OURS = {"full": 100_000_000, "quick": 4_000_000}
THEIRS = {"full": 4_000_000, "quick": 200_000}
CUDA_TIMES = 50  # as many there
CHUNKS = {"cpu": (4096, 32_768, 262_144), "cuda": (262_144, 2**20, 2**22)}


@dataclass(frozen=True)
class Size:
    n_targets: int
    n_parameters: int
    eps: float
    init: str = "uniform"


def cases(quick: bool, device: str) -> list[Case]:
    sizes = (Size(1, 5, 0.05), Size(128, 5, 0.05), Size(1, 2, 1e-3), Size(1, 5, 0.05, "he_scaled"))
    mode, times = "quick" if quick else "full", CUDA_TIMES if device == "cuda" else 1
    return [
        Case(
            "existence_search",
            f"T = {size.n_targets}, k = {size.n_parameters}, {size.init}",
            partial(
                _contenders, size, times * OURS[mode] // (10 if size.n_targets > 1 else 1), times * THEIRS[mode], device
            ),
            unit="billion candidates",
        )
        for size in sizes
    ]


def _same_probability(n_ours: int, n_theirs: int, ours: Tensor, theirs: Tensor) -> str:
    """Six standard errors of the difference, and six counts where hardly any is expected."""
    error = (ours * (1 - ours) * (1 / n_ours + 1 / n_theirs)).sqrt()
    off = int(((ours - theirs).abs() > 6 * error + 6 / n_theirs).sum())
    return "" if off == 0 else f"{off} of {len(ours)} probabilities differ"


def _contenders(size: Size, n_ours: int, n_theirs: int, device: str) -> list[Contender]:
    theta = torch.rand(size.n_targets, size.n_parameters, generator=torch.Generator().manual_seed(0)) - 0.5
    theta = theta.to(device)
    n_theirs = n_theirs // size.n_targets // 1000 * 1000 + 1000

    def ours() -> Tensor:
        return ops.existence_search(theta, n_ours, 0, size.init, size.eps).n_matches / n_ours

    check = partial(_same_probability, n_ours, n_theirs, ours())
    chunks = [c for c in CHUNKS[device] if c <= n_theirs] or [n_theirs]
    forms = {f"chunk {c:,}": partial(peers.search_by_torch, theta, n_theirs, size.eps, size.init, c) for c in chunks}
    form, by_torch = fastest(forms, device)
    chunk, note, is_cpu = int(form.split()[1].replace(",", "")), f"{n_theirs:,}", device == "cpu"
    by_numpy = partial(peers.search_by_numpy, theta, n_theirs, size.eps, size.init, chunk) if is_cpu else None
    return [
        Contender("ops.existence_search", ours, units=n_ours / UNIT, is_ours=True, note=f"{n_ours:,}"),
        Contender("torch, rand, product", by_torch, check=check, units=n_theirs / UNIT, note=f"{note}, {form}"),
        Contender(
            "numpy Philox, product",
            by_numpy,
            check=check,
            units=n_theirs / UNIT,
            note=note if is_cpu else "CPU only",
        ),
    ]
