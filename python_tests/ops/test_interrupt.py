"""Ctrl-C in the middle of mlp_trainer: KeyboardInterrupt within a second, whichever thread is still at work."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import os, signal, threading, time
import torch
from pns_fast import ops

n_networks, n_threads, batch_size, width, n_train, n_test, epochs = {sizes}
kept = {kept}
torch.set_num_threads(n_threads)
widths = [2, width, width, 4]
p = 0.1 * torch.randn(n_networks, sum((i + 1) * o for i, o in zip(widths, widths[1:])))
mask = torch.zeros_like(p, dtype=torch.bool)
mask[torch.tensor(kept)] = True
index = torch.zeros(n_networks, dtype=torch.int64)
data = [torch.rand(1, n_train, 2), torch.zeros(1, n_train, dtype=torch.int64)]
data += [torch.rand(1, n_test, 2), torch.zeros(1, n_test, dtype=torch.int64)]
sent = []

def interrupt():
    time.sleep(0.4)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    ops.mlp_trainer(p, mask, widths, *data, index, torch.zeros(n_networks, 2, dtype=torch.int64),
                    loss="cross_entropy", epochs=epochs, batch_size=batch_size, optimizer="sgd", lr=1e-3, beta1=0.9)
    print("finished")
except KeyboardInterrupt:
    print("late", time.perf_counter() - sent[0])
# the library is usable afterwards
print("then", int(ops.topk_mask(torch.rand(10), 3).sum()))
"""

CASES = {
    # networks, threads, batch size, width, training and test samples, epochs; which networks keep anything
    "one network": ((1, 1, 32, 100, 4000, 10, 20_000), [0]),
    "more networks than threads": ((4, 2, 32, 100, 4000, 10, 20_000), [0, 1, 2, 3]),
    # one network keeps nothing and is done at once; the other one may have got the thread that may not ask Python
    "the calling thread is done first": ((2, 2, 32, 1500, 64, 10, 400), [1]),
    "the calling thread is done first, other order": ((2, 2, 32, 1500, 64, 10, 400), [0]),
    "long steps": ((1, 1, 4000, 500, 256_000, 10, 1000), [0]),
    "wide steps": ((1, 1, 512, 1000, 51_200, 10, 1000), [0]),
    "a large test set": ((1, 1, 32, 1000, 40, 300_000, 1000), [0]),
}


@pytest.mark.parametrize("case", CASES)
def test_keyboard_interrupt_within_a_second(case):
    sizes, kept = CASES[case]
    script = SCRIPT.format(sizes=sizes, kept=kept)
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.returncode == 0, run.stderr
    words = run.stdout.split()
    assert words[0] == "late", run.stdout
    assert float(words[1]) < 1.0
    assert words[2:] == ["then", "3"]


def test_an_exception_of_a_signal_handler_comes_through():
    class Stop(Exception):
        pass

    def handler(*_):
        raise Stop

    from pns_fast import ops

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        p, index = torch.zeros(1, 704), torch.zeros(1, dtype=torch.int64)
        x, y = torch.rand(1, 4000, 2), torch.zeros(1, 4000, dtype=torch.int64)
        with pytest.raises(Stop):
            ops.mlp_trainer(
                p, p == 0, [2, 100, 4], x, y, x, y, index, torch.zeros(1, 2, dtype=torch.int64),
                loss="cross_entropy", epochs=20_000, batch_size=32, optimizer="sgd", lr=0.1, beta1=0.0,
            )  # fmt: skip
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
