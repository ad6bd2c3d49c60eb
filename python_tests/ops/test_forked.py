"""A forked child has none of its parent's threads: it must not wait for them."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import os, signal
import torch
from pns_fast import ops

torch.set_num_threads(2)
scores = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))
expected = ops.topk_mask(scores, 1000)  # now the parent has threads
child = os.fork()
if child == 0:
    signal.alarm(60)
    torch.set_num_threads(1)  # torch's own operations would wait for them
    torch.get_num_threads = lambda: 2  # what ops ask
    os._exit(0 if bool((ops.topk_mask(scores, 1000) == expected).all()) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_has_threads_of_its_own():
    run = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["0"], run.stderr
