"""pns.existence: probabilities known in closed form or by another generator, Theorem 2's bound, shapes, wrong calls."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import pns_fast as pns
from pns_fast.existence import match_bound, search


def wedge(theta, eps):
    """P(distance <= eps) for k = 2: directions within asin(eps / |theta|) of theta's, out of the square [-1, 1]^2.

    For a wedge that leaves the square through its right side only: the area of a triangle of height 1, over 4.
    """
    angle, half = math.atan2(theta[1], theta[0]), math.asin(eps / math.hypot(*theta))
    assert -math.pi / 4 <= angle - half <= angle + half <= math.pi / 4
    return (math.tan(angle + half) - math.tan(angle - half)) / 2 / 4


@pytest.mark.parametrize("eps", [0.1, 1e-3, 1e-6])
def test_the_match_probability_of_two_parameters(set_threads, eps):
    set_threads(2)
    theta = torch.tensor([0.5, 0.125])
    found = search(theta, 20_000_000, seed=1, eps=eps)
    p = wedge(theta.tolist(), eps)
    error = math.sqrt(p * (1 - p) / found.n_candidates)
    assert abs(found.match_probability.item() - p) < 4 * error
    assert found.match_error.item() == pytest.approx(error, rel=0.5)


@pytest.mark.parametrize("eps", [0.1, 1e-4])
def test_the_match_probability_of_normal_parameters(set_threads, eps):
    # all directions alike: of k = 2 an arc of 2 asin(eps / |theta|), of k = 3 a cap of height 1 - cos
    set_threads(2)
    n = 20_000_000
    for theta in ([0.5, 0.125], [0.3, -0.8, 0.4]):
        half = math.asin(eps / math.hypot(*theta))
        p = half / math.pi if len(theta) == 2 else math.sin(half / 2) ** 2
        found = search(torch.tensor(theta), n, seed=1, init="he_scaled", eps=eps)
        assert abs(found.match_probability.item() - p) < 4 * math.sqrt(p * (1 - p) / n) + 1 / n
        assert found.match_bound.item() == pytest.approx((eps / math.sqrt(len(theta)) / 2) ** len(theta))


@pytest.mark.parametrize("k", [3, 5])
def test_the_match_probability_against_another_generator(k):
    theta = torch.linspace(-0.6, 0.7, k, dtype=torch.float64)
    if k % 2:
        theta[k // 2] = 0.4
    eps, n = 0.3, 1_000_000
    m = np.random.default_rng(0).uniform(-1, 1, (n, k))
    lam = m @ theta.numpy() / (m * m).sum(1)
    distance = np.linalg.norm(theta.numpy() - lam[:, None] * m, axis=1)
    p = float(((lam > 0) & (distance <= eps)).mean())
    found = search(theta, 4 * n, seed=0, eps=eps)
    assert abs(found.match_probability.item() - p) < 4 * math.sqrt(p * (1 - p) * (1 / n + 1 / (4 * n)))


def test_existence_agrees_with_one_minus_one_minus_p_to_the_n():
    # many seeds: the part of them that hold a match, and by their best distance as well as by the count
    theta, eps, n, n_seeds = torch.tensor([0.5, 0.125]), 2e-3, 700, 3000
    searches = [search(theta, n, seed=seed, eps=eps) for seed in range(n_seeds)]
    has_match = sum(found.n_matches.item() > 0 for found in searches)
    assert has_match == sum(found.distance.item() <= eps for found in searches)
    expected = -math.expm1(n * math.log1p(-wedge(theta.tolist(), eps)))
    assert 0.2 < expected < 0.8
    assert abs(has_match / n_seeds - expected) < 4 * math.sqrt(expected * (1 - expected) / n_seeds)


def test_theorem_2_bounds_what_is_found():
    g = torch.Generator().manual_seed(0)
    for k in (1, 2, 3, 4):
        theta = (torch.rand(6, k, generator=g) - 0.5) * 1.4
        for eps in (0.05, 0.3):
            found = search(theta, 300_000, seed=k, eps=eps)
            assert bool((found.match_probability + 4 * found.match_error >= found.match_bound).all())
            expected = torch.full((6,), (eps / math.sqrt(k)) ** k, dtype=torch.float64)
            expected[(theta.abs() > 1 - eps / math.sqrt(k)).any(1)] = 0
            torch.testing.assert_close(found.match_bound, expected, rtol=1e-12, atol=0)


def test_the_layers_bound():
    # Theorem 2's factor of one layer, with numbers: (1 - (0.3 / sqrt 2)^2)^50 = 0.955^50
    theta = torch.tensor([[0.5, 0.5], [-0.25, 0.75]])
    found = search(theta, 50, seed=0, eps=0.3)
    torch.testing.assert_close(found.existence_bound, torch.full((2,), 1 - 0.955**50, dtype=torch.float64))
    assert found.layer_bound == pytest.approx(1 - 2 * 0.955**50)
    assert search(theta, 1, seed=0, eps=0.3).layer_bound == 0
    # the theorem says nothing where a parameter lies at the border
    at_border = search(torch.tensor([0.99, 0.5]), 50, seed=0, eps=0.3)
    assert (at_border.match_bound.item(), at_border.existence_bound.item(), at_border.layer_bound) == (0, 0, 0)


def test_one_parameter_matches_any_of_its_sign():
    found = search(torch.tensor([[-0.3], [0.9]]), 100_000, seed=2, eps=1e-9)
    assert found.distance.tolist() == [0, 0]
    assert found.n_matches.sum().item() == 100_000
    assert bool((found.index < 30).all())


def test_shapes_and_what_no_eps_leaves_out():
    theta = torch.full((2, 3, 4), 0.4)
    found = search(theta, 5000, seed=0)
    assert found.index.shape == found.scale.shape == found.distance.shape == (2, 3)
    assert found.candidate.shape == (2, 3, 4)
    assert found.n_matches is found.match_probability is found.match_bound is found.layer_bound is None
    one = search(theta[0, 0], 5000, seed=0, eps=0.2)
    assert one.index.shape == one.n_matches.shape == one.match_bound.shape == ()
    assert torch.equal(one.index, found.index[1, 2])
    assert [f.name for f in dataclasses.fields(one)][:4] == ["index", "scale", "distance", "candidate"]


def test_a_search_can_be_split():
    theta = torch.tensor([[0.3, 0.8, -0.2], [0.1, 0.1, 0.1]])
    whole = search(theta, 100_000, seed=3, eps=0.1)
    parts = [search(theta, 50_000, seed=3, eps=0.1, first=first) for first in (0, 50_000)]
    assert torch.equal(sum(part.n_matches for part in parts), whole.n_matches)
    distances = torch.stack([part.distance for part in parts])
    assert torch.equal(distances.min(0).values, whole.distance)
    assert torch.equal(torch.stack([part.index for part in parts]).gather(0, distances.argmin(0)[None])[0], whole.index)


def test_the_best_is_that_of_best_match(simd_level):
    from pns_fast.reference.existence_search import draw_candidates

    theta = torch.tensor([[0.3, 0.8, -0.2]], dtype=torch.float64)
    candidates = torch.from_numpy(draw_candidates(4, np.arange(10_000), 3))
    match = pns.ops.best_match(theta, theta != 0, candidates)
    found = search(theta, 10_000, seed=4)
    assert found.index.item() == match.index.item()
    torch.testing.assert_close(found.distance, match.distance, rtol=1e-12, atol=0)


THETA = torch.tensor([0.5, -0.2])
WRONG_CALLS = {
    "theta no tensor": (TypeError, "theta", lambda: search([0.5], 10, 0)),
    "theta a number": (ValueError, "theta", lambda: search(torch.tensor(0.5), 10, 0)),
    "theta empty": (ValueError, "theta", lambda: search(torch.zeros(0, 3), 10, 0)),
    "theta zero": (ValueError, "theta", lambda: search(torch.tensor([0.5, 0.0]), 10, 0)),
    "theta complex": (TypeError, "theta", lambda: search(THETA + 0j, 10, 0)),
    "n_candidates": (ValueError, "n_candidates", lambda: search(THETA, 0, 0)),
    "n_candidates too many": (ValueError, "n_candidates", lambda: search(THETA, 2**41, 0)),
    "seed": (TypeError, "seed", lambda: search(THETA, 10, None)),
    "init he": (ValueError, "init.*he_scaled", lambda: search(THETA, 10, 0, "he")),
    "bound init": (ValueError, "init", lambda: match_bound(THETA, 0.1, "he")),
    "init unknown": (ValueError, "init", lambda: search(THETA, 10, 0, init=3)),
    "eps": (ValueError, "eps", lambda: search(THETA, 10, 0, eps=0)),
    "eps text": (TypeError, "eps", lambda: search(THETA, 10, 0, eps="a")),
    "first": (TypeError, "first", lambda: search(THETA, 10, 0, first=1.5)),
    "progress": (TypeError, "progress", lambda: search(THETA, 10, 0, progress=1)),
    "bound eps": (ValueError, "eps", lambda: match_bound(THETA, -1)),
    "bound theta integers": (TypeError, "theta", lambda: match_bound(THETA.long(), 0.1)),
    "bound theta": (TypeError, "theta", lambda: match_bound(0.5, 0.1)),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_wrong_calls(call):
    error, message, wrong = WRONG_CALLS[call]
    with pytest.raises(error, match=message):
        wrong()
