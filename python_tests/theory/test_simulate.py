"""The search in random networks: known probabilities, Theorem 2's bound, approximations that are within eps."""

import math

import pytest
import torch

import pns_fast as pns
from pns_fast.theory import existence_probability, layer_errors, simulate

RELU = pns.tasks.get("relu").ticket(3)
HALVES = [([[0.5]], [0.0]), ([[-0.5]], [0.0])]
# neurons of 2, 2 and 2 parameters, all within the assumption
SMALL = [([[0.5], [-0.4]], [0.3, 0.2]), ([[0.5, 0.3]], [0.0])]


def off_by(simulation, p):
    """How many standard errors the share found is away from p."""
    return (simulation.probability - p) / math.sqrt(p * (1 - p) / len(simulation.found))


@pytest.mark.parametrize("init", ["uniform", "normal"])
def test_one_neuron_a_layer_is_found_with_the_exact_probability(init):
    found = simulate(HALVES, (1, 10, 12), 0.9, init, n=4000, seed=20_000)
    exact = existence_probability(HALVES, (1, 10, 12), 0.9, init, match="exact")
    assert 0.5 < exact < 0.97
    assert found.exact_bound == exact
    assert abs(off_by(found, exact)) < 4


@pytest.mark.parametrize("norm", ["max", "spectral"])
@pytest.mark.parametrize("init", ["uniform", "he_scaled"])
def test_theorem_2_bounds_what_is_found(init, norm):
    width = 150 if init == "uniform" else 220
    found = simulate(SMALL, (1, width, width), 0.9, init, n=400, seed=7, norm=norm)
    assert 0.1 < found.exact_bound < 0.9
    assert found.bound <= found.exact_bound * (1 + 1e-12)
    assert 0.05 < found.probability < 0.95
    assert found.probability >= found.exact_bound - 3 * found.standard_error
    assert found.largest_error <= 0.9


def test_the_printed_bound_fails_where_its_assumption_does():
    # weights of 1: half of the interval around them is out of reach
    found = simulate(RELU, (1, 10, 10), 0.9, n=2000, seed=3)
    assert found.probability < found.bound - 20 * found.standard_error
    assert abs(off_by(found, found.exact_bound)) < 4
    assert found.largest_error <= 0.9


def test_with_a_scale_a_neuron_only_the_sign_of_a_single_weight_matters():
    found = simulate(RELU, (1, 3, 3), 0.3, n=2000, seed=1, scaling="neuron")
    assert abs(off_by(found, (1 - 0.5**3) ** 2)) < 4
    assert found.largest_error < 1e-6


def test_a_scale_a_neuron_finds_more_and_stays_within_eps():
    one, own = (simulate(SMALL, (1, 60, 60), 0.9, n=200, seed=5, scaling=s) for s in ("network", "neuron"))
    assert 0 < one.probability < own.probability
    assert 0 < one.largest_error <= 0.9
    assert 0 < own.largest_error <= 0.9


def test_found_approximations_are_part_of_the_mother_network():
    # one neuron a layer, so that all paths through the network are few enough to look at
    widths, eps = (1, 3, 4, 5), 2.0
    ticket = pns.Ticket([[[0.5]], [[0.4]], [[-0.6]]], [[0.0], [0.3], [0.0]])
    found = simulate(ticket, widths, eps, n=60, seed=11)
    mothers = pns.init_population(widths, n=60, seed=list(range(11, 71)), scheme="uniform")
    unit = [math.sqrt(6 / n) for n in widths[:-1]]
    errors, exists = layer_errors(ticket, eps), []
    for w1, w2, w3, b2 in zip(*mothers.weights, mothers.biases[1], strict=True):
        first = (w1[:, 0] / unit[0] - 0.5).abs()
        second = torch.maximum((w2 / unit[1] - 0.4).abs(), (b2 / unit[0] / unit[1] - 0.3).abs()[:, None])
        third = (w3 / unit[2] + 0.6).abs()
        i = int(first.argmin())
        j = int(second[:, i].argmin())
        exists.append(bool(first[i] <= errors[0] and second[j, i] <= errors[1] and third[:, j].min() <= errors[2]))
    assert found.found.tolist() == exists
    assert 0 < sum(exists) < 60


def test_no_neuron_serves_twice():
    twins = [([[0.5], [0.5]], [0.0, 0.0]), ([[0.4, 0.4]], [0.0])]
    assert simulate(twins, (1, 2, 9), 0.9, n=300).probability < simulate(HALVES, (1, 2, 9), 0.9, n=300).probability
    # of two neurons one matches with the probability of Theorem 2, but both targets need one
    found = simulate(twins, (1, 2, 200), 0.9, n=1000, output="trained")
    e = layer_errors(twins, 0.9)[0]
    assert abs(off_by(found, e**2)) < 4


def test_a_dead_neuron_needs_no_match():
    dead = [([[0.5], [0.0]], [0.0, 0.0]), ([[-0.5, 0.7]], [0.0])]
    alive = simulate(HALVES, (1, 8, 8), 0.9, n=200)
    found = simulate(dead, (1, 8, 8), 0.9, n=200)
    assert 0 < found.probability < 1
    assert found.probability <= alive.probability  # eps_l is smaller, as k counts every weight


def test_results_do_not_depend_on_batches_and_seeds_are_those_of_init_population(monkeypatch):
    from pns_fast.theory import simulate as module_function

    whole = simulate(SMALL, (1, 60, 60), 0.9, n=50, seed=5)
    monkeypatch.setitem(module_function.__globals__, "_MOST_PARAMETERS", 3660 * 7)
    parts = simulate(SMALL, (1, 60, 60), 0.9, n=50, seed=5)
    assert torch.equal(whole.found, parts.found)
    assert whole.largest_error == parts.largest_error
    later = simulate(SMALL, (1, 60, 60), 0.9, n=30, seed=25)
    assert torch.equal(whole.found[20:], later.found)


def test_nothing_found_and_a_trained_output():
    nothing = simulate(pns.tasks.get("circle").ticket(5), (2, 20, 20, 20, 4), 0.1, n=5)
    assert nothing.probability == nothing.bound == 0.0
    assert math.isnan(nothing.largest_error)
    trained = simulate(HALVES, (1, 10, 1), 0.9, n=1000, seed=20_000, output="trained")
    assert abs(off_by(trained, 1 - (1 - layer_errors(HALVES, 0.9)[0]) ** 10)) < 4


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "scaling: expected one of network, neuron", {"scaling": "layer"}),
        (ValueError, "n: expected an int of at least 1, got 0", {"n": 0}),
        (TypeError, "n: expected an int, got 3.0", {"n": 3.0}),
        (ValueError, "seed: expected 0 <= seed", {"seed": -1}),
        (ValueError, r"n: expected seeds below 2\*\*63, got 2 networks from seed", {"seed": 2**63 - 1, "n": 2}),
        (TypeError, "seed: expected an int", {"seed": 0.5}),
        (ValueError, "init: expected one of", {"init": "he"}),
    ],
)
def test_wrong_calls(error, message, options):
    with pytest.raises(error, match=message):
        simulate(HALVES, (1, 8, 8), 0.9, **options)
