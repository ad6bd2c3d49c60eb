"""Lemma 1: its numbers by hand, its suprema, and that outputs move by at most eps; where the printed form fails."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from theory.perturbed import inputs, largest_move

import pns_fast as pns
from pns_fast.theory import assumption_holds, layer_errors, layer_terms
from pns_fast.theory.activations import largest_inputs

TICKETS = [(task, depth) for task in ("circle", "relu", "helix") for depth in (3, 4, 5, 6, 10)]


def ticket_of(task, depth):
    return pns.tasks.get(task).ticket(depth)


def random_ticket(seed):
    """1 to 4 layers of up to 6 neurons, dense or sparse, with weights from tiny to large."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, 7, rng.integers(2, 6))
    density = rng.choice([0.3, 1.0])
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        w = rng.standard_normal((n_out, n_in)) * rng.choice([1e-3, 0.1, 1.0, 5.0])
        b = rng.standard_normal(n_out) * rng.choice([0.0, 1.0])
        layers.append((w * (rng.random(w.shape) < density), b))
    return pns.Ticket(*zip(*layers, strict=True))


def all_ones(n):
    """n hidden neurons that one output adds up."""
    return pns.Ticket([np.ones((n, 1)), np.ones((1, n))], [np.zeros(n), np.zeros(1)])


def test_by_hand():
    eps = 0.3
    # relu, L = 4, every term but the product the same: 0.3 / (4 * 1 * (1 + 1))
    expected = [0.0375 / 1.075**power for power in (3, 2, 1, 0)]
    assert layer_errors(ticket_of("relu", 5), eps) == pytest.approx(expected, rel=1e-14)
    # two hidden neurons with a bias each and 2 inputs; relu(x - y + 1) + relu(-2x + 1) is largest at (-1, -1)
    ticket = [([[1.0, -1.0], [-2.0, 0.0]], [1.0, 1.0]), ([[3.0, -4.0]], [0.5])]
    terms = layer_terms(ticket, eps)
    assert [t.n_parameters for t in terms] == [(3, 2), (3,)]
    assert [t.largest_input for t in terms] == [2.0, 4.0]
    assert [t.weight_norm for t in terms] == [2.0, 4.0]
    expected = [0.15 / (math.sqrt(6) * 3 * 4.15), 0.15 / (math.sqrt(3) * 5)]
    assert layer_errors(ticket, eps) == pytest.approx(expected, rel=1e-14)
    expected[0] *= 4.15 / 5.15  # |(3, -4)|_2 is 5
    assert layer_errors(ticket, eps, norm="spectral") == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("task", "depth"), TICKETS)
def test_largest_inputs_of_the_tickets_are_reached(task, depth):
    # on a grid of [-1, 1] that holds corners and axes
    ticket = ticket_of(task, depth)
    line = torch.linspace(-1, 1, 801, dtype=torch.float64)
    x = line[:, None] if ticket.widths[0] == 1 else torch.cartesian_prod(line, line)
    reached = [float(ticket.widths[0])]
    for w, b in zip(ticket.weights[:-1], ticket.biases[:-1], strict=True):
        x = torch.relu(x @ w.T + b)
        reached.append(float(x.sum(1).max()))
    assert largest_inputs(ticket) == pytest.approx(reached, rel=2e-3)
    assert all(bound >= value * (1 - 1e-12) for bound, value in zip(largest_inputs(ticket), reached, strict=True))


def test_largest_inputs_are_bounds_and_nearly_reached():
    generator, gaps = torch.Generator().manual_seed(0), []
    for seed in range(60):
        ticket = random_ticket(seed)
        bounds, x = largest_inputs(ticket), inputs(ticket.widths[0], generator, n=3000)
        assert bounds[0] == ticket.widths[0]
        for bound, w, b in zip(bounds[1:], ticket.weights, ticket.biases, strict=False):
            x = torch.relu(x @ w.T + b)
            reached = float(x.sum(1).max())
            assert bound >= reached * (1 - 1e-12)
            gaps.append(bound - reached if reached == 0 else bound / reached - 1)
    assert np.median(gaps) < 1e-3


def test_largest_inputs_of_many_inputs_is_a_bound_without_a_long_search():
    w = torch.randn(300, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bound = largest_inputs(pns.Ticket([w, torch.ones(1, 300)], [torch.zeros(300), torch.zeros(1)]))[1]
    x = torch.sign(torch.relu(w).sum(0))  # a good corner
    assert float(torch.relu(w @ x).sum()) <= bound <= float(w.abs().sum())


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), eps=st.sampled_from([1e-3, 0.1, 1.0, 10.0]))
def test_lemma_1_holds_for_every_ticket(seed, eps):
    ticket = random_ticket(seed)
    assert largest_move(ticket, layer_errors(ticket, eps, norm="spectral"), seed) <= eps


@pytest.mark.parametrize(("task", "depth"), TICKETS)
def test_lemma_1_holds_for_the_planted_tickets_as_printed_too(task, depth):
    ticket, eps = ticket_of(task, depth), 0.1
    assert 0.2 * eps < largest_move(ticket, layer_errors(ticket, eps)) <= eps  # the perturbations are worth the name


@pytest.mark.parametrize("norm", ["max", "spectral"])
def test_the_largest_entry_is_no_operator_norm(norm):
    # by hand: all first weights eps_1 larger move the output by n eps_1 = sqrt(n) eps / (4 (1 + eps / 2))
    ticket, eps = all_ones(100), 0.1
    first, _ = layer_errors(ticket, eps, norm=norm)
    if norm == "max":
        assert 100 * first == pytest.approx(10 * eps / (4 * 1.05))
        assert largest_move(ticket, layer_errors(ticket, eps)) > 2.3 * eps
        assert largest_move(all_ones(10), layer_errors(all_ones(10), eps)) < eps  # small layers are safe
    else:
        assert largest_move(ticket, layer_errors(ticket, eps, norm=norm)) <= eps


def test_small_later_weights_need_the_cap_on_eps_l():
    # the product of later norms is near (eps / L)^2, so that as printed eps_1 is 15 and more than the weights
    ticket, eps = pns.Ticket([[[1e-3]]] * 3, [[0.0]] * 3), 0.1
    errors = layer_errors(ticket, eps)
    assert errors[0] > 10
    assert largest_move(ticket, errors) > 4 * eps
    capped = layer_errors(ticket, eps, norm="spectral")
    assert capped[0] == pytest.approx(eps / 3)
    assert largest_move(ticket, capped) <= eps


def test_where_the_assumption_of_theorem_2_holds():
    assert assumption_holds(ticket_of("relu", 4), 0.1) == [False] * 3  # weights 1
    assert assumption_holds(ticket_of("circle", 6), 0.1) == [False, False, True, False, False]  # the mirror: 1 / sqrt 2
    ticket = [([[0.9]], [0.0]), ([[0.5]], [-0.97])]
    assert assumption_holds(ticket, 0.1) == [True, True]
    assert assumption_holds(ticket, 0.5) == [False, False]


def test_a_ticket_may_hold_neurons_without_parameters_and_have_one_layer():
    ticket = [([[1.0], [0.0]], [0.0, 0.0]), ([[1.0, 0.0]], [0.0])]
    assert [t.n_parameters for t in layer_terms(ticket, 0.1)] == [(1, 0), (1,)]
    assert layer_errors([([[0.0]], [0.0])], 0.1) == pytest.approx([0.05])
    assert layer_errors([([[0.5, 0.25]], [0.0])], 0.1) == pytest.approx([0.1 / (math.sqrt(2) * 3)])


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "ticket: expected a Ticket", (3, 0.1)),
        (TypeError, r"ticket\[0\]: expected a \(weight, bias\) pair", ([1.0], 0.1)),
        (TypeError, "eps: expected a number", (ticket_of("relu", 3), "0.1")),
        (ValueError, "eps: expected a finite number > 0", (ticket_of("relu", 3), 0.0)),
        (ValueError, "eps: expected a finite number > 0", (ticket_of("relu", 3), math.nan)),
    ],
)
def test_wrong_calls(error, message, arguments):
    with pytest.raises(error, match=message):
        layer_errors(*arguments)
    with pytest.raises(ValueError, match="norm: expected one of max, spectral, got 'frobenius'"):
        layer_errors(ticket_of("relu", 3), 0.1, norm="frobenius")
