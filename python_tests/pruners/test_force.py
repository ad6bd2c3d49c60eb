"""FORCE: gradients of all parameters at the pruned network, and what a round pruned may come back."""

import math

import pytest
import torch
from pruners.test_scores import WIDTHS, assert_scores, make_batch, population64, random_masks, reference_loss

from pns_fast import init_population, prune
from pns_fast.pruners import register, round_density, score, threshold
from pns_fast.pruners.registry import unregister

N, P = 3, 7 * 3 + 5 * 8 + 4 * 6


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_is_the_gradient_at_the_pruned_network_times_the_unpruned_value(loss):
    population, (x, y) = population64(), make_batch(loss)
    masks = random_masks(population)
    scores = score(population, "force", (x, y), loss, masks=masks)
    for i in range(N):
        theta, kept = population.flatten()[i], masks.flatten()[i]
        pruned = (theta * kept).requires_grad_()
        (gradient,) = torch.autograd.grad(reference_loss(WIDTHS, pruned, x[i], y[i], loss), pruned)
        assert_scores(scores[i], (gradient * theta).abs(), torch.ones(P, dtype=torch.bool))
    assert (scores[~masks.flatten()] > 0).any()


def test_in_one_round_it_is_snip():
    population, batch = init_population((2, 30, 30, 4), n=N), make_batch("cross_entropy")
    batch = batch[0].float(), batch[1]
    assert torch.equal(score(population, "force", batch), score(population, "snip", batch))
    masks = [prune(population, name, 0.1, batch).flatten() for name in ("force", "snip")]
    assert torch.equal(*masks)


def test_rounds_are_score_and_threshold_of_everything():
    population, batch = init_population((2, 30, 30, 4), n=N, seed=1), make_batch("cross_entropy")
    batch, masks, n_revived = (batch[0].float(), batch[1]), None, 0
    for r in range(1, 6):
        density = round_density(0.05, r, 5, "exponential")
        scores = score(population, "force", batch, masks=masks)
        found = threshold(scores, None, population.widths, density)
        assert found.kept().tolist() == [math.ceil(density * 1144 - 1e-9)] * N
        n_revived += 0 if masks is None else int((found.flatten() & ~masks.flatten()).sum())
        masks = found
    assert n_revived > 0
    assert torch.equal(prune(population, "force", 0.05, batch, rounds=5).flatten(), masks.flatten())
    snip = prune(population, "snip", 0.05, batch, rounds=5)
    assert not torch.equal(snip.flatten(), masks.flatten())


def test_masks_given_are_the_most_that_comes_back():
    population, batch = init_population((2, 30, 30, 4), n=N), make_batch("cross_entropy")
    batch, earlier = (batch[0].float(), batch[1]), prune(population, "random", 0.4)
    masks = prune(population, "force", 0.1, batch, rounds=4, masks=earlier)
    assert not (masks.flatten() & ~earlier.flatten()).any()
    assert masks.kept().tolist() == [math.ceil(0.1 * 1144)] * N
    again = prune(population, "force", 0.9, batch, rounds=2, masks=earlier)
    assert torch.equal(again.flatten(), earlier.flatten())


def test_a_score_that_is_not_finite_counts_only_where_it_may_be_kept():
    population = init_population((2, 8, 4), n=2)
    name = "one_infinite"

    @register(name, revives=True)
    def one_infinite(problem):
        scores = [p.abs() for p in problem.unmasked]
        scores[0][1, 0, 0] = torch.inf
        return scores

    try:
        with pytest.raises(ValueError, match=r"one_infinite: .* networks \[1\]"):
            prune(population, name, 0.5)
        masks = prune(population, "magnitude", 1.0)
        masks.weights[0][1, 0, 0] = False
        assert prune(population, name, 0.5, rounds=2, masks=masks).kept().tolist() == [30, 30]
    finally:
        unregister(name)
