"""prune(): counts, rounds, schedules, batch invariance, and wrong calls."""

import math

import pytest
import torch

from pns_fast import Masks, init_population, pruners
from pns_fast.pruners import names, prune, register, round_density, score, threshold
from pns_fast.pruners.registry import unregister

PAPER = ["random", "magnitude", "snip", "grasp", "synflow"]
NAMES = [*PAPER, "force", "phew"]
NESTED = [*PAPER, "phew"]
WIDTHS = (2, 20, 13, 4)
P = 2 * 20 + 20 + 20 * 13 + 13 + 13 * 4 + 4
N = 5


def make_batch(samples=40, n=N, loss="cross_entropy"):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, samples, 2, generator=g)
    y = torch.randint(4, (n, samples), generator=g) if loss == "cross_entropy" else x.repeat(1, 1, 2).sin()
    return x, y


def test_the_papers_come_first():
    assert names() == NAMES
    assert list(pruners.PAPER) == PAPER


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01, 1e-9])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_exactly_the_count(name, density, scope):
    masks = prune(init_population(WIDTHS, n=N), name, density, make_batch(), scope=scope)
    if scope != "layer":
        assert masks.kept().tolist() == [math.ceil(density * P - 1e-9)] * N
    else:
        for w, b in zip(masks.weights, masks.biases, strict=True):
            size = w[0].numel() + b[0].numel()
            kept = w.flatten(1).sum(1) + b.sum(1)
            assert kept.tolist() == [math.ceil(density * size - 1e-9)] * N


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_pruned_alike_alone_in_a_batch_and_with_any_threads(name, loss):
    population, (x, y) = init_population(WIDTHS, n=N, seed=4), make_batch(loss=loss)
    seeds = [11, 12, 13, 14, 15]
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            scores = score(population, name, (x, y), loss, seeds)
            masks = prune(population, name, 0.1, (x, y), loss, rounds=3, seed=seeds)
            if n_threads == 1:
                first = scores, masks.flatten()
            assert torch.equal(scores, first[0])
            assert torch.equal(masks.flatten(), first[1])
            for i in range(N):
                alone, batch = population.select(i), (x[i], y[i])
                assert torch.equal(score(alone, name, batch, loss, seeds[i])[0], scores[i])
                mask = prune(alone, name, 0.1, batch, loss, rounds=3, seed=seeds[i])
                assert torch.equal(mask.flatten()[0], masks.flatten()[i])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_one_batch_for_all_is_the_same_batch_for_each(name):
    population, (x, y) = init_population(WIDTHS, n=N), make_batch()
    shared = prune(population, name, 0.2, (x[0], y[0]))
    each = prune(population, name, 0.2, (x[:1].repeat(N, 1, 1), y[:1].repeat(N, 1)))
    assert torch.equal(shared.flatten(), each.flatten())


@pytest.mark.parametrize("name", NESTED)
def test_rounds_are_score_and_threshold_in_turn(name):
    population, batch = init_population(WIDTHS, n=N), make_batch()
    masks = None
    for density in (0.1 ** (1 / 3), 0.1 ** (2 / 3), 0.1):
        nested = threshold(score(population, name, batch, masks=masks), masks, WIDTHS, density)
        assert masks is None or not (nested.flatten() & ~masks.flatten()).any()
        masks = nested
    assert torch.equal(prune(population, name, 0.1, batch, rounds=3).flatten(), masks.flatten())


@pytest.mark.parametrize("name", ["random", "magnitude"])
def test_rounds_do_not_matter_where_scores_do_not_change(name):
    population = init_population(WIDTHS, n=N)
    one = prune(population, name, 0.05)
    assert torch.equal(prune(population, name, 0.05, rounds=7, schedule="linear").flatten(), one.flatten())


def test_synflow_in_a_hundred_rounds_avoids_the_collapse_of_one():
    """Tanaka et al. 2020, Theorem 3: iterative SynFlow removes no layer before it must."""
    population = init_population((2, 100, 100, 100, 4), n=N)
    assert prune(population, "synflow", 0.005).collapsed().any()
    assert not prune(population, "synflow", 0.005, rounds=100).collapsed().any()


def test_schedules():
    assert [round_density(0.001, r, 3, "exponential") for r in (1, 2, 3)] == pytest.approx([0.1, 0.01, 0.001])
    assert [round_density(0.1, r, 3, "linear") for r in (1, 2, 3)] == pytest.approx([0.7, 0.4, 0.1])
    for schedule in ("exponential", "linear"):
        assert round_density(0.3, 7, 7, schedule) == 0.3


def test_masks_given_are_never_revived_and_not_changed():
    population = init_population(WIDTHS, n=N)
    earlier = prune(population, "random", 0.3)
    before = earlier.flatten()
    for name in NAMES:
        masks = prune(population, name, 0.5, make_batch(), masks=earlier).flatten()
        assert torch.equal(masks, before)
        masks = prune(population, name, 0.2, make_batch(), masks=earlier).flatten()
        assert not (masks & ~before).any()
        assert masks.sum(1).tolist() == [math.ceil(0.2 * P)] * N
    assert torch.equal(earlier.flatten(), before)


def test_a_collapsed_network_can_be_scored_again():
    population = init_population(WIDTHS, n=N)
    collapsed = Masks.full(population)
    collapsed.weights[1][:] = False
    for name in NAMES:
        masks = prune(population, name, 0.05, make_batch(), masks=collapsed, rounds=2)
        assert masks.kept().tolist() == [math.ceil(0.05 * P)] * N
        assert not masks.weights[1].any()


def test_a_new_pruner_is_one_function():
    @register("smallest")
    def smallest(problem):
        return [-p.abs() for p in problem.parameters]

    try:
        assert names()[-1] == "smallest"
        population = init_population(WIDTHS, n=N)
        flat = population.flatten().abs()
        kept = prune(population, "smallest", 0.5).flatten()
        assert all(flat[i][kept[i]].max() <= flat[i][~kept[i]].min() for i in range(N))
        with pytest.raises(ValueError, match="smallest"):
            register("smallest")
        with pytest.raises(TypeError, match="revives: expected a bool, got 1"):
            register("another", revives=1)
    finally:
        unregister("smallest")
    assert names() == NAMES


@pytest.mark.parametrize("ranks", [lambda p: p.flatten(1).argsort(1).view_as(p), lambda p: p > 0])
def test_scores_may_be_whole_numbers(ranks):
    population = init_population(WIDTHS, n=N)
    found = []
    for kind in ("whole", "float"):
        register(kind)(
            lambda problem, kind=kind: [ranks(p) * (1 if kind == "whole" else 1.0) for p in problem.parameters]
        )
        try:
            found.append(prune(population, kind, 0.3, rounds=2).flatten())
        finally:
            unregister(kind)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("scores", "error", "message"),
    [
        (lambda problem: problem.parameters[:-1], ValueError, "wrong: expected scores of shapes"),
        (lambda problem: None, TypeError, "wrong: expected scores as a list of tensors, .* got NoneType"),
        (lambda problem: (p for p in problem.parameters), TypeError, "wrong: expected scores as a list of tensors"),
        (lambda problem: [p.tolist() for p in problem.parameters], TypeError, "wrong: expected scores as a list of t"),
    ],
)
def test_a_pruner_with_wrong_scores_is_named(scores, error, message):
    register("wrong")(scores)
    try:
        with pytest.raises(error, match=message):
            prune(init_population(WIDTHS), "wrong", 0.5)
    finally:
        unregister("wrong")


X, Y = make_batch()
NAN_X = X.clone()
NAN_X[0, 0, 0] = math.nan
BAD = [
    ({"population": init_population(WIDTHS).module(0)}, TypeError, "population"),
    ({"name": "magnitud"}, ValueError, "random, magnitude, snip, grasp, synflow, force, phew, got 'magnitud'"),
    ({"name": 3}, TypeError, "name"),
    ({"density": 0}, ValueError, "density"),
    ({"density": 1.5}, ValueError, "density"),
    ({"density": -0.1}, ValueError, "density"),
    ({"density": math.nan}, ValueError, "density"),
    ({"density": "0.1"}, TypeError, "density"),
    ({"density": True}, TypeError, "density"),
    ({"scope": "local"}, ValueError, "scope: expected one of global, layer, erk, got 'local'"),
    ({"schedule": "cosine"}, ValueError, "schedule: expected one of exponential, linear, got 'cosine'"),
    ({"loss": "nll"}, ValueError, "loss: expected one of cross_entropy, mse, got 'nll'"),
    ({"rounds": 0}, ValueError, "rounds"),
    ({"rounds": 1.5}, TypeError, "rounds"),
    ({"batch": None}, ValueError, "batch"),
    ({"batch": X}, TypeError, "batch"),
    ({"batch": (X.long(), Y)}, TypeError, "batch x"),
    ({"batch": (NAN_X, Y)}, ValueError, "batch x: expected finite"),
    ({"batch": (X[..., :1], Y)}, ValueError, "batch x"),
    ({"batch": (X[:2], Y[:2])}, ValueError, "batch x"),
    ({"batch": (X[:, :0], Y[:, :0])}, ValueError, "batch x"),
    ({"batch": (X[None], Y)}, ValueError, "batch x"),
    ({"batch": (X, Y[:, :-1])}, ValueError, "batch y"),
    ({"batch": (X, Y[:2])}, ValueError, "batch y"),
    ({"batch": (X, Y.float())}, TypeError, "batch y: loss 'cross_entropy' expects int64"),
    ({"batch": (X, Y.int())}, TypeError, "batch y"),
    ({"batch": (X, Y + 1)}, ValueError, r"batch y: expected labels in \[0, 4\), got 1 to 4"),
    ({"batch": (X, Y - 1)}, ValueError, "batch y"),
    ({"batch": (X, Y), "loss": "mse"}, TypeError, "batch y: loss 'mse' expects floating point"),
    ({"batch": (X, X), "loss": "mse"}, ValueError, "batch y"),
    ({"batch": (X, Y.tolist())}, TypeError, "batch y"),
    ({"masks": torch.ones(N, P, dtype=torch.bool)}, TypeError, "masks"),
    ({"masks": Masks.full(init_population(WIDTHS, n=N - 1))}, ValueError, "masks"),
    ({"masks": Masks.full(init_population((2, 20, 14, 4), n=N))}, ValueError, "masks"),
    ({"seed": -1}, ValueError, "seed"),
    ({"seed": [1, 2]}, ValueError, "seed"),
    ({"seed": 0.5}, TypeError, "seed"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_wrong_calls(change, error, message):
    call = {"population": init_population(WIDTHS, n=N), "name": "snip", "density": 0.5, "batch": (X, Y)}
    with pytest.raises(error, match=message):
        prune(**{**call, **change})
