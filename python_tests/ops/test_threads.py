"""Calls from several Python threads at once, and a machine that has no thread left to give."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from ops.cases import ADAM, Case

from pns_fast import ops

STARVED = """
import resource
import torch
from pns_fast import ops

scores = torch.arange(13_000_000, dtype=torch.float32)  # 200,000 a thread: work for 64
torch.set_num_threads(64)
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)  # room for the work, not for 64 stacks of 8 MB
try:
    mask = ops.topk_mask(scores, 1000)
    print("kept", int(mask.sum()), bool(mask[-1000:].all()))
except (RuntimeError, MemoryError) as error:
    print("refused", type(error).__name__)
"""


def test_no_thread_left_is_no_crash():
    run = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() in (["kept", "1000", "True"], ["refused", "RuntimeError"], ["refused", "MemoryError"])


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
