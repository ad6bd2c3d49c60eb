"""Parts of a sweep: all of it, each cell once, what shares a mother together."""

import random

import pytest

from pns_fast import sweeps
from pns_fast.sweeps.paper import FIGURES
from pns_fast.sweeps.parts import parts

CELLS = [cell for name in ("fig3", "fig10", "fig11", "fig12") for cell in FIGURES[name].cells()]


def mothers(cells):
    return {(c.mode, c.task, c.depth, c.width, c.noise, c.scope, c.rounds, c.seed) for c in cells}


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_shards_are_disjoint_all_of_it_and_balanced(n):
    shards = [sweeps.shard(CELLS, k, n) for k in range(1, n + 1)]
    assert sorted(c.key for s in shards for c in s) == sorted(c.key for c in CELLS)
    counts = [len(mothers(s)) for s in shards]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == len(mothers(CELLS))  # none is in two
    for kind in {m[:-1] for m in mothers(CELLS)}:  # so the slow ones are dealt out as evenly as the fast ones
        of_kind = [sum(m[:-1] == kind for m in mothers(s)) for s in shards]
        assert max(of_kind) - min(of_kind) <= 1


def test_a_shard_does_not_depend_on_the_order_and_keeps_it():
    shuffled = random.Random(0).sample(CELLS, len(CELLS))
    own = sweeps.shard(CELLS, 2, 5)
    assert set(sweeps.shard(shuffled, 2, 5)) == set(own)
    assert own == [c for c in CELLS if c in set(own)]


def test_more_shards_than_mothers_leave_some_empty():
    cells = sweeps.expand("singleshot", ["relu"], seeds=range(2))
    assert [len(sweeps.shard(cells, k, 3)) for k in (1, 2, 3)] == [25, 25, 0]


@pytest.mark.parametrize(("k", "n", "message"), [(0, 4, "k: expected an"), (5, 4, "k: expected 1 to 4"), (1, 0, "n: ")])
def test_a_shard_that_is_none(k, n, message):
    with pytest.raises(ValueError, match=message):
        sweeps.shard(CELLS, k, n)


@pytest.mark.parametrize(("size", "counts"), [(1, [8] * 5), (8, [8] * 5), (23, [16, 16, 8]), (1000, [40])])
def test_a_part_has_whole_seeds(size, counts):
    cells = sweeps.expand("singleshot", ["relu"], ["snip", "random"], ["ticket", 0.1, 0.5, 1], range(5))
    found = list(parts(cells, size))
    assert [len(p) for p in found] == counts
    assert sorted(c.key for p in found for c in p) == sorted(c.key for c in cells)
