"""Greedy best match with exclusion.

FLOPs are those of two products (theta.m and |m|^2): over the support for us and CSR, over all for two GEMMs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import peers
import torch
from harness import Case, Contender, fastest
from torch import Tensor

from pns_fast import ops

LOOP_TARGETS, LOOP_CANDIDATES = 2, 1_000  # the part on which the Python loop is measured
CHUNKS = {"cpu": (1024, 4096, 16384), "cuda": (65_536, 262_144, 2**20)}


@dataclass(frozen=True)
class Size:
    n_targets: int
    n_candidates: int
    n_parameters: int
    support: int
    n_problems: int = 1

    @property
    def label(self) -> str:
        problems = f", N = {self.n_problems}" if self.n_problems > 1 else ""
        return (
            f"T = {self.n_targets}, C = {self.n_candidates:,}, P = {self.n_parameters:,}, "
            f"support {self.support}{problems}"
        )


def cases(quick: bool, device: str) -> list[Case]:
    sizes = (
        Size(128, 2**14 if quick else 2**20, 64, 8),
        Size(512, 4096, 4608, 46),  # density 0.01, a layer of VGG16
        Size(20, 100, 101, 2, n_problems=25),  # Circle's knots planted into 25 networks of width 100
    )
    return [Case("best_match", size.label, partial(_contenders, size, device), budget=2.0) for size in sizes]


def _inputs(size: Size, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (size.n_problems, size.n_targets, size.n_parameters)
    support = torch.rand(shape, generator=generator).argsort(-1) < size.support
    target = torch.randn(shape, generator=generator) * support
    candidates = torch.randn(size.n_problems, size.n_candidates, size.n_parameters, generator=generator)
    return target.to(device), support.to(device), candidates.to(device)


def _distance(index: Tensor, target: Tensor, support: Tensor, candidates: Tensor) -> Tensor:
    """|theta - lambda m| of the candidates chosen, in float64: two choices may differ by a tie in float32."""
    chosen = index.clamp_min(0)[..., None].expand(-1, -1, candidates.shape[-1])
    m = candidates.gather(1, chosen).double() * support
    scale = (target * m).sum(-1, keepdim=True) / (m * m).sum(-1, keepdim=True)
    return torch.where(index < 0, torch.inf, (target - scale * m).norm(dim=-1))


def _same_match(inputs: tuple[Tensor, Tensor, Tensor], index: Tensor) -> str:
    expected = ops.best_match(*inputs).index
    for row in index:
        if len(set(row[row >= 0].tolist())) < int((row >= 0).sum()):
            return "takes a candidate twice"
    same = torch.isclose(_distance(index, *inputs), _distance(expected, *inputs), rtol=1e-4, atol=1e-6)
    return "" if bool(same.all()) else f"{int((~same).sum())} of {same.numel()} matches are worse or better"


def _torch_form(size: Size, inputs: tuple[Tensor, Tensor, Tensor], device: str) -> tuple:
    forms = {"all at once": partial(peers.match_whole, *inputs)}
    if size.n_problems == 1:
        chunks = [c for c in CHUNKS[device] if c <= size.n_candidates] or [size.n_candidates]
        forms |= {f"best chunk {chunk:,}": partial(peers.match_chunked, *inputs, chunk) for chunk in chunks}
    return fastest(forms, device)


def _contenders(size: Size, device: str) -> list[Contender]:
    inputs = target, support, candidates = _inputs(size, device)
    part = (target[:1, :LOOP_TARGETS], support[:1, :LOOP_TARGETS], candidates[:1, :LOOP_CANDIDATES])
    pairs = size.n_problems * size.n_targets * size.n_candidates
    part_pairs = LOOP_TARGETS * min(LOOP_CANDIDATES, size.n_candidates)
    csr = partial(peers.match_csr, *inputs) if size.n_problems == 1 else None
    form, two_products = _torch_form(size, inputs, device)
    return [
        Contender(
            "pns_fast.ops.best_match",
            lambda: ops.best_match(*inputs).index,
            work=4.0 * pairs * size.support,
            is_ours=True,
        ),
        Contender(
            "torch, two GEMMs, argmax",
            two_products,
            check=partial(_same_match, inputs),
            work=4.0 * pairs * size.n_parameters,
            note=form,
        ),
        Contender(
            "torch, two CSR products",
            csr,
            check=partial(_same_match, inputs),
            work=4.0 * pairs * size.support,
            note="" if csr else "CSR has no batched product",
        ),
        Contender(
            "Python loop",
            partial(peers.match_by_loop, *part) if device == "cpu" else None,
            check=partial(_same_match, part),
            units=part_pairs / pairs,
            note=f"extrapolated, {part_pairs:,} pairs" if device == "cpu" else "CPU only",
        ),
    ]
