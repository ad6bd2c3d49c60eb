"""edge_popup(): counts, first scores, one step by hand, annealing, invariance, wrong calls."""

import itertools
import math

import pytest
import torch
from tolerances import TOLERANCES

from pns_fast import SGD, edge_popup, init_population, tasks
from pns_fast.training.edge_popup import first_scores

WIDTHS = (2, 12, 9, 4)
N = 3
PLAIN = SGD(lr=0.1, momentum=0.0, weight_decay=0.0)


def small(n=80, seed=0):
    return tasks.get("circle").sample(n=n, seed=seed)


def count(density, size):
    return math.ceil(density * size - 1e-9)


@pytest.mark.parametrize("anneal", [False, True])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01])
def test_keeps_exact_counts_of_each_layers_weights_and_biases(density, anneal):
    population = init_population(WIDTHS, n=N)
    result = edge_popup(population, small(), density, epochs=2, anneal=anneal)
    for w, b in zip(result.masks.weights, result.masks.biases, strict=True):
        assert w.flatten(1).sum(1).tolist() == [count(density, w[0].numel())] * N
        assert b.sum(1).tolist() == [count(density, b.shape[1])] * N
    assert torch.equal(result.population.flatten(), population.flatten())


def test_the_masks_are_the_top_of_the_scores():
    result = edge_popup(init_population(WIDTHS, n=N), small(), 0.3, epochs=2)
    start = 0
    for w, b in zip(result.masks.weights, result.masks.biases, strict=True):
        for mask in (w.flatten(1), b):
            scores = result.scores[:, start : start + mask.shape[1]].abs()
            start += mask.shape[1]
            for i in range(N):
                assert scores[i][mask[i]].min() >= scores[i][~mask[i]].max()
    assert start == result.scores.shape[1]


def test_first_scores_are_kaiming_uniform_and_zero():
    widths = (4, 200, 200, 3)
    scores = first_scores(init_population(widths, n=2), seed=3)
    start = 0
    for n_in, n_out in itertools.pairwise(widths):
        w, b = scores[:, start : start + n_in * n_out], scores[:, start + n_in * n_out :][:, :n_out]
        start += n_out * (n_in + 1)
        bound = 1 / math.sqrt(n_in)
        assert 0.97 * bound < w.abs().max() <= bound
        assert w.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert (b == 0).all()
    assert torch.equal(scores[:1], first_scores(init_population(widths), seed=3))
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("density", [0.4, 1.0])
def test_one_step_moves_all_scores_by_the_gradient_times_the_parameter(density):
    population, data = init_population(WIDTHS, n=N), small()
    result = edge_popup(population, data, density, epochs=1, optimizer=PLAIN, batch_size=len(data.x_train), seed=4)
    start = first_scores(population, seed=4)
    rtol, atol = TOLERANCES["train_16_steps"]
    for i in range(N):
        module, at = population.module(i), 0
        with torch.no_grad():
            for p in module.parameters():
                s = start[i, at : at + p.numel()].abs()
                kept = torch.zeros(p.numel())
                kept[s.argsort(descending=True, stable=True)[: count(density, p.numel())]] = 1
                p *= kept.reshape(p.shape)
                at += p.numel()
        torch.nn.functional.cross_entropy(module(data.x_train), data.y_train).backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
        sign = torch.where(start[i] < 0, -1.0, 1.0)
        expected = start[i] - 0.1 * gradient * population.flatten()[i] * sign
        torch.testing.assert_close(result.scores[i], expected, rtol=rtol, atol=atol)
    assert not torch.equal(result.scores, start)


def test_annealing_keeps_density_to_the_i_over_e_in_epoch_i():
    population, data = init_population(WIDTHS, n=N), small()
    annealed = edge_popup(population, data, 0.25, epochs=2, anneal=True, optimizer=PLAIN)
    first = edge_popup(population, data, 0.5, epochs=1, optimizer=PLAIN)
    assert torch.equal(annealed.test_loss[:, 0], first.test_loss[:, 0])
    assert torch.equal(annealed.train_loss[:, 0], first.train_loss[:, 0])
    assert torch.equal(annealed.test_loss[:, 1], first.test_loss[:, 1])
    assert not torch.equal(
        annealed.train_loss[:, 1], edge_popup(population, data, 0.5, 2, optimizer=PLAIN).train_loss[:, 1]
    )


def test_the_result_is_the_masked_network():
    population, data = init_population(WIDTHS, n=N), small()
    result = edge_popup(population, data, 0.5, epochs=2)
    output = population.forward(data.x_test, result.masks)
    for i in range(N):
        expected = torch.nn.functional.cross_entropy(output[i], data.y_test)
        assert result.test_loss[i, -1].item() == pytest.approx(expected.item(), rel=1e-4)
        assert result.metric[i, -1] == (output[i].argmax(1) == data.y_test).double().mean()


def test_the_default_follows_the_cosine():
    population, data = init_population(WIDTHS), small()
    sgd = SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine")
    default = edge_popup(population, data, 0.5, epochs=3)
    assert torch.equal(default.scores, edge_popup(population, data, 0.5, epochs=3, optimizer=sgd).scores)


def test_finds_something_on_circle():
    population = init_population((2, 100, 100, 4), n=2)
    result = edge_popup(population, tasks.get("circle").sample(n=4000), 0.5, epochs=5)
    assert (result.metric[:, -1] > 0.6).all()


def test_a_network_is_the_same_alone_in_a_batch_and_with_any_threads():
    population = init_population(WIDTHS, n=N, seed=[7, 8, 9])
    data = [small(seed=s) for s in range(N)]
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            result = edge_popup(population, data, 0.3, epochs=2, seed=[7, 8, 9])
            for i in range(N):
                alone = edge_popup(population.select(i), data[i], 0.3, epochs=2, seed=7 + i)
                assert torch.equal(alone.scores[0], result.scores[i])
                assert torch.equal(alone.masks.flatten()[0], result.masks.flatten()[i])
                assert torch.equal(alone.train_loss[0], result.train_loss[i])
                assert torch.equal(alone.metric[0], result.metric[i])
    finally:
        torch.set_num_threads(threads)


def test_a_diverging_network_is_reported_and_keeps_its_density():
    population = init_population(WIDTHS, n=N)
    healthy = edge_popup(population, small(), 0.3, epochs=3, anneal=True)
    for w in population.weights:
        w[1] *= 1e18
    sick = edge_popup(population, small(), 0.3, epochs=3, anneal=True)
    assert sick.diverged.tolist() == [False, True, False]
    assert torch.equal(sick.masks.kept(), healthy.masks.kept())
    for i in (0, 2):
        assert torch.equal(sick.scores[i], healthy.scores[i])


def test_scores_that_diverged_are_reported_although_the_losses_are_finite():
    result = edge_popup(init_population(WIDTHS, n=N), small(), 0.3, epochs=2, optimizer=SGD(lr=1e39))
    assert not result.scores.isfinite().all(1).any()
    assert result.diverged.tolist() == [True] * N


def test_no_epochs_gives_the_mask_of_the_first_scores():
    population = init_population(WIDTHS, n=N)
    result = edge_popup(population, small(), 0.5, epochs=0, seed=2)
    assert torch.equal(result.scores, first_scores(population, seed=2))
    assert result.masks.weights[0].flatten(1).sum(1).tolist() == [12] * N
    assert result.metric.shape == (N, 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"population": None}, TypeError, "population"),
        ({"data": None}, TypeError, "data"),
        ({"data": tasks.get("helix").sample(n=50)}, ValueError, "x_train"),
        ({"density": 0.0}, ValueError, "density"),
        ({"density": math.nan}, ValueError, "density"),
        ({"anneal": "yes"}, TypeError, "anneal"),
        ({"epochs": -1}, ValueError, "epochs"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"optimizer": 0.1}, TypeError, "optimizer"),
        ({"seed": [0]}, ValueError, "seed"),
        ({"loss": "mse"}, TypeError, "y_train"),
    ],
)
def test_wrong_calls(change, error, message):
    call = {"population": init_population(WIDTHS, n=N), "data": small(), "density": 0.5, "epochs": 1}
    with pytest.raises(error, match=message):
        edge_popup(**{**call, **change})
