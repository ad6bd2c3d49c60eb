"""The progress callback of train, edge_popup and multishot, and of the op below them."""

from __future__ import annotations

import inspect
import itertools
import threading
import time

import pytest
import torch
from ops.cases import ADAM, Case

import pns_fast as pns
from pns_fast import ops, reference

WIDTHS, N = (2, 40, 30, 4), 3
DATA = pns.tasks.get("circle").sample(n=400)
LONG = 3000  # epochs of N networks: several looks of 50 ms


def population(n=N):
    return pns.init_population(WIDTHS, n=n)


class Recorder:
    def __init__(self, work=lambda: None):
        self.calls, self.times, self.threads, self.work = [], [], set(), work

    def __call__(self, *args):
        self.calls.append(args)
        self.times.append(time.perf_counter())
        self.threads.add(threading.get_ident())
        self.work()


RUNS = {
    # the call, and all its epochs
    "train": (lambda epochs, **kw: pns.train(population(), None, DATA, epochs, **kw), lambda epochs: N * epochs),
    "edge_popup": (
        lambda epochs, **kw: pns.edge_popup(population(), DATA, 0.5, epochs, **kw),
        lambda epochs: N * epochs,
    ),
    "multishot": (
        lambda epochs, **kw: pns.multishot(population(), "magnitude", 0.5, DATA, 2, epochs, 1, **kw),
        lambda epochs: N * (2 * epochs + 1),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_reports_how_far_it_is_and_ends_with_everything(name):
    run, total = RUNS[name]
    record = Recorder()
    run(LONG, progress=record)
    done = [d for d, _ in record.calls]
    assert len(done) > 2
    assert done == sorted(done)
    assert all(0 <= d <= t == total(LONG) for d, t in record.calls)
    assert record.calls[-1] == (total(LONG), total(LONG))
    assert done.count(total(LONG)) == 1
    assert all(type(v) is int for call in record.calls for v in call)
    assert record.threads == {threading.get_ident()}


def test_calls_are_50_ms_apart_but_the_last():
    record = Recorder()
    pns.train(population(), None, DATA, LONG, progress=record)
    gaps = [b - a for a, b in itertools.pairwise(record.times)]
    assert len(gaps) > 1
    assert min(gaps[:-1]) > 0.045


@pytest.mark.parametrize("name", RUNS)
def test_the_result_is_the_same(name):
    run, _ = RUNS[name]
    results = [getattr(r, "result", r) for r in (run(2), run(2, progress=Recorder()))]
    assert torch.equal(results[0].population.flatten(), results[1].population.flatten())
    assert torch.equal(results[0].train_loss, results[1].train_loss)


@pytest.mark.parametrize("name", RUNS)
def test_no_epoch_is_reported_as_done(name):
    run, total = RUNS[name]
    record = Recorder()
    run(0, progress=record)
    assert record.calls[-1] == (total(0), total(0))


@pytest.mark.parametrize("trainer", [ops.mlp_trainer, reference.mlp_trainer], ids=["op", "twin"])
@pytest.mark.parametrize(("n", "epochs"), [(0, 3), (2, 0), (0, 0), (2, 3)])
def test_of_the_op_and_its_twin(trainer, n, epochs):
    case, record = Case((3, 6, 2)), Recorder()
    p, mask, widths, *data, dataset, keys = case.arguments()
    trainer(p[:n], mask[:n], widths, *data, dataset[:n], keys[:n], **case.options(ADAM, epochs), progress=record)
    assert record.calls[-1] == (n * epochs, n * epochs)
    assert record.calls == sorted(record.calls)


class Enough(Exception):
    pass


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("error", [Enough, KeyboardInterrupt])
def test_what_it_raises_ends_the_call(name, error):
    run, _ = RUNS[name]
    record = Recorder(work=raiser(error))
    begin = time.perf_counter()
    with pytest.raises(error, match="said so"):
        run(1_000_000, progress=record)
    assert time.perf_counter() - begin < 5
    assert len(record.calls) == 1


def raiser(error):
    def work():
        raise error("said so")

    return work


def test_what_the_last_call_raises_is_raised_too():
    record = Recorder(work=raiser(Enough))
    with pytest.raises(Enough):
        pns.train(population(), None, DATA, 0, progress=record)
    assert record.calls == [(0, 0)]


def test_a_training_inside_the_callback_reports_to_nobody_else():
    def work():
        pns.train(population(1), None, DATA, 1)

    record = Recorder(work)
    pns.train(population(), None, DATA, LONG, progress=record)
    assert record.calls[-1] == (N * LONG, N * LONG)
    assert {t for _, t in record.calls} == {N * LONG}


def test_the_next_call_reports_to_nobody():
    record = Recorder(work=raiser(Enough))
    with pytest.raises(Enough):
        pns.train(population(), None, DATA, 1, progress=record)
    pns.train(population(), None, DATA, 1)
    with pytest.raises(ValueError, match="epochs"):
        pns.train(population(), None, DATA, -1, progress=record)
    pns.train(population(), None, DATA, 1)
    assert len(record.calls) == 1


def test_is_given_by_name():
    for function in (pns.train, pns.edge_popup, pns.multishot):
        assert inspect.signature(function).parameters["progress"].kind == inspect.Parameter.KEYWORD_ONLY
