"""What the CUDA trainer decides on the host: learning rates, kept counts, where a network lies. No GPU is needed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pns_fast import _native
from pns_fast.ops import _mlp_trainer_cuda as host
from pns_fast.reference.mlp_trainer import learning_rate
from pns_fast.reference.topk_mask import keep_count

SHARED, STREAMED, GLOBAL = 0, 1, 2
BLOCK_BYTES = (227 << 10) - host._STATIC_BYTES  # of an H100 or H200


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_rates_are_those_of_the_schedule_and_of_adam(schedule):
    options = {
        "epochs": 5,
        "lr": 0.3,
        "schedule": schedule,
        "step_epochs": 2,
        "gamma": 0.1,
        "beta1": 0.9,
        "beta2": 0.99,
    }
    rates = host._rates(options, n_steps=3)
    assert rates.dtype == np.float32
    for step in range(15):
        lr = learning_rate(0.3, schedule, step // 3, 5, 2, 0.1)
        expected = lr, lr / (1 - 0.9 ** (step + 1)), 1 / math.sqrt(1 - 0.99 ** (step + 1))
        np.testing.assert_allclose(rates[step], expected, rtol=1e-6)  # one rounding to float32


@pytest.mark.parametrize("anneal", [False, True])
def test_kept_counts_are_the_twins(anneal):
    widths, epochs = [3, 17, 5], 4
    counts = host._keep_counts({"epochs": epochs, "density": 0.3, "anneal": anneal}, widths)
    for epoch in range(epochs):
        density = 0.3 ** ((epoch + 1) / epochs) if anneal else 0.3
        sizes = [n for i, o in itertools.pairwise(widths) for n in (i * o, o)]
        assert counts[epoch].tolist() == [keep_count(density, n) for n in sizes]


def test_chunks_hold_every_network_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 1 << 21))
    sizes = np.array([100_000, 400_000, 100, 200_000, 600_000, 1])  # one is more than half of what is free
    chunks = list(host._chunks(sizes, torch.device("cpu")))
    assert [i for begin, end in chunks for i in range(begin, end)] == list(range(6))
    assert all(sizes[begin:end].sum() <= 1 << 19 or end - begin == 1 for begin, end in chunks)


def plan(widths: list[int], kept: float, batch_size: int = 32, **fields):
    if not _native.has_cuda_kernels():
        pytest.skip("pns_fast was built without CUDA")
    t = _native.cuda().MlpTrainer()
    t.n_networks, t.n_layers, t.n_parameters = 1, len(widths) - 1, 0
    t.batch_size, t.dense_from = batch_size, _native.cuda().MLP_DENSE_FROM
    for name, value in fields.items():
        setattr(t, name, value)
    entries = [math.ceil(kept * i * o) for i, o in itertools.pairwise(widths)]
    counts = torch.tensor([list(pair) for pair in zip(widths[1:], entries, strict=True)], dtype=torch.int32)
    ((image_bytes, shared_bytes, residence, n_threads, cost),) = t.plan(widths, counts.data_ptr(), BLOCK_BYTES)
    assert image_bytes % 16 == 0
    assert shared_bytes <= BLOCK_BYTES
    assert n_threads <= _native.cuda().MLP_MOST_THREADS[residence]
    return residence, shared_bytes, n_threads, cost


@pytest.mark.parametrize(
    ("width", "kept", "batch_size", "residence"),
    [(100, 0.1, 32, SHARED), (100, 1.0, 32, STREAMED), (100, 1.0, 512, GLOBAL), (1000, 0.1, 32, GLOBAL)],
)
def test_a_network_lies_as_near_as_it_fits(width, kept, batch_size, residence):
    assert plan([2, width, width, width, 4], kept, batch_size)[0] == residence


def test_small_networks_share_a_multiprocessor():
    threads = [plan([2, width, width, 4], 0.2)[2] for width in (10, 40, 100)]
    assert threads == sorted(threads)
    assert threads[0] < threads[-1]


def test_cost_grows_with_what_is_kept_until_a_layer_is_dense():
    costs = [plan([2, 100, 100, 100, 4], kept)[3] for kept in (0.0, 0.05, 0.2, 0.36, 1.0)]  # dense from about 0.4 on
    assert costs == sorted(costs)
    assert plan([2, 100, 100, 100, 4], 0.5)[3] == pytest.approx(costs[-1], rel=0.05)
