"""Calls from several Python threads at once, and a machine that has no thread left to give."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ops.cases import ADAM, Case

from pns_fast import ops

STARVED = """
import os, resource
import torch
from ops.cases import ADAM, Case
from pns_fast import ops

torch.set_num_threads(8)
scores = torch.arange(2_000_000, dtype=torch.float32)
case = Case((3, 8, 2), n_networks=8)
if os.geteuid() == 0:  # the limit does not hold for root
    os.setuid(65534)

def n_threads(process):
    try:
        is_mine = os.stat(f"/proc/{process}").st_uid == os.geteuid()
        return len(os.listdir(f"/proc/{process}/task")) if is_mine else 0
    except OSError:  # it ended meanwhile
        return 0

limit = sum(n_threads(p) for p in os.listdir("/proc") if p.isdigit()) + 2  # two more start, the third does not
resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
for call in (
    lambda: int(ops.topk_mask(scores, 1000)[-1000:].sum()),
    lambda: len(ops.mlp_trainer(*case.arguments(), **case.options(ADAM, 1))),
):
    try:
        print(call())
    except RuntimeError as error:
        print("RuntimeError")
"""

SHARED = """
import os
import torch
from pns_fast import ops

torch.set_num_threads(2)
scores = torch.rand(2_000_000)
scores.add_(1)  # torch starts its threads
before = len(os.listdir("/proc/self/task"))
for _ in range(3):
    ops.topk_mask(scores, 1000)
print(before, len(os.listdir("/proc/self/task")))
"""

FLUSHING = """
import torch
from pns_fast import ops

torch.set_num_threads(2)
torch.set_flush_denormal(True)
torch.rand(2_000_000).add_(1)  # torch starts its threads, which flush denormals too
bits = torch.randperm(2_000_000, dtype=torch.int32)
scores = bits.view(torch.float32)  # all denormal
print(all(torch.equal(ops.topk_mask(scores, 200_000), bits >= 1_800_000) for _ in range(5)))
"""

FORKED = """
import os
import torch
from pns_fast import ops

torch.set_num_threads(2)
scores = torch.arange(2_000_000, dtype=torch.float32)
scores.add_(1)  # torch starts its threads, which a child has not
calls = {calls}
for _ in range(calls):
    ops.topk_mask(scores, 1000)
child = os.fork()
if child == 0:
    kept = sum(ops.topk_mask(scores, 1000).tolist())
    os._exit(0 if kept == 1000 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run_alone(code):
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_no_thread_left_is_no_crash():
    selection, training = run_alone(STARVED)
    assert selection in ("1000", "RuntimeError")
    assert training in ("6", "RuntimeError")


@pytest.mark.skipif(sys.platform != "linux", reason="the threads of torch's OpenMP are used on Linux")
def test_torchs_threads_are_ours():
    before, after = run_alone(SHARED)
    assert before == after


def test_torchs_threads_keep_denormals_where_we_do():
    assert run_alone(FLUSHING) == ["True"]


@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_threads_of_its_own(calls):
    assert run_alone(FORKED.format(calls=calls)) == ["0"]


def test_calls_from_several_python_threads(set_threads):
    set_threads(2)
    case = Case((3, 40, 20, 4), n_networks=3)
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(450_000, generator=g)
    x, weight = torch.randn(2, 200, 150, generator=g), torch.randn(2, 100, 150, generator=g)
    target, candidates = torch.randn(50, 9, generator=g), torch.randn(3000, 9, generator=g)

    def everything(_):
        return [
            ops.topk_mask(scores, 0.1),
            ops.masked_linear(x, weight, weight > 0.5),
            *ops.best_match(target, target > 0, candidates)[:2],
            *ops.mlp_trainer(*case.arguments(), **case.options(ADAM, 3)),
        ]

    expected = everything(0)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(everything, range(12)):
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
