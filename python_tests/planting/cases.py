"""Random targets with mother networks, and what every planting must fulfil."""

import itertools

import numpy as np
import torch
from tolerances import TOLERANCES

import pns_fast as pns

RTOL, _ = TOLERANCES["planted_output"]


def random_case(seed):
    """A random target as (weight, bias) pairs, and a population with room for it."""
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(2, 9))
    target = rng.integers(1, 9, depth)
    extra = rng.choice([0, 1, 3, 30], depth) * rng.integers(0, 2, depth)
    mother = target + extra
    mother[[0, -1]] = target[[0, -1]]
    density = rng.choice([0.2, 0.5, 1.0])
    layers = []
    for n_in, n_out in itertools.pairwise(target):
        w = rng.standard_normal((n_out, n_in)) * rng.choice([0.1, 1.0, 10.0])
        b = rng.standard_normal(n_out) * rng.choice([0.0, 1.0])
        layers.append((w * (rng.random(w.shape) < density), b * (rng.random(n_out) < density)))
    population = pns.init_population(
        mother.tolist(),
        n=int(rng.integers(1, 4)),
        seed=seed,
        scheme=str(rng.choice(["he_scaled", "uniform"])),
    )
    if seed % 5 == 0:  # mother networks without biases: a bias alone finds |m| = 0
        population = pns.Population(population.weights, [torch.zeros_like(b) for b in population.biases])
    x = torch.from_numpy(rng.uniform(-1, 1, (64, target[0])))
    return layers, population, x


def live_parameters(ticket):
    """How many weights and biases are planted: all but those fed by neurons that have no parameter."""
    alive, kept = torch.ones(ticket.widths[0], dtype=torch.bool), 0
    for w, b in zip(ticket.weights, ticket.biases, strict=True):
        support = torch.cat([(w != 0) & alive, (b != 0)[:, None]], dim=1)
        alive, kept = support.any(1), kept + int(support.sum())
    return kept


def assert_planted(planted, ticket, mother, x):
    expected, got = ticket.forward(x), planted.ticket_forward(x)
    assert got.shape == (mother.n, *expected.shape)
    assert (got - expected).abs().max() <= RTOL * expected.abs().max()
    assert (planted.output_scale > 0).all()
    assert planted.masks.kept().tolist() == [live_parameters(ticket)] * mother.n
    for neurons in planted.neurons:
        for row in neurons.tolist():
            used = [i for i in row if i >= 0]
            assert len(set(used)) == len(used)
    untouched = ~planted.masks.flatten()
    assert torch.equal(planted.population.flatten()[untouched], mother.flatten()[untouched])
