"""Times the contenders of a case against each other: same process, same inputs, turns taken in order.

A case lists contenders; each first runs once and has its result checked, then all take turns A, B, C, A, B, C
until each has used its share of the case's time. Medians are compared: a minimum hides cache and page misses.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

MAX_REPEATS = 25
# A turn lasts at least this long, so that the clock and the first cold calls weigh little: a training loop's calls are
# not the first ones. Of 2 ms, eight calls through autograd, they took a quarter on the slowest machine. On CUDA, where
# Python runs ahead of the device, it is more.
MIN_TURN_SECONDS = {"cpu": 0.01, "cuda": 0.02}
# OpenMP's workers spin for about a millisecond after a parallel region and would slow down whoever is next.
PAUSE_SECONDS = 0.002
GRAPH_WARM_UP = 3  # calls


def accept(_output: Any) -> str:
    """The check of a contender whose result the others are compared with."""
    return ""


@dataclass(frozen=True)
class Contender:
    """One way to do a case's task. ``run`` None: it cannot run here, and ``note`` says why."""

    name: str
    run: Callable[[], Any] | None
    check: Callable[[Any], str] = accept  # "" or what is wrong with run's output
    work: float | None = None  # bytes (read plus written) or FLOPs for one unit of the task; None: no rate is given
    units: float = 1.0  # units of the task that one call does; below 1 the time is extrapolated
    note: str = ""
    is_ours: bool = False
    is_ceiling: bool = False  # not a way to do the task but what the machine allows, measured in the same turns


@dataclass(frozen=True)
class Point:
    """Where a case lies on a cost curve: the figure has a panel for each axis."""

    axis: str
    x: float
    line: str = ""  # follows the contender's name where an axis has several lines of one contender


@dataclass(frozen=True)
class Case:
    """One row of the benchmark; ``build`` makes inputs and contenders when its turn comes."""

    kernel: str
    label: str
    build: Callable[[], list[Contender]]
    ceiling: str = "fma"  # which ceiling the rate is compared with: "fma" (GFLOP/s), "read" or "copy" (GB/s)
    unit: str = "call"  # what the time is for
    budget: float = 1.0  # weight of this case in the time budget
    points: tuple[Point, ...] = ()
    compared: bool = True  # False: a point of a curve only, where not every peer runs; no part of the summary


@dataclass
class Result:
    """What came out for one contender; times in seconds a unit, None where it did not run."""

    contender: Contender
    status: str = "ok"
    median: float | None = None
    minimum: float | None = None
    repeats: int = 0

    @property
    def is_peer(self) -> bool:
        return not (self.contender.is_ours or self.contender.is_ceiling)

    @property
    def rate(self) -> float | None:
        """GB/s or GFLOP/s."""
        work = self.contender.work
        return None if self.median is None or work is None else work / self.median / 1e9


@dataclass
class Row:
    case: Case
    results: list[Result] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return all(r.status in ("ok", "cannot run") for r in self.results)

    @property
    def ours(self) -> Result:
        return next(r for r in self.results if r.contender.is_ours)

    @property
    def strongest(self) -> Result | None:
        """The fastest peer: the one that counts."""
        peers = [r for r in self.results if r.is_peer and r.median is not None]
        return min(peers, key=lambda r: r.median, default=None)

    @property
    def ceiling(self) -> float | None:
        """The rate of the contender that is this row's ceiling, where there is one."""
        return next((r.rate for r in self.results if r.contender.is_ceiling), None)

    def ratio(self, peer: Result) -> float | None:
        """How many times our median goes into the peer's."""
        ours = self.ours.median
        return None if ours is None or peer.median is None or not peer.is_peer else peer.median / ours


def seconds_cpu(run: Callable[[], Any], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        run()
    return (time.perf_counter() - start) / loops


def seconds_cuda(run: Callable[[], Any], loops: int) -> float:
    """Between two events on the stream; the device is idle before and after."""
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(loops):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / loops


SECONDS = {"cpu": seconds_cpu, "cuda": seconds_cuda}


class _Turns:
    """One contender's turns: how many it gets, how long each lasts, what was measured."""

    def __init__(self, result: Result, device: str, share: float):
        self.result, self.seconds, self.times = result, SECONDS[device], []
        run = result.contender.run
        once = self.seconds(run, 1)  # the second call: the check was the first
        self.loops = max(1, math.ceil(MIN_TURN_SECONDS[device] / max(once, 1e-7)))
        fewest = 1 if once > max(share, 0.1) else 3
        self.wanted = min(MAX_REPEATS, max(fewest, int(share / (once * self.loops + PAUSE_SECONDS))))

    def take(self) -> None:
        if len(self.times) < self.wanted:
            time.sleep(PAUSE_SECONDS)
            self.times.append(self.seconds(self.result.contender.run, self.loops))

    def close(self) -> None:
        units = self.result.contender.units
        self.result.median = statistics.median(self.times) / units
        self.result.minimum = min(self.times) / units
        self.result.repeats = len(self.times)


def _forget(result: Result) -> None:
    """Lets go of what a contender holds: the inputs of all cases together need not fit into memory."""
    result.contender = replace(result.contender, run=None, check=accept)


def _checked(contender: Contender) -> Result:
    """Runs once, which also warms up, and compares the result."""
    if contender.run is None:
        return Result(contender, status="cannot run")
    try:
        problem = contender.check(contender.run())
    except RuntimeError as error:  # what a peer cannot do is a line of the table, not the end of the run
        if contender.is_ours:
            raise
        if torch.cuda.is_initialized():  # what a peer that ran out of memory holds is ours again
            torch.cuda.empty_cache()
        return Result(contender, status=f"failed: {str(error).splitlines()[0][:60]}")
    return Result(contender, status=f"disagrees: {problem}" if problem else "ok")


def measure(case: Case, seconds_per_case: float, device: str) -> Row:
    """Checks and times the contenders of ``case``; ``seconds_per_case`` is shared out among them."""
    contenders = case.build()
    if not contenders or not any(c.is_ours for c in contenders):
        raise ValueError(f"{case.kernel}, {case.label}: a case needs a contender of ours")
    row = Row(case, [_checked(c) for c in contenders])
    able = [r for r in row.results if r.status != "cannot run" and not r.status.startswith("failed")]
    share = seconds_per_case * case.budget / max(1, len(able))
    turns = [_Turns(result, device, share) for result in able]
    for _ in range(max(t.wanted for t in turns)):
        for turn in turns:
            turn.take()
    for turn in turns:
        turn.close()
    for result in row.results:
        _forget(result)
    return row


def fastest(forms: dict[Any, Callable[[], Any]], device: str = "cpu") -> tuple[Any, Callable[[], Any]]:
    """A peer's best form: the one that is quickest once warm. If none runs, the first, which will say why."""
    measured, seconds = SECONDS[device], {}
    for name, run in forms.items():
        try:
            run()
        except RuntimeError:
            continue
        once = measured(run, 1)
        loops = math.ceil(MIN_TURN_SECONDS[device] / max(once, 1e-7))
        seconds[name] = measured(run, loops) if loops > 1 else once
    best = min(seconds, key=seconds.get, default=next(iter(forms)))
    return best, forms[best]


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """``run`` as a CUDA graph, forward, backward and all; what the replay returns is overwritten by the next one. Its
    tensors stay where they are; gradients come out of torch.autograd.grad, since .grad would be added to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch asks: libraries are loaded and workspaces made before the capture
        for _ in range(GRAPH_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> Any:
        graph.replay()
        return results

    replay.reads = run  # the graph reads what this holds: freed, its memory would be another tensor's
    return replay


def captured_or_why(run: Callable[[], Any]) -> tuple[Callable[[], Any] | None, str]:
    """(replay, "") or (None, why not), e.g. for a peer that waits for the device."""
    stream = torch.cuda.current_stream()
    try:
        return captured(run), ""
    except RuntimeError as error:
        torch.cuda.set_stream(stream)  # a capture that fails leaves its own one
        return None, f"cannot be captured: {(str(error).splitlines() or [type(error).__name__])[0][:60]}"


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative to the largest entry of ``ours``; inf where a shape differs or a NaN is in only one."""
    if ours.shape != theirs.shape:
        return math.inf
    theirs = theirs.to(ours.device)
    scale = ours.abs().max().clamp_min(1e-30) if ours.numel() else 1.0
    difference = float(((ours - theirs).abs() / scale).max()) if ours.numel() else 0.0
    return math.inf if math.isnan(difference) else difference


def differs(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str = "result") -> str:
    """The message of a check: "" within ``tolerance`` of the largest entry."""
    difference = largest_difference(ours, theirs)
    return "" if difference <= tolerance else f"{what} off by {difference:.1e}"
