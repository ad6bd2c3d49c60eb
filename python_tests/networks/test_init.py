"""init_population: variances, and that a network depends on its key only."""

import math

import pytest
import torch
from tolerances import TOLERANCES

import pns_fast as pns

WIDTHS = (3, 200, 100, 200)


def bias_variances(scale):
    """The product over k <= l of scale / n_{k-1}."""
    return [math.prod(scale / n for n in WIDTHS[: l + 1]) for l in range(3)]


def test_he_scaled_variances():
    population = pns.init_population(WIDTHS, n=100, seed=1)
    rtol, _ = TOLERANCES["sample_variance"]
    for l, (w, b) in enumerate(zip(population.weights, population.biases, strict=True)):
        assert w.var().item() == pytest.approx(2 / WIDTHS[l], rel=rtol)
        assert b.var().item() == pytest.approx(bias_variances(2)[l], rel=rtol)
        assert abs(w.mean().item()) < 5 * math.sqrt(2 / WIDTHS[l] / w.numel())


def test_uniform_ranges_and_variances():
    population = pns.init_population(WIDTHS, n=100, seed=1, scheme="uniform")
    rtol, _ = TOLERANCES["sample_variance"]
    for l, (w, b) in enumerate(zip(population.weights, population.biases, strict=True)):
        for values, limit in ((w, math.sqrt(6 / WIDTHS[l])), (b, math.sqrt(bias_variances(6)[l]))):
            assert values.abs().max().item() <= limit * (1 + 1e-6)
            assert values.var().item() == pytest.approx(limit**2 / 3, rel=rtol)


@pytest.mark.parametrize("scheme", ["he_scaled", "uniform"])
def test_network_depends_on_its_key_only(scheme):
    five = pns.init_population((2, 7, 3), n=5, seed=9, scheme=scheme).flatten()
    assert torch.equal(pns.init_population((2, 7, 3), n=2, seed=9, scheme=scheme).flatten(), five[:2])
    assert len(set(map(tuple, five.tolist()))) == 5
    seeds = pns.init_population((2, 7, 3), n=3, seed=[4, 9, 9], scheme=scheme).flatten()
    assert torch.equal(seeds[1], five[0])
    assert torch.equal(seeds[2], five[0])
    assert torch.equal(seeds[0], pns.init_population((2, 7, 3), seed=4, scheme=scheme).flatten()[0])


def test_float32_on_the_cpu():
    population = pns.init_population([2, 4], seed=0)
    assert (population.dtype, population.device.type, population.widths) == (torch.float32, "cpu", (2, 4))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"widths": 5}, TypeError, "widths"),
        ({"widths": (5,)}, ValueError, "widths"),
        ({"widths": (5, 0)}, ValueError, "widths"),
        ({"widths": "55"}, TypeError, "widths"),
        ({"widths": (5, True)}, TypeError, "widths"),
        ({"n": 0}, ValueError, "n: expected"),
        ({"n": 1.5}, TypeError, "n: expected"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"seed": [1, 2], "n": 3}, ValueError, "seed"),
        ({"scheme": "xavier"}, ValueError, "scheme: expected one of he_scaled, uniform"),
        ({"n": 10**15}, MemoryError, "widths, n: 1000000000000000 networks of 9 parameters need 1.676e"),
        ({"widths": (2, 10**20, 1)}, MemoryError, r"widths, n: 1 network of 4e\+20 parameters"),
    ],
)
def test_wrong_calls(arguments, error, message):
    with pytest.raises(error, match=message):
        pns.init_population(**{"widths": (2, 3), **arguments})
