"""What the kernels are compared with: each peer does the whole task, in the best form we know of it.

Peers take and give torch tensors. JAX is in peers_jax.py, since it may not be installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)

# ---- topk_mask: scores [n] -> bool mask with exactly `keep` ones


def _exactly(mask: Tensor, keep: int, scores: Tensor, threshold: Tensor | float) -> Tensor:
    """``mask`` is scores >= threshold; drops the last of the ties if that is too many."""
    if (surplus := int(mask.count_nonzero()) - keep) > 0:
        mask[torch.nonzero(scores == threshold).flatten()[-surplus:]] = False
    return mask


def mask_by_kthvalue(scores: Tensor, keep: int) -> Tensor:
    threshold = scores.kthvalue(len(scores) - keep + 1).values
    return _exactly(scores >= threshold, keep, scores, threshold)


def mask_by_partition(scores: Tensor, keep: int, out: Tensor | None = None) -> Tensor:
    threshold = np.partition(scores.numpy(), len(scores) - keep)[len(scores) - keep].item()
    return _exactly(torch.ge(scores, threshold, out=out), keep, scores, threshold)


def mask_by_topk(scores: Tensor, keep: int) -> Tensor:
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[scores.topk(keep, sorted=False).indices] = True
    return mask


def mask_by_sort(scores: Tensor, keep: int) -> Tensor:
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[scores.argsort(descending=True)[:keep]] = True
    return mask


# ---- best_match: target, support [N, T, P], candidates [N, C, P] -> index [N, T], greedy, no candidate twice


def _cosines(dot: Tensor, norm: Tensor) -> Tensor:
    """cos^2 times |theta|^2, -inf where the scale would not be positive."""
    return (dot * dot / norm).masked_fill_(dot <= 0, -torch.inf)


def _dense_cosines(theta: Tensor, support: Tensor, candidates: Tensor) -> Tensor:
    """[..., T, C] by two products over all parameters."""
    return _cosines(theta @ candidates.mT, support @ (candidates * candidates).mT)


def _greedy(scores: Tensor) -> Tensor:
    """Target after target over all N problems; overwrites scores [N, T, C]."""
    index = torch.empty(scores.shape[:-1], dtype=torch.int64, device=scores.device)
    problem = torch.arange(len(scores), device=scores.device)
    for t in range(scores.shape[1]):
        best = scores[:, t].max(1)
        index[:, t] = torch.where(best.values > -torch.inf, best.indices, -1)
        scores[problem, :, best.indices] = -torch.inf
    return index


def match_whole(target: Tensor, support: Tensor, candidates: Tensor) -> Tensor:
    """All cosines at once by batched products."""
    support = support.to(candidates.dtype)
    return _greedy(_dense_cosines(target * support, support, candidates))


def match_csr(target: Tensor, support: Tensor, candidates: Tensor) -> Tensor:
    """Two CSR products, over the support only. For N = 1."""
    theta, on, columns = (target[0] * support[0]), support[0].to(candidates.dtype), candidates[0].mT
    dot, norm = theta.to_sparse_csr() @ columns, on.to_sparse_csr() @ (columns * columns)
    return _greedy(_cosines(dot, norm)[None])


def match_chunked(target: Tensor, support: Tensor, candidates: Tensor, chunk: int) -> Tensor:
    """The best of each chunk of candidates while it is in cache; clashes are searched again. For N = 1."""
    support, candidates = support[0].to(candidates.dtype), candidates[0]
    theta = target[0] * support
    parts = [_dense_cosines(theta, support, m).max(1) for m in candidates.split(chunk)]
    values, where = torch.stack([p.values for p in parts]).max(0)
    best = torch.stack([p.indices for p in parts]).gather(0, where[None])[0] + where * chunk
    index, taken = [], set()
    for t, i in enumerate(torch.where(values > -torch.inf, best, -1).tolist()):
        if i in taken:
            on = support[t] > 0
            free = _dense_cosines(theta[t : t + 1, on], support[t : t + 1, on], candidates[:, on])[0]
            free[list(taken)] = -torch.inf
            value, again = free.max(0)
            i = int(again) if value > -torch.inf else -1
        index.append(i)
        taken.update([i] if i >= 0 else [])
    return torch.tensor([index], device=candidates.device)


def match_by_loop(target: Tensor, support: Tensor, candidates: Tensor) -> Tensor:
    """What the paper's public code does: Python over targets and candidates. For N = 1."""
    index, taken = [], set()
    for theta, on in zip(target[0].numpy(), support[0].numpy(), strict=True):
        best, least, where = -1, np.inf, np.flatnonzero(on)
        for c, candidate in enumerate(candidates[0].numpy()):
            m = candidate[where]
            scale = theta[where] @ m / (m @ m)
            distance = np.linalg.norm(theta[where] - scale * m)
            if scale > 0 and distance < least and c not in taken:
                best, least = c, distance
        index.append(best)
        taken.add(best)
    return torch.tensor([index])


# ---- existence_search: theta [T, k], n candidates drawn -> part of them within eps [T]; keeps the best as well


def search_by_torch(theta: Tensor, n: int, eps: float, init: str, chunk: int) -> Tensor:
    edge = (1 - eps**2 / (theta * theta).sum(1)).clamp_min(0)
    best = theta.new_full((len(theta),), -torch.inf)
    n_matches = torch.zeros(len(theta), dtype=torch.int64, device=theta.device)
    for start in range(0, n, chunk):
        m = theta.new_empty(min(chunk, n - start), theta.shape[1])
        m = m.uniform_(-1, 1) if init == "uniform" else m.normal_()
        dot = m @ theta.T
        cosine2 = dot * dot.abs() / ((m * m).sum(1, keepdim=True) * (theta * theta).sum(1))
        best = torch.maximum(best, cosine2.max(0).values)
        n_matches += (cosine2 >= edge).sum(0)
    return n_matches / n


def search_by_numpy(theta: Tensor, n: int, eps: float, init: str, chunk: int) -> Tensor:
    theta, generator = theta.numpy(), np.random.Generator(np.random.Philox(0))
    length2 = (theta * theta).sum(1)
    edge = np.maximum(1 - eps**2 / length2, 0)
    best, n_matches = np.full(len(theta), -np.inf, dtype=np.float32), np.zeros(len(theta), dtype=np.int64)
    for start in range(0, n, chunk):
        draw = generator.random if init == "uniform" else generator.standard_normal
        m = draw((min(chunk, n - start), theta.shape[1]), dtype=np.float32)
        if init == "uniform":
            m = 2 * m - 1
        dot = m @ theta.T
        cosine2 = dot * np.abs(dot) / ((m * m).sum(1)[:, None] * length2)
        np.maximum(best, cosine2.max(0), out=best)
        n_matches += (cosine2 >= edge).sum(0)
    return torch.from_numpy(n_matches / n).float()


# ---- masked_linear


def mask_forms(mask: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """What dense peers may multiply by: a mask of the weights' dtype needs no conversion, a bool one is smaller."""
    return {"bool mask": mask, "float mask": mask.to(weight.dtype)}


def dense_linear(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return F.linear(x, weight * mask)


def dense_networks(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return torch.bmm(x, (weight * mask).mT)


def dense_conv(x: Tensor, weight: Tensor, mask: Tensor, padding: int) -> Tensor:
    return F.conv2d(x, weight * mask, padding=padding)


def to_csr(weight: Tensor, mask: Tensor) -> Tensor:
    """Kept weights as torch CSR with 32-bit indices, the faster ones in MKL. Kept zeros stay."""
    csr = mask.float().to_sparse_csr()
    return _with_values(csr.crow_indices().int(), csr.col_indices().int(), weight[mask])


def _with_values(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    shape = (len(rows) - 1, len(rows) - 1)
    return torch.sparse_csr_tensor(rows, columns, values, shape, check_invariants=False)


class CsrProducts:
    """A square masked linear layer by three CSR products, activations as columns: y, dx and dw at kept entries.

    The patterns of W and of its transpose are built once; the transpose's values are gathered in every call.
    """

    def __init__(self, weight: Tensor, mask: Tensor):
        self.csr = to_csr(weight, mask)
        numbers = torch.arange(int(mask.sum()), device=mask.device)
        at = torch.zeros(mask.shape, dtype=torch.int64, device=mask.device).masked_scatter_(mask, numbers)
        self.transposed, self.permutation = to_csr(weight.t(), mask.t()), at.t()[mask.t()]
        self.zeros = to_csr(torch.zeros_like(weight), mask)

    def __call__(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = self.transposed.crow_indices(), self.transposed.col_indices()
        transposed = _with_values(rows, columns, self.csr.values()[self.permutation])
        grad_weight = torch.sparse.sampled_addmm(self.zeros, grad, x.t(), beta=0.0)
        return self.csr @ x, transposed @ grad, grad_weight


# ---- mlp_trainer


@dataclass(frozen=True)
class Training:
    """N networks on one data set: what every trainer is given."""

    widths: Sequence[int]
    parameters: Tensor  # [N, P], pruned parameters zero, flat layout [W1 | b1 | W2 | b2 ...]
    mask: Tensor  # bool [N, P]
    x: Tensor  # [n, n_0]
    y: Tensor  # int64 [n]
    order: Tensor  # int64 [N, n]: the samples of each network's epoch
    batch_size: int = 32
    lr: float = 1e-3

    @property
    def is_dense(self) -> bool:
        return bool(self.mask.all())

    @property
    def steps(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def layers(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(weight [N, O, I], bias [N, O]) of each layer, cut out of [N, P]."""
        parts, at = [], 0
        for n_in, n_out in zip(self.widths[:-1], self.widths[1:], strict=True):
            weight = flat[:, at : at + n_in * n_out].reshape(-1, n_out, n_in)
            at += n_in * n_out
            parts.append((weight.clone(), flat[:, at : at + n_out].clone()))
            at += n_out
        return parts


@contextmanager
def torch_threads(n: int):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_threads(run: Callable[[], Tensor], n: int) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch_threads(n):
            return run()

    return call


def _adam(leaves: list[Tensor], lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(leaves, lr=lr, fused=True)


def train_loop(job: Training) -> Tensor:
    """A plain torch loop for the first network; returns its mean loss over the epoch, [1]."""
    layers = [(w[0].requires_grad_(), b[0].requires_grad_()) for w, b in job.layers(job.parameters[:1])]
    leaves = [p for layer in layers for p in layer]
    kept = None if job.is_dense else [m[0].float() for pair in job.layers(job.mask[:1]) for m in pair]
    optimizer = _adam(leaves, job.lr)
    x, y = job.x[job.order[0]].split(job.batch_size), job.y[job.order[0]].split(job.batch_size)
    total = torch.zeros(1, device=job.x.device)
    for x_batch, y_batch in zip(x, y, strict=True):
        loss = F.cross_entropy(_mlp(x_batch, layers), y_batch)
        optimizer.zero_grad()
        loss.backward()
        if kept is not None:  # parameters start masked, so masking gradients keeps them so: cheaper than w * m
            for leaf, m in zip(leaves, kept, strict=True):
                leaf.grad.mul_(m)
        optimizer.step()
        total += loss.detach() * len(x_batch)
    return total / len(job.x)


def _mlp(h: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    for i, (weight, bias) in enumerate(layers):
        h = F.linear(h, weight, bias)
        if i < len(layers) - 1:
            h = F.relu(h)
    return h


def train_stacked(job: Training) -> Tensor:
    """All networks at once by batched products; returns their mean losses, [N]."""
    layers = [(w.requires_grad_(), b.requires_grad_()) for w, b in job.layers(job.parameters)]
    leaves = [p for layer in layers for p in layer]
    kept = None if job.is_dense else [m.float() for pair in job.layers(job.mask) for m in pair]
    optimizer = _adam(leaves, job.lr)
    x = job.x[job.order].split(job.batch_size, dim=1)
    y = job.y[job.order].split(job.batch_size, dim=1)
    total = torch.zeros(len(job.parameters), device=job.x.device)
    for x_batch, y_batch in zip(x, y, strict=True):
        h = x_batch
        for i, (weight, bias) in enumerate(layers):
            h = torch.baddbmm(bias[:, None], h, weight.mT)
            if i < len(layers) - 1:
                h = F.relu(h)
        loss = F.cross_entropy(h.flatten(0, 1), y_batch.flatten(), reduction="none").reshape(len(h), -1)
        optimizer.zero_grad()
        loss.mean(1).sum().backward()
        if kept is not None:
            for leaf, m in zip(leaves, kept, strict=True):
                leaf.grad.mul_(m)
        optimizer.step()
        total += loss.detach().sum(1)
    return total / len(job.x)


class GetSubnet(torch.autograd.Function):
    """Scores to their mask by a sort, the gradient straight through: the public code of edge-popup, line for line."""

    @staticmethod
    def forward(ctx, scores: Tensor, k: float) -> Tensor:
        out = scores.clone()
        _, idx = scores.flatten().sort()
        j = int((1 - k) * scores.numel())
        flat_out = out.flatten()
        flat_out[idx[:j]] = 0
        flat_out[idx[j:]] = 1
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def edge_popup_public(job: Training, scores: Tensor, density: float) -> Tensor:
    """Edge-popup as the public code has it, for the first network: GetSubnet of |s|, autograd, SGD; mean loss [1]."""
    weights = [p[0] for pair in job.layers(job.parameters[:1]) for p in pair]
    leaves = [p[0].requires_grad_() for pair in job.layers(scores[:1]) for p in pair]
    optimizer = torch.optim.SGD(leaves, lr=job.lr, momentum=0.9, weight_decay=5e-4)
    x, y = job.x[job.order[0]].split(job.batch_size), job.y[job.order[0]].split(job.batch_size)
    total = torch.zeros(1, device=job.x.device)
    for x_batch, y_batch in zip(x, y, strict=True):
        effective = [w * GetSubnet.apply(s.abs(), density) for w, s in zip(weights, leaves, strict=True)]
        loss = F.cross_entropy(_mlp(x_batch, list(zip(effective[::2], effective[1::2], strict=True))), y_batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(x_batch)
    return total / len(job.x)


def edge_popup_loop(job: Training, scores: Tensor, density: float) -> Tensor:
    """The same by topk, and gradients of the effective parameters only: less work than the public code."""
    layers = [(w[0], b[0]) for w, b in job.layers(job.parameters[:1])]
    weights = [p for layer in layers for p in layer]
    leaves = [p[0] for pair in job.layers(scores[:1]) for p in pair]
    keep = [max(0, int(np.ceil(density * p.numel() - 1e-9))) for p in leaves]
    optimizer = torch.optim.SGD(leaves, lr=job.lr, momentum=0.9, weight_decay=5e-4)
    x, y = job.x[job.order[0]].split(job.batch_size), job.y[job.order[0]].split(job.batch_size)
    total = torch.zeros(1, device=job.x.device)
    for x_batch, y_batch in zip(x, y, strict=True):
        masks = [mask_by_topk(s.abs().flatten(), k).reshape(s.shape) for s, k in zip(leaves, keep, strict=True)]
        effective = [(w * m).requires_grad_() for w, m in zip(weights, masks, strict=True)]
        loss = F.cross_entropy(_mlp(x_batch, list(zip(effective[::2], effective[1::2], strict=True))), y_batch)
        gradients = torch.autograd.grad(loss, effective)
        for score, gradient, weight in zip(leaves, gradients, weights, strict=True):
            score.grad = gradient * weight * torch.where(score < 0, -1.0, 1.0)
        optimizer.step()
        total += loss.detach() * len(x_batch)
    return total / len(job.x)
