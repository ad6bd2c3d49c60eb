"""Random numbers: keyed by (seed, network) and purpose, never by what else is in the call."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pns_fast import rng

STREAMS = rng._STREAMS


def test_network_keys():
    assert rng.network_keys(7, 3) == [(7, 0), (7, 1), (7, 2)]
    assert rng.network_keys([7, 8, 7], 3) == [(7, 0), (8, 0), (7, 0)]
    assert rng.network_keys((np.int64(4),), 1) == [(4, 0)]
    assert rng.network_keys(np.int32(4), 2) == [(4, 0), (4, 1)]
    assert rng.network_keys(2**63 - 1, 1) == [(2**63 - 1, 0)]
    assert rng.network_keys(0, 0) == []
    # more networks do not change the first ones
    assert rng.network_keys(7, 100)[:3] == rng.network_keys(7, 3)


@pytest.mark.parametrize("seed", [-1, 2**63, [1, -2], [1, 2**63]])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match="seed"):
        rng.network_keys(seed, 2)


@pytest.mark.parametrize("seed", [[1], [1, 2, 3], []])
def test_one_seed_a_network(seed):
    with pytest.raises(ValueError, match="seed"):
        rng.network_keys(seed, 2)


@pytest.mark.parametrize("seed", [1.5, "12", None, True, {1, 2}, [1.5, 2], ["a", "b"], [True, False]])
def test_seed_of_another_type(seed):
    with pytest.raises(TypeError, match="seed"):
        rng.network_keys(seed, 2)


def draw(key, stream, n=8):
    return tuple(rng.generator(key, stream).integers(0, 2**63, n).tolist())


def test_equal_keys_repeat_and_every_part_of_the_key_matters():
    seeds = (0, 1, 2, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 3 * 2**32, 2**62)
    keys = list(itertools.product(seeds, (0, 1, 2, 3, 4), STREAMS))
    drawn = {}
    for seed, network, stream in keys:
        numbers = draw((seed, network), stream)
        assert numbers == draw((seed, network), stream)
        clash = drawn.setdefault(numbers, (seed, network, stream))
        assert clash == (seed, network, stream), f"{clash} and {(seed, network, stream)} share their numbers"


def test_streams_do_not_share_numbers():
    normal = np.stack([rng.generator((3, 1), s).standard_normal(20_000) for s in STREAMS])
    correlation = np.corrcoef(normal) - np.eye(len(STREAMS))
    assert abs(correlation).max() < 5 / 20_000**0.5
    neighbours = np.stack([rng.generator((3, i), "init").standard_normal(20_000) for i in range(6)])
    assert abs(np.corrcoef(neighbours) - np.eye(6)).max() < 5 / 20_000**0.5


def test_an_unknown_stream_is_refused():
    with pytest.raises(ValueError, match="unheard_of"):
        rng.generator((0, 0), "unheard_of")


def test_numbers_are_pinned():
    # Results are keyed by these numbers for ever: a change here changes every stored sweep
    assert STREAMS[:5] == ("init", "data", "random_pruner", "edge_popup_scores", "pruning_batch")
    assert isinstance(rng.generator((0, 0), "init").bit_generator, np.random.Philox)
