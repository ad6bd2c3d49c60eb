"""existence_search: the best match among billions of random neurons that are drawn on the fly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _native
from ..reference.existence_search import ExistenceMatch
from ._library import FLOATS, check_callback, check_init, check_positive, check_tensor, pointer

MOST_CANDIDATES = 2**40
_LARGEST_INDEX = 2**62


def _check_int(name: str, value, least: int, most: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    value = value.__index__()
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} <= {name} <= {most}, got {value}")
    return value


def _where_to_run(device: torch.device, n_targets: int, n_parameters: int) -> tuple[Callable, dict, Tensor | None]:
    """The kernel of a device, what it takes beside the search, and the workspace it uses meanwhile."""
    if device.type == "cpu":
        return _native.cpu.existence_search, {"n_threads": torch.get_num_threads()}, None
    module = _native.cuda()
    n_bytes = module.existence_search_workspace(n_targets, n_parameters)
    workspace = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    extra = {"workspace": pointer(workspace), "device": device.index, "stream": stream}
    return module.existence_search, extra, workspace


def existence_search(
    theta: Tensor,
    n_candidates: int,
    seed: int,
    init: str = "uniform",
    eps: float | None = None,
    first: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> ExistenceMatch:
    """The closest of ``n_candidates`` random neurons to each target, up to a positive scale; none is ever stored.

    ``lambda(m) = theta.m / |m|^2``, ``q(m) = |theta - lambda(m) m|_2``, the parameters of m are independent; the
    candidate of least q with lambda > 0 wins (lowest index on ties). Not a torch op: a search may take minutes, reports
    and can be interrupted. :func:`pns_fast.existence.search` is what to call; this is the kernel under it.

    Args:
        theta: float32 or float64 ``[T, k]``: the k non-zero parameters of T target neurons. On a CUDA device the search
            runs there, with the same result to the last bit; the call waits for it.
        n_candidates: 1 to 2^40. Candidates are independent of this number, and of T; those of equal k and seed agree.
        seed: 0 <= seed < 2^63.
        init: "uniform": parameters uniform on [-1, 1]; "he_scaled": normal, of variance 1, at most 5.42 in size.
        eps: count the candidates with lambda > 0 and q <= eps; None: none are counted.
        first: number of the first candidate, so that a search can be split.
        progress: called as ``progress(done, n_candidates)`` about every 50 ms; what it raises ends the search.

    Returns:
        ExistenceMatch(index int64, scale, distance, candidate, n_matches int64): ``[T]``, candidate ``[T, k]``, float64
        where not int64, on the device of theta. Where no candidate has a positive scale: index -1, scale 1, distance
        and candidate NaN.

    Raises:
        TypeError, ValueError: naming the argument. KeyboardInterrupt within 0.1 s of Ctrl-C.

    Source: Theorem 2 of Fischer & Burkholz 2022; Salmon et al. 2011 (Philox); Giles 2010 (normal numbers).

    Example:
        >>> found = existence_search(torch.tensor([[0.5, -0.25, 0.5]]), 1_000_000, seed=0, eps=0.01)
        >>> 0 < found.distance.item() <= 0.01 and found.n_matches.item() > 0
        True
    """
    check_tensor("theta", theta, FLOATS, ndim=(2,))
    if theta.device.type not in ("cpu", "cuda"):
        raise ValueError(f"theta: expected a tensor on the CPU or a CUDA device, got {theta.device}")
    if theta.numel() == 0:
        raise ValueError(f"theta: expected at least one target of one parameter, got shape {tuple(theta.shape)}")
    if not bool((torch.isfinite(theta) & (theta != 0)).all()):
        raise ValueError("theta: expected finite, non-zero parameters (only these have to be matched), got others")
    n_candidates = _check_int("n_candidates", n_candidates, 1, MOST_CANDIDATES)
    seed = _check_int("seed", seed, 0, 2**63 - 1)
    first = _check_int("first", first, 0, _LARGEST_INDEX - n_candidates)
    check_init(init)
    if eps is not None:
        eps = check_positive("eps", eps)
    check_callback("progress", progress)
    targets = theta.detach().double().contiguous()
    device, (n_targets, n_parameters) = targets.device, targets.shape
    index, n_matches = (torch.empty(n_targets, dtype=torch.int64, device=device) for _ in range(2))
    scale, distance = (torch.empty(n_targets, dtype=torch.float64, device=device) for _ in range(2))
    candidate = torch.empty_like(targets)
    run, extra, _workspace = _where_to_run(device, n_targets, n_parameters)
    run(
        n_targets=n_targets, n_parameters=n_parameters, theta=pointer(targets), first=first,
        n_candidates=n_candidates, seed=seed, is_normal=init == "he_scaled", eps=-1.0 if eps is None else eps,
        index=pointer(index), scale=pointer(scale), distance=pointer(distance), candidate=pointer(candidate),
        n_matches=pointer(n_matches), progress=progress, **extra,
    )  # fmt: skip
    return ExistenceMatch(index, scale, distance, candidate, n_matches)
