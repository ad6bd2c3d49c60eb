"""recovery: precision, recall and F1 by hand, and where they would be 0/0."""

import pytest
import torch

import pns_fast as pns
from pns_fast.networks import cat_masks

WIDTHS = (2, 2, 1)  # 9 parameters: 4 weights and 2 biases, then 2 weights and 1 bias


def masks_of(flat):
    return pns.Masks.from_flat(torch.tensor([[c == "1" for c in flat]]), WIDTHS)


#        kept         planted      precision, recall, f1 overall, then of the two layers
CASES = [
    ("111111111", "100010110", (4 / 9, 1, 8 / 13), (2 / 6, 2 / 3), (1, 1), (4 / 8, 4 / 5)),
    ("100010110", "100010110", (1, 1, 1), (1, 1), (1, 1), (1, 1)),
    ("110000001", "101000010", (1 / 3, 1 / 3, 1 / 3), (1 / 2, 0), (1 / 2, 0), (1 / 2, 0)),
    ("000000000", "101000010", (0, 0, 0), (0, 0), (0, 0), (0, 0)),
    ("110000001", "000000000", (0, 0, 0), (0, 0), (0, 0), (0, 0)),
    ("000000000", "000000000", (0, 0, 0), (0, 0), (0, 0), (0, 0)),
]


def test_by_hand():
    found = pns.recovery(cat_masks([masks_of(c[0]) for c in CASES]), cat_masks([masks_of(c[1]) for c in CASES]))
    for i, (_, _, (precision, recall, f1), *layers) in enumerate(CASES):
        assert found.precision[i].item() == precision
        assert found.recall[i].item() == recall
        assert found.f1[i].item() == pytest.approx(f1, rel=1e-15)
        rows = (found.layer_precision[i], found.layer_recall[i], found.layer_f1[i])
        for row, expected in zip(rows, layers, strict=True):
            assert row.tolist() == pytest.approx(list(expected), rel=1e-15)
    assert found.precision.dtype == found.layer_f1.dtype == torch.float64


def test_planted_masks_recover_themselves():
    task = pns.tasks.get("circle")
    planted = pns.plant(task.ticket(5), pns.init_population(task.widths(5, 100), n=2))
    found = pns.recovery(planted.masks, planted.masks)
    assert found.f1.tolist() == [1.0, 1.0]
    everything = pns.recovery(pns.Masks.full(planted.population), planted.masks)
    assert everything.recall.tolist() == [1.0, 1.0]
    assert torch.equal(everything.precision, planted.masks.density())


@pytest.mark.parametrize(
    ("masks", "planted", "error", "message"),
    [
        (torch.ones(1, 9).bool(), masks_of("1" * 9), TypeError, "masks: expected Masks"),
        (masks_of("1" * 9), None, TypeError, "planted_masks: expected Masks"),
        (masks_of("1" * 9), cat_masks([masks_of("1" * 9)] * 2), ValueError, "masks: expected 2 networks"),
        (masks_of("1" * 9), pns.Masks.full(pns.init_population((2, 3, 1))), ValueError, "widths"),
    ],
)
def test_wrong_calls(masks, planted, error, message):
    with pytest.raises(error, match=message):
        pns.recovery(masks, planted)
