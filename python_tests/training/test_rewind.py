"""Where multishot goes back to after a round: theta_0, theta_k, or nowhere."""

import pytest
import torch

from pns_fast import Adam, Masks, init_population, multishot, prune, tasks, train
from pns_fast.pruners import pruning_batch, score, threshold
from pns_fast.training.multishot import round_seeds

WIDTHS, N = (2, 12, 9, 4), 3
SHORT = {"rounds": 3, "round_epochs": 2, "optimizer": Adam(lr=0.01)}
KINDS = [("init", 0), ("weights", 0), ("weights", 1), ("weights", 2), ("learning-rate", 0)]


def small(n=100, seed=0):
    return tasks.get("circle").sample(n=n, seed=seed)


def after(population, masks, data, epochs, seeds):
    return train(population, masks, data, epochs, optimizer=Adam(lr=0.01), seed=seeds).population


def start_of(population, data, **options):
    """The parameters that the last training starts from: a last training of no epochs ends there."""
    found = multishot(population, "magnitude", 0.2, data, epochs=0, **SHORT, **options)
    return found.result.population.flatten(), found


@pytest.mark.parametrize("options", [{}, {"rewind": "init"}, {"rewind": "weights", "rewind_epochs": 0}])
def test_init_goes_back_to_the_initial_parameters_bit_for_bit(options):
    population = init_population(WIDTHS, n=N)
    start, found = start_of(population, small(), **options)
    assert torch.equal(start, population.flatten())
    assert torch.equal(found.masks.flatten(), start_of(population, small())[1].masks.flatten())


@pytest.mark.parametrize("k", [1, 2])
def test_weights_goes_back_to_where_the_dense_training_was_after_k_epochs(k):
    population, data = init_population(WIDTHS, n=N), small()
    start, found = start_of(population, data, rewind="weights", rewind_epochs=k)
    rewound = after(population, None, data, k, round_seeds(0, N, 1))
    assert torch.equal(start, rewound.flatten())
    assert not torch.equal(start, population.flatten())

    masks, at = Masks.full(population), population  # round 1 is the dense training that theta_k is a part of
    for r in (1, 2, 3):
        trained = after(at, masks, data, 2, round_seeds(0, N, r))
        masks, at = prune(trained, "magnitude", 0.2 ** (r / 3), masks=masks), rewound
    assert torch.equal(found.masks.flatten(), masks.flatten())


def test_theta_k_lies_on_the_way_of_round_1():
    """Epochs of the same order: k epochs and the whole round share their first losses."""
    population, data, seeds = init_population(WIDTHS, n=N), small(), round_seeds(0, N, 1)
    one, two = (train(population, None, data, k, optimizer=Adam(lr=0.01), seed=seeds) for k in (1, 2))
    assert torch.equal(one.train_loss[:, 0], two.train_loss[:, 0])
    assert torch.equal(one.test_loss[:, 1], two.test_loss[:, 1])


def test_learning_rate_goes_on_from_the_trained_parameters():
    population, data = init_population(WIDTHS, n=N), small()
    start, found = start_of(population, data, rewind="learning-rate")
    masks, at = Masks.full(population), population
    for r in (1, 2, 3):
        before = at.flatten()
        at = after(at, masks, data, 2, round_seeds(0, N, r))
        pruned = ~masks.flatten()
        assert torch.equal(at.flatten()[pruned], before[pruned])  # stays at what it was pruned with
        masks = prune(at, "magnitude", 0.2 ** (r / 3), masks=masks)
    assert torch.equal(start, at.flatten())
    assert torch.equal(found.masks.flatten(), masks.flatten())


@pytest.mark.parametrize(("rewind", "k"), KINDS)
def test_strong_is_where_the_last_training_starts_and_pruned_stays_pruned(rewind, k):
    population, data = init_population(WIDTHS, n=N), small()
    options = {"rewind": rewind, "rewind_epochs": k}
    start, nothing = start_of(population, data, **options)
    found = multishot(population, "magnitude", 0.2, data, epochs=2, **SHORT, **options)
    assert torch.equal(found.strong_metric, nothing.strong_metric)
    output = nothing.result.population.forward(data.x_test, found.masks)
    assert torch.equal(found.strong_metric, (output.argmax(2) == data.y_test).double().mean(1))
    last = train(nothing.result.population, found.masks, data, 2, optimizer=Adam(lr=0.01))
    assert torch.equal(found.result.population.flatten(), last.population.flatten())
    pruned = ~found.masks.flatten()
    assert torch.equal(found.result.population.flatten()[pruned], start[pruned])


@pytest.mark.parametrize(("rewind", "k"), KINDS[2:])
def test_a_network_is_the_same_alone_and_in_company(rewind, k):
    jobs = [("snip", 0.1), ("force", 0.1), ("magnitude", 1.0), ("phew", 0.4)]
    population, data = init_population(WIDTHS, n=4, seed=[3, 4, 5, 6]), [small(seed=s) for s in range(4)]
    pruner, density = map(list, zip(*jobs, strict=True))
    options = {**SHORT, "epochs": 1, "rewind": rewind, "rewind_epochs": k}
    found = multishot(population, pruner, density, data, seed=[3, 4, 5, 6], **options)
    for i, job in enumerate(jobs):
        alone = multishot(population.select(i), *job, data[i], seed=3 + i, **options)
        assert torch.equal(alone.masks.flatten()[0], found.masks.flatten()[i])
        assert torch.equal(alone.result.population.flatten()[0], found.result.population.flatten()[i])
        assert torch.equal(alone.result.metric[0], found.result.metric[i])


@pytest.mark.parametrize(("rewind", "k"), KINDS)
def test_density_1_trains_as_long_as_the_others(rewind, k):
    population, data, reported = init_population(WIDTHS, n=N), small(), []
    found = multishot(
        *(population, "snip", [1.0, 1.0, 0.5], data),
        **{**SHORT, "epochs": 1, "rewind": rewind, "rewind_epochs": k},
        progress=lambda *counts: reported.append(counts),
    )
    rounds = {"learning-rate": N * 3 * 2}.get(rewind, 3 * 2)
    assert reported[-1] == (N * k + rounds + N, N * k + rounds + N)
    at, full = population, Masks.full(population)
    if rewind == "learning-rate":
        for r in (1, 2, 3):
            at = after(at, full, data, 2, round_seeds(0, N, r))
    elif k:
        at = after(at, full, data, k, round_seeds(0, N, 1))
    last = after(at, full, data, 1, 0).flatten()
    assert torch.equal(found.result.population.flatten()[:2], last[:2])
    assert found.masks.kept()[:2].tolist() == [full.kept()[0]] * 2


def test_force_revives_with_the_value_that_was_pruned():
    population, data = init_population(WIDTHS, n=N, seed=2), small()
    batch = pruning_batch([data] * N, "cross_entropy")
    masks, at, n_revived = Masks.full(population), population, 0
    for r in (1, 2, 3):
        at = after(at, masks, data, 2, round_seeds(0, N, r))
        found = threshold(score(at, "force", batch, masks=masks), None, WIDTHS, 0.05 ** (r / 3))
        n_revived += int((found.flatten() & ~masks.flatten()).sum())
        masks = found
    assert n_revived > 0
    result = multishot(population, "force", 0.05, data, epochs=0, rewind="learning-rate", **SHORT)
    assert torch.equal(result.masks.flatten(), masks.flatten())
    assert torch.equal(result.result.population.flatten(), at.flatten())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rewind": "theta"}, ValueError, "rewind: expected one of init, weights, learning-rate, got 'theta'"),
        ({"rewind": None}, ValueError, "rewind: expected one of"),
        ({"rewind_epochs": 1}, ValueError, "rewind_epochs: expected at most 0 for rewind 'init'"),
        ({"rewind": "learning-rate", "rewind_epochs": 1}, ValueError, "rewind_epochs: expected at most 0"),
        ({"rewind": "weights", "rewind_epochs": 3}, ValueError, "at most 2 for rewind 'weights' and 2 epochs a round"),
        ({"rewind": "weights", "rewind_epochs": -1}, ValueError, "rewind_epochs: expected at least 0, got -1"),
        ({"rewind": "weights", "rewind_epochs": 1.0}, TypeError, r"rewind_epochs: expected an int, got 1\.0"),
    ],
)
def test_wrong_calls(change, error, message):
    with pytest.raises(error, match=message):
        multishot(init_population(WIDTHS, n=N), "snip", 0.5, small(), epochs=0, **{**SHORT, **change})
