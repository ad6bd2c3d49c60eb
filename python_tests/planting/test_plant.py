"""Planting against Algorithm 1 written out, its corner cases, its determinism and its errors."""

import itertools

import numpy as np
import pytest
import torch
from planting.cases import assert_planted, random_case
from tolerances import TOLERANCES

import pns_fast as pns
from pns_fast.networks import cat_populations


def best_neuron(theta, options):
    """The candidate (number -> parameters) of least residual: (number, scale, whether it is a fallback)."""
    best, least, scale = None, np.inf, 1.0
    for c, m in options.items():
        lam = theta @ m / (m @ m) if m.any() else 0.0
        q = np.linalg.norm(theta - lam * m) if len(theta) > 1 else 0.0
        if lam > 0 and q < least:
            best, least, scale = c, q, lam
    if best is not None:
        return best, scale, False
    best = max(options, key=lambda c: (np.linalg.norm(options[c]), -c))
    norm = np.linalg.norm(options[best])
    return best, np.linalg.norm(theta) / norm if norm else 1.0, True


def algorithm_1(layers, mother):
    """One network planted the slow way: weights with the bias as last column, scales, neurons, fallbacks."""
    planted = [
        np.concatenate([w[0].double().numpy(), b[0].double().numpy()[:, None]], axis=1)
        for w, b in zip(mother.weights, mother.biases, strict=True)
    ]
    where = list(range(mother.widths[0]))
    scales, neurons, fallbacks = np.ones(len(where)), [], 0
    for l, (w, b) in enumerate(layers):
        is_output, m = l == len(layers) - 1, planted[l].copy()
        target = np.concatenate([w * scales, b[:, None]], axis=1)
        where = [*where, m.shape[1] - 1]
        found, scales = [], np.ones(len(b))
        for i, row in enumerate(target):
            on = [j for j in range(len(row)) if row[j] != 0 and where[j] >= 0]
            columns = [where[j] for j in on]
            free = [i] if is_output else [c for c in range(len(m)) if c not in found]
            if on:
                c, scales[i], failed = best_neuron(row[on], {c: m[c, columns] for c in free})
                planted[l][c, columns] = row[on] / scales[i]
                fallbacks += failed and not is_output
            found.append(c if on else i if is_output else -1)
        neurons.append(found)
        where = found
    return planted, scales, neurons, fallbacks


def test_follows_algorithm_1():
    n_fallbacks = 0
    for seed in range(60):
        layers, mother, _ = random_case(1000 + seed)
        mother = mother.select(0)
        planted = pns.plant(layers, mother)
        expected, scales, neurons, fallbacks = algorithm_1(layers, mother)
        assert [row[0].tolist() for row in planted.neurons] == neurons
        assert planted.fallbacks.tolist() == [fallbacks]
        n_fallbacks += fallbacks
        rtol, _ = TOLERANCES["planted_scale"]
        np.testing.assert_allclose(planted.output_scale[0].numpy(), scales, rtol=rtol)
        rtol, _ = TOLERANCES["float32_rounding"]
        for w, b, m in zip(planted.population.weights, planted.population.biases, expected, strict=True):
            np.testing.assert_allclose(torch.cat([w[0], b[0][:, None]], dim=1).numpy(), m, rtol=rtol)
    assert n_fallbacks > 20


def two_hidden(first_layer, target):
    """A mother network with this first layer and no biases, and a target with this first layer."""
    w = torch.tensor([first_layer])
    mother = pns.Population([w, torch.ones(1, 1, w.shape[1])], [torch.zeros(1, w.shape[1]), torch.zeros(1, 1)])
    target = np.array(target)
    return [(target, np.zeros(len(target))), (np.ones((1, len(target))), np.zeros(1))], mother


@pytest.mark.parametrize("assignment", ["greedy", "optimal"])
def test_fallback_takes_the_largest_free_neuron(assignment):
    layers, mother = two_hidden([[-1.0], [-3.0], [-2.0]], [[1.0], [6.0]])
    planted = pns.plant(layers, mother, assignment=assignment)
    assert planted.neurons[0].tolist() == [[1, 2]]
    assert planted.fallbacks.tolist() == [2]
    # lambda = |theta| / |m| = 1/3 and 6/2, so the planted weights are the mother's with the sign turned
    assert planted.population.weights[0].tolist() == [[[-1.0], [3.0], [2.0]]]
    assert planted.population.weights[1][0, 0].tolist() == pytest.approx([1.0, *_outgoing(1 / 3, 3.0)])


def _outgoing(*scales):
    """Outgoing weights lambda_old / lambda of a target with ones, lambda by the projection on ones."""
    theta = np.array(scales)
    return theta / theta.mean()


def test_fallback_ties_go_to_the_lowest_index():
    layers, mother = two_hidden([[-2.0], [-2.0], [-1.0]], [[1.0], [1.0]])
    assert pns.plant(layers, mother).neurons[0].tolist() == [[0, 1]]


def test_a_fallback_takes_its_neuron_before_later_targets():
    """Target 0 wants input 0, where all are negative; target 1 would take neuron 0, now taken."""
    layers, mother = two_hidden([[-5.0, 0.5], [-1.0, 0.1], [-2.0, -1.0]], [[1.0, 0.0], [0.0, 1.0]])
    planted = pns.plant(layers, mother)
    assert planted.neurons[0].tolist() == [[0, 1]]
    assert planted.fallbacks.tolist() == [1]


def test_a_fallback_can_cause_the_next():
    layers, mother = two_hidden([[-5.0, 0.5], [-1.0, -0.1], [-2.0, -1.0]], [[1.0, 0.0], [0.0, 1.0]])
    planted = pns.plant(layers, mother)
    assert planted.neurons[0].tolist() == [[0, 2]]
    assert planted.fallbacks.tolist() == [2]


def test_only_networks_with_a_fallback_are_matched_again():
    layers, bad = two_hidden([[-5.0, 0.5], [-1.0, 0.1], [-2.0, -1.0]], [[1.0, 0.0], [0.0, 1.0]])
    _, good = two_hidden([[5.0, 0.5], [-1.0, 0.1], [-2.0, -1.0]], [[1.0, 0.0], [0.0, 1.0]])
    planted = pns.plant(layers, cat_populations([good, bad, good]))
    assert planted.neurons[0].tolist() == [[0, 1]] * 3
    assert planted.fallbacks.tolist() == [0, 1, 0]


def test_fallback_without_any_parameter_to_scale():
    """A bias alone, planted where every bias is zero: |m| = 0, lambda = 1."""
    layers = [(np.zeros((1, 1)), np.array([2.0])), (np.ones((1, 1)), np.zeros(1))]
    mother = pns.Population([torch.ones(1, 3, 1), torch.ones(1, 1, 3)], [torch.zeros(1, 3), torch.zeros(1, 1)])
    planted = pns.plant(layers, mother)
    assert planted.neurons[0].tolist() == [[0]]
    assert planted.fallbacks.tolist() == [1]
    assert planted.population.biases[0].tolist() == [[2.0, 0.0, 0.0]]
    assert planted.output_scale.tolist() == [[1.0]]


def test_neurons_without_parameters_need_no_match():
    """Target neuron 0 is empty, neuron 0 of the next layer sees only it, so both are constant 0."""
    layers = [
        (np.array([[0.0], [2.0]]), np.zeros(2)),
        (np.array([[3.0, 0.0], [1.0, 1.0]]), np.zeros(2)),
        (np.array([[5.0, 7.0]]), np.array([0.5])),
    ]
    mother = pns.init_population((1, 2, 2, 1), n=2, seed=4)
    planted = pns.plant(layers, mother)
    assert [row[:, 0].tolist() for row in planted.neurons] == [[-1, -1], [-1, -1], [0, 0]]
    assert (planted.neurons[0][:, 1] >= 0).all()
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    assert_planted(planted, pns.Ticket([w for w, _ in layers], [b for _, b in layers]), mother, x)
    assert planted.masks.kept().tolist() == [4, 4]


def test_an_output_without_parameters_is_zero():
    layers = [(np.ones((1, 1)), np.zeros(1)), (np.array([[1.0], [0.0]]), np.zeros(2))]
    planted = pns.plant(layers, pns.init_population((1, 5, 2), n=3))
    output = planted.ticket_forward(torch.ones(1, 1))
    assert not output[:, :, 1].any()
    assert planted.output_scale[:, 1].tolist() == [1.0] * 3


def test_output_neurons_stay_in_place_and_use_the_norm_ratio_where_the_scale_is_not_positive():
    w = torch.tensor([[[-4.0], [2.0]]])
    mother = pns.Population([w], [torch.zeros(1, 2)])
    planted = pns.plant([(np.array([[1.0], [1.0]]), np.zeros(2))], mother)
    assert planted.neurons[0].tolist() == [[0, 1]]
    assert planted.output_scale.tolist() == [[0.25, 0.5]]
    assert planted.population.weights[0].tolist() == [[[4.0], [2.0]]]
    assert planted.fallbacks.tolist() == [0]


def total_residual(layers, mother, neurons):
    (w, b), m = layers[0], torch.cat([mother.weights[0][0], mother.biases[0][0][:, None]], dim=1).double()
    cost = 0.0
    for theta, c in zip(np.concatenate([w, b[:, None]], axis=1), neurons, strict=True):
        on = theta != 0
        candidate = m[c].numpy()[on]
        scale = theta[on] @ candidate / (candidate @ candidate)
        cost += np.linalg.norm(theta[on] - scale * candidate) if scale > 0 else np.inf
    return cost


def test_optimal_is_the_least_total_residual():
    better = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        layers = [(rng.standard_normal((3, 4)), rng.standard_normal(3)), (np.ones((1, 3)), np.zeros(1))]
        mother = pns.init_population((4, 6, 1), seed=seed)
        greedy, optimal = (pns.plant(layers, mother, assignment=assignment) for assignment in ("greedy", "optimal"))
        costs = [total_residual(layers, mother, p) for p in itertools.permutations(range(6), 3)]
        if min(costs) < np.inf:
            assert optimal.fallbacks.item() == 0
            got = total_residual(layers, mother, optimal.neurons[0][0].tolist())
            assert got == pytest.approx(min(costs), rel=1e-12)
            better += got < total_residual(layers, mother, greedy.neurons[0][0].tolist()) * (1 - 1e-9)
    assert better >= 5


@pytest.mark.parametrize("assignment", ["greedy", "optimal"])
def test_the_same_alone_in_a_batch_and_on_two_threads(assignment):
    task = pns.tasks.get("helix")
    mother = pns.init_population(task.widths(5, 40), n=3, seed=8)

    def results(population):
        planted = pns.plant(task.ticket(5), population, assignment=assignment)
        parts = [
            planted.population.flatten(),
            planted.masks.flatten(),
            planted.output_scale,
            planted.fallbacks,
        ]
        return [*parts, *planted.neurons, planted.ticket_forward(task.sample(200).x_train)]

    together = results(mother)
    for i in range(3):
        for alone, batch in zip(results(mother.select(i)), together, strict=True):
            assert torch.equal(alone[0], batch[i])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        for a, b in zip(results(mother), together, strict=True):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_accepts_pairs_of_tensors_arrays_and_lists():
    mother = pns.init_population((1, 4, 1), n=2)
    expected = pns.plant(pns.tasks.get("relu").ticket(3), mother).population.flatten()
    for one, zero in (
        (torch.ones(1, 1), torch.zeros(1)),
        (np.ones((1, 1)), np.zeros(1)),
        ([[1.0]], [0.0]),
    ):
        assert torch.equal(pns.plant([(one, zero), (one, zero)], mother).population.flatten(), expected)


def test_float64_mothers():
    task = pns.tasks.get("circle")
    mother = pns.init_population(task.widths(5, 50), n=1).to(dtype=torch.float64)
    planted = pns.plant(task.ticket(5), mother)
    x = task.sample(100).x_train.double()
    expected = task.ticket(5).forward(x)
    assert planted.population.dtype == torch.float64
    assert (planted.ticket_forward(x)[0] - expected).abs().max() < 1e-12 * expected.abs().max()


MOTHER = pns.init_population((2, 30, 30, 30, 4), n=2)
CIRCLE = pns.tasks.get("circle").ticket(5)


def spoiled(value: float) -> pns.Population:
    mother = pns.init_population((2, 30, 30, 30, 4), n=2)
    mother.biases[1][1, 3] = value
    return mother


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rule": "plantnseek"}, ValueError, "rule: expected one of paper, got 'plantnseek'"),
        ({"assignment": "best"}, ValueError, "assignment: expected one of greedy, optimal"),
        ({"ticket": pns.tasks.get("circle").ticket(6)}, ValueError, "depth 6 does not fit .* depth 5"),
        ({"population": pns.init_population((2, 30, 30, 19, 4))}, ValueError, "layer 3 is wider.*20.*19"),
        ({"ticket": pns.tasks.get("helix").ticket(5)}, ValueError, "2 inputs and 4 outputs"),
        ({"population": pns.init_population((2, 30, 30, 30, 5))}, ValueError, "5 outputs"),
        ({"population": MOTHER.module(0)}, TypeError, "population: expected a Population"),
        ({"ticket": None}, TypeError, "ticket: expected a Ticket"),
        ({"ticket": "circle"}, TypeError, "ticket: expected a Ticket"),
        ({"ticket": [np.ones((1, 1))]}, TypeError, r"ticket\[0\]: expected a \(weight, bias\) pair"),
        ({"ticket": []}, ValueError, r"ticket: expected at least one \(weight, bias\) pair"),
        ({"ticket": [(np.full((1, 1), np.inf), np.zeros(1))]}, ValueError, "finite"),
        ({"population": spoiled(float("nan"))}, ValueError, "population: expected finite weights and biases"),
        ({"population": spoiled(float("-inf"))}, ValueError, "population: expected finite weights and biases"),
    ],
)
def test_wrong_calls(arguments, error, message):
    with pytest.raises(error, match=message):
        pns.plant(**{"ticket": CIRCLE, "population": MOTHER, **arguments})


def test_wrong_inputs_of_ticket_forward():
    planted = pns.plant(CIRCLE, MOTHER)
    with pytest.raises(ValueError, match="x: expected shape"):
        planted.ticket_forward(torch.ones(5, 3))
    with pytest.raises(TypeError, match="x: expected a floating point tensor"):
        planted.ticket_forward(torch.ones(5, 2).long())
