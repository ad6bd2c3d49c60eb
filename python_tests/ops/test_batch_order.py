"""batch_order: a permutation for every n, its twin's numbers, roughly uniform, keyed by seed, network and epoch."""

from __future__ import annotations

import pytest
import torch

from pns_fast import ops, reference


@pytest.mark.parametrize("sizes", [range(1, 71), (255, 256, 257, 1023, 9000), (65_537,), (100_003,)], ids=str)
def test_a_permutation_and_the_twins(simd_level, sizes):
    for n in sizes:
        for key, epoch in (((0, 0), 0), ((5, 3), 7), ((2**63 - 1, 2**32 - 1), 2**31)):
            order = ops.batch_order(n, key, epoch)
            assert order.dtype == torch.int64
            assert torch.equal(order.sort().values, torch.arange(n))
            assert torch.equal(order, torch.from_numpy(reference.batch_order(n, key, epoch)))


def test_every_part_of_the_key_matters():
    keys = [((s, i), e) for s in (0, 1, 2**32, 2**62) for i in (0, 1, 17) for e in (0, 1, 50)]
    orders = {tuple(ops.batch_order(50, key, epoch).tolist()) for key, epoch in keys}
    assert len(orders) == len(keys)


@pytest.mark.parametrize("n", [5, 16, 17, 100])
def test_positions_are_roughly_uniform(n):
    n_draws = 200 * n
    orders = torch.stack([ops.batch_order(n, (seed, 0), 0) for seed in range(n_draws)])
    # how often sample j comes first, last, and in the middle: 200 times on average
    for position in (0, n // 2, n - 1):
        count = torch.bincount(orders[:, position], minlength=n).double()
        chi2 = float(((count - 200) ** 2 / 200).sum())
        assert chi2 < (n - 1) + 6 * (2 * (n - 1)) ** 0.5  # six standard deviations
    # consecutive epochs, and neighbours within an order, are not related
    first, second = (torch.stack([ops.batch_order(n, (s, 0), e) for s in range(500)]).double() for e in (0, 1))
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 6 / (500 * n) ** 0.5
    step = (first[:, 1:] - first[:, :-1]) % n
    share = torch.bincount(step.long().flatten(), minlength=n)[1:].double()
    expected = share.sum() / (n - 1)
    assert float(((share - expected) ** 2 / expected).sum()) < (n - 2) + 6 * (2 * (n - 2)) ** 0.5


def test_wrong_calls():
    for n, key, epoch, error, name in (
        (-1, (0, 0), 0, ValueError, "n:"),
        (2**32, (0, 0), 0, ValueError, "n:"),
        (2.5, (0, 0), 0, TypeError, "n:"),
        (5, (0,), 0, ValueError, "key:"),
        (5, (-1, 0), 0, ValueError, "key:"),
        (5, (0, 2**32), 0, ValueError, "key:"),
        (5, (0, 0), -1, ValueError, "epoch:"),
    ):
        with pytest.raises(error, match=name):
            ops.batch_order(n, key, epoch)
    assert ops.batch_order(0, (0, 0), 0).shape == (0,)
