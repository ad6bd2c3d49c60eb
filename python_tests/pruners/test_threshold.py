"""Thresholds: exact counts, ties, scopes, and what is pruned stays pruned."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pns_fast import Masks
from pns_fast.pruners import threshold

WIDTHS = (3, 5, 2)
SIZES = (5 * 4, 2 * 6)
P = sum(SIZES)


def slow_top(scores, keep):
    """The indices of the ``keep`` largest of a list, ties to the lowest index."""
    return set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep])


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(0, 5), min_size=2 * P, max_size=2 * P),
    density=st.floats(1e-6, 1.0),
    scope=st.sampled_from(["global", "layer"]),
)
def test_keeps_exactly_the_largest_with_ties_to_the_lowest_index(scores, density, scope):
    scores = torch.tensor(scores, dtype=torch.float32).reshape(2, P)
    masks = threshold(scores, None, WIDTHS, density, scope).flatten()
    for i in range(2):
        start = 0
        for size in (P,) if scope == "global" else SIZES:
            expected = slow_top(scores[i, start : start + size].tolist(), math.ceil(density * size - 1e-9))
            assert set(masks[i, start : start + size].nonzero().flatten().tolist()) == expected
            start += size


@settings(max_examples=60, deadline=None)
@given(data=st.data(), scope=st.sampled_from(["global", "layer"]))
def test_pruned_before_stays_pruned(data, scope):
    bools = data.draw(st.lists(st.booleans(), min_size=P, max_size=P))
    density = data.draw(st.floats(0.01, 1.0))
    earlier = Masks.from_flat(torch.tensor([bools]), WIDTHS)
    scores = torch.randn(1, P, generator=torch.Generator().manual_seed(0))
    masks = threshold(scores, earlier, WIDTHS, density, scope).flatten()
    assert not (masks & ~earlier.flatten()).any()
    start = 0
    for size in (P,) if scope == "global" else SIZES:
        kept_before = sum(bools[start : start + size])
        kept = int(masks[0, start : start + size].sum())
        assert kept == min(math.ceil(density * size - 1e-9), kept_before)
        start += size


def test_a_density_above_what_is_left_keeps_what_is_left():
    earlier = Masks.from_flat((torch.arange(P) % 3 == 0)[None], WIDTHS)
    scores = torch.full((1, P), -torch.inf)
    assert torch.equal(threshold(scores, earlier, WIDTHS, 0.9).flatten(), earlier.flatten())


def test_a_kept_score_of_minus_infinity_ranks_above_the_pruned():
    earlier = Masks.from_flat((torch.arange(P) >= P - 2)[None], WIDTHS)
    masks = threshold(torch.full((1, P), -torch.inf), earlier, WIDTHS, 2 / P)
    assert masks.kept().tolist() == [2]


def test_plus_and_minus_zero_tie():
    scores = torch.zeros(1, P)
    scores[0, 0] = -0.0
    assert threshold(scores, None, WIDTHS, 1 / P).flatten()[0].nonzero().tolist() == [[0]]


def test_nan_is_refused_only_where_it_counts():
    scores = torch.zeros(1, P)
    scores[0, 4] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        threshold(scores, None, WIDTHS, 0.5)
    earlier = Masks.from_flat((torch.arange(P) != 4)[None], WIDTHS)
    assert threshold(scores, earlier, WIDTHS, 0.5).kept().tolist() == [16]


BAD = [
    ({"scores": [0.0] * P}, TypeError, "scores"),
    ({"scores": torch.zeros(1, P, dtype=torch.int64)}, TypeError, "scores"),
    ({"scores": torch.zeros(P)}, ValueError, "scores"),
    ({"scores": torch.zeros(1, P - 1)}, ValueError, "scores"),
    ({"widths": (3, 5)}, ValueError, "scores"),
    ({"masks": torch.ones(1, P, dtype=torch.bool)}, TypeError, "masks"),
    ({"masks": Masks.from_flat(torch.ones(2, P, dtype=torch.bool), WIDTHS)}, ValueError, "masks"),
    ({"density": 0.0}, ValueError, "density"),
    ({"density": math.nan}, ValueError, "density"),
    ({"density": True}, TypeError, "density"),
    ({"scope": "channel"}, ValueError, "global, layer, erk"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_wrong_calls(change, error, message):
    call = {"scores": torch.zeros(1, P), "masks": None, "widths": WIDTHS, "density": 0.5, "scope": "global"}
    with pytest.raises(error, match=message):
        threshold(**{**call, **change})
