"""PHEW: walks that go where weights are large, paths at every density, streams of their own."""

import time

import numpy as np
import pytest
import torch

from pns_fast import Masks, Population, init_population, prune
from pns_fast.pruners import score
from pns_fast.pruners.phew import _first_visits, _Steps

PAPER_WIDTHS = (2, 100, 100, 100, 4)


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def test_a_step_follows_the_weights():
    steps = _Steps(np.array([[0.0, 3.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 4.0]]))
    chances = np.floor(generator().random(40_000) * 2.0**32) / 2.0**32
    columns, goes_on = steps.take(np.zeros(40_000, dtype=np.int64), chances)
    assert goes_on.all()
    assert np.bincount(columns, minlength=5) / 40_000 == pytest.approx([0, 0.75, 0, 0.25, 0], abs=0.01)
    columns, goes_on = steps.take(np.full(40_000, 2), chances)
    assert np.bincount(columns) / 40_000 == pytest.approx([1 / 8] * 4 + [0.5], abs=0.01)
    columns, goes_on = steps.take(np.array([1, 1, 0, 2]), np.array([0.0, 1 - 2.0**-32, 1 - 2.0**-32, 0.0]))
    assert goes_on.tolist() == [False, False, True, True]
    assert columns[2:].tolist() == [3, 0]


def slow_visits(weights, uniform):
    """The first visits by walks taken one at a time, as the docstring of phew tells them."""
    n_layers, time_of = len(weights), {}

    def choose(magnitudes, chance):
        return int(np.searchsorted(np.cumsum(magnitudes) / magnitudes.sum(), chance, side="right"))

    for walk, chances in enumerate(uniform):
        is_back, now = walk % 2 == 1, walk * (n_layers + 1)
        neuron = walk // 2 % (weights[-1].shape[0] if is_back else weights[0].shape[1])
        if is_back:
            time_of.setdefault(("bias", n_layers - 1, neuron), now)
        for step in range(n_layers):
            l = n_layers - 1 - step if is_back else step
            other = choose(weights[l][neuron] if is_back else weights[l][:, neuron], chances[step])
            now += 1
            edge = (neuron, other) if is_back else (other, neuron)
            time_of.setdefault(("weight", l, *edge), now)
            if not is_back or l > 0:
                time_of.setdefault(("bias", l - 1 if is_back else l, other), now)
            neuron = other
    return time_of


def test_first_visits_are_those_of_walks_taken_one_at_a_time():
    weights = [np.abs(generator(1).standard_normal(shape)) for shape in ((6, 3), (5, 6), (4, 5))]
    times, end = _first_visits(weights, generator(2))
    n_walks = 2 * 30
    assert end == n_walks * 4
    uniform = np.floor(generator(2).random((n_walks, 3)) * 2.0**32) / 2.0**32
    expected = slow_visits(weights, uniform)
    for l, (of_weights, of_neurons) in enumerate(times):
        found = {("weight", l, *at): of_weights[at] for at in np.ndindex(of_weights.shape) if of_weights[at] < end}
        found |= {("bias", l, at): t for at, t in enumerate(of_neurons) if t < end}
        assert found == {key: t for key, t in expected.items() if key[1] == l}


def test_what_is_visited_ranks_above_the_rest_and_that_by_magnitude():
    population = init_population((2, 30, 30, 4), n=2)
    scores, magnitude = score(population, "phew"), population.flatten().abs().double()
    for i in range(2):
        visited = scores[i] >= 2
        assert 0.5 < visited.double().mean() < 1
        assert scores[i][~visited].max() <= 1
        order = scores[i][~visited].argsort()
        assert (magnitude[i][~visited][order].diff() >= 0).all()
        # walks prefer large weights
        inner = slice(2 * 30 + 30, 2 * 30 + 30 + 900)
        assert magnitude[i, inner][visited[inner]].mean() > 2 * magnitude[i, inner][~visited[inner]].mean()


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3])
def test_what_is_kept_lies_on_paths(density):
    """All but the one walk that the threshold cuts."""
    population = init_population(PAPER_WIDTHS, n=3)
    masks = prune(population, "phew", density)
    assert not masks.collapsed().any()
    lost = (masks.density() - masks.effective_density()) * 20_904
    assert lost.max() <= 8  # the weights and biases of one walk
    assert (prune(population, "magnitude", density).effective_density() < masks.effective_density()).all()


def test_densities_are_nested_and_networks_do_not_share_numbers():
    population = init_population((2, 20, 20, 4), n=4)
    small, large = (prune(population, "phew", d, seed=5).flatten() for d in (0.1, 0.6))
    assert not (small & ~large).any()
    twins = Population(
        [w[:1].repeat(3, 1, 1) for w in population.weights], [b[:1].repeat(3, 1) for b in population.biases]
    )
    scores = score(twins, "phew", seed=[7, 8, 7])
    assert torch.equal(scores[0], scores[2])
    assert not torch.equal(scores[0], scores[1])


def test_pruned_weights_are_not_walked_over():
    population = init_population((3, 20, 20, 4), n=2)
    masks = prune(population, "random", 0.5)
    scores = score(population, "phew", masks=masks)
    assert (scores[~masks.flatten()] == -torch.inf).all()
    assert (scores[masks.flatten()] >= 2).double().mean() > 0.5


def test_a_network_without_paths_is_scored_as_far_as_walks_come():
    population = init_population((2, 10, 10, 4))
    masks = Masks.full(population)
    masks.weights[1][:] = False
    scores = score(population, "phew", masks=masks)[0]
    first, last = scores[: 2 * 10], scores[-4 * 10 - 4 : -4]
    assert (first >= 2).double().mean() > 0.5  # from the inputs
    assert (last >= 2).double().mean() > 0.5  # from the outputs
    zero = Population([torch.zeros(1, 3, 2), torch.zeros(1, 2, 3)], [torch.zeros(1, 3), torch.zeros(1, 2)])
    assert score(zero, "phew")[0, -2:].min() >= 2  # outputs: where walks begin
    assert (score(zero, "phew")[0, :-2] == 0).all()


def test_walks_reach_half_of_25_networks_in_a_second():
    population = init_population(PAPER_WIDTHS, n=25)
    begin = time.process_time()  # other processes share the machine
    scores = score(population, "phew")
    assert time.process_time() - begin < 1
    assert (scores >= 2).double().mean(1).min() > 0.5
