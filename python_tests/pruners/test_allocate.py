"""Counts of layers: exact totals, full layers, monotone in density, and the formula of Erdos-Renyi-Kernel."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pns_fast as pns
from pns_fast.pruners import allocate

WIDTHS = st.lists(st.integers(1, 60), min_size=2, max_size=7)
DENSITIES = st.floats(1e-4, 1.0)


def shapes(widths):
    return [[(n_out, n_in), (n_out,)] for n_in, n_out in itertools.pairwise(widths)]


def sizes(layers):
    return [sum(map(math.prod, layer)) for layer in layers]


def water_filled(layers, density):
    """min(1, eps * raw density) * size of each layer, eps by bisection in floating point; and whether one is full."""
    raw = [sum(weight) / math.prod(weight) for weight, *_ in layers]
    total = math.ceil(density * sum(sizes(layers)) - 1e-9)

    def ideal(eps):
        return [min(1.0, eps * r) * size for r, size in zip(raw, sizes(layers), strict=True)]

    low, high = 0.0, 1 / min(raw)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(ideal(middle)) < total else (low, middle)
    return ideal(high)


@settings(max_examples=150, deadline=None)
@given(widths=WIDTHS, density=DENSITIES, smaller=DENSITIES)
def test_erk_is_exact_fits_every_layer_and_never_takes_from_one(widths, density, smaller):
    layers = shapes(widths)
    counts = allocate(layers, density, "erk")
    n = sum(sizes(layers))
    assert sum(counts) == math.ceil(density * n - 1e-9) == allocate(layers, density, "global")[0]
    assert all(0 <= count <= size for count, size in zip(counts, sizes(layers), strict=True))
    fewer = allocate(layers, min(smaller, density), "erk")
    assert all(f <= c for f, c in zip(fewer, counts, strict=True))


@settings(max_examples=150, deadline=None)
@given(widths=WIDTHS, density=DENSITIES)
def test_erk_is_the_water_filled_formula_up_to_rounding(widths, density):
    layers = shapes(widths)
    counts, ideal = allocate(layers, density, "erk"), water_filled(layers, density)
    # half a parameter a layer, and what that leaves over
    assert all(abs(c - i) <= max(1, len(layers) / 2) for c, i in zip(counts, ideal, strict=True))


@pytest.mark.parametrize(("density", "is_any_full"), [(0.01, False), (0.05, False), (0.1, True), (0.5, True)])
def test_erk_of_the_papers_network(density, is_any_full):
    layers = shapes((2, 100, 100, 100, 4))
    counts = allocate(layers, density, "erk")
    raw = [102 / 200, 200 / 10_000, 200 / 10_000, 104 / 400]
    if is_any_full:
        assert counts[0] == 300
    else:  # eps from the total, nothing is full
        eps = sum(counts) / sum(r * s for r, s in zip(raw, sizes(layers), strict=True))
        assert counts == [pytest.approx(eps * r * s, abs=1) for r, s in zip(raw, sizes(layers), strict=True)]
    free = [c / s / r for c, s, r in zip(counts, sizes(layers), raw, strict=True) if c < s]
    assert free == [pytest.approx(free[0], rel=0.02)] * len(free)


def test_a_full_layer_gives_what_it_cannot_take_to_the_others():
    """The known trap: capped and not dealt out again, the network would be sparser than asked for."""
    layers = shapes((2, 100, 100, 4))
    counts = allocate(layers, 0.3, "erk")
    assert counts[0] == 300
    assert sum(counts) == math.ceil(0.3 * sum(sizes(layers)))


def test_one_parameter_more_goes_to_one_layer():
    layers = shapes((3, 7, 2, 9, 5))
    n, before = sum(sizes(layers)), [0] * 4
    for k in range(1, n + 1):
        counts = allocate(layers, k / n, "erk")
        assert sorted(c - b for c, b in zip(counts, before, strict=True)) == [0, 0, 0, 1]
        before = counts
    assert before == sizes(layers)


def test_ties_go_to_the_first_layer():
    assert allocate(shapes((4, 4, 4)), 1 / 40, "erk") == [1, 0]


def test_kernels_count_with_their_sizes():
    layers = [[(16, 3, 5, 5), (16,)], [(32, 16, 5, 5)]]
    counts, raw = allocate(layers, 0.01, "erk"), [29 / 1200, 58 / 12_800]
    assert counts[0] / 1216 / (counts[1] / 12_800) == pytest.approx(raw[0] / raw[1], rel=0.05)


def test_layer_and_global():
    layers = shapes((2, 20, 13, 4))
    assert allocate(layers, 0.1, "layer") == [6, 28, 6]
    assert allocate(layers, 0.1, "global") == [39]


def test_random_by_layer():
    """Scope "layer" is uniform, "erk" ERK random pruning: the counts are the allocated ones, whatever the scores."""
    population = pns.init_population((2, 30, 30, 4), n=3)
    for scope in ("layer", "erk"):
        masks = pns.prune(population, "random", 0.2, scope=scope)
        kept = [w.flatten(1).sum(1) + b.sum(1) for w, b in zip(masks.weights, masks.biases, strict=True)]
        wanted = allocate(shapes((2, 30, 30, 4)), 0.2, scope)
        assert [k.tolist() for k in kept] == [[count] * 3 for count in wanted]


@pytest.mark.parametrize("name", ["random", "synflow", "force"])
def test_rounds_end_with_the_exact_total(name):
    """Counts never rise from round to round, so what an earlier round has pruned is not missing in a later one."""
    population = pns.init_population((2, 17, 9, 4), n=3)
    batch = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
    for rounds in (3, 20):
        masks = pns.prune(population, name, 0.1, batch, scope="erk", rounds=rounds)
        assert masks.kept().tolist() == [math.ceil(0.1 * (51 + 162 + 40) - 1e-9)] * 3


@pytest.mark.parametrize(("density", "scope"), [(0.0, "erk"), (1.1, "erk"), (0.5, "channel")])
def test_wrong_calls(density, scope):
    with pytest.raises(ValueError, match="scope" if density == 0.5 else "density"):
        allocate(shapes((2, 3)), density, scope)
