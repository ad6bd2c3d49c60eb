"""FORCE, PHEW and scope "erk" on modules: what they ask of a module beyond what every pruner does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pns_fast as pns
from pns_fast.nn import mask_model, prune_module, score_module
from pns_fast.pruners import allocate


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10, bias=False))


def images(n=16):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 10


def mlp(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(6, 20), nn.ReLU(), *between), nn.Linear(20, 4))


def flat(masks):
    return torch.cat([mask.flatten() for mask in masks.values()])


def test_force_of_a_convolution_is_the_gradient_at_the_pruned_network_times_the_weight():
    model, batch = convnet().double(), images()
    batch = batch[0].double(), batch[1]
    masks = prune_module(model, "random", 0.4)
    scores = score_module(model, "force", batch, F.cross_entropy, masks=masks)
    pruned = pns.nn.finalize(model, masks)
    F.cross_entropy(pruned(batch[0]), batch[1]).backward()
    for (name, parameter), other in zip(pruned.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(scores[name], (parameter.grad * other).abs().detach())
        assert (scores[name][~masks[name]] != 0).any()


def test_force_revives_in_modules_but_not_what_was_pruned_before():
    model, batch = convnet(), images()
    rounds = [prune_module(model, "force", 0.02, batch, F.cross_entropy, rounds=r) for r in (1, 4)]
    assert [int(flat(masks).sum()) for masks in rounds] == [math.ceil(0.02 * 2960)] * 2
    assert not torch.equal(flat(rounds[0]), flat(rounds[1]))
    earlier = prune_module(model, "random", 0.4)
    masks = prune_module(model, "force", 0.05, batch, F.cross_entropy, rounds=3, masks=earlier)
    assert not (flat(masks) & ~flat(earlier)).any()
    assert flat(masks).sum() == math.ceil(0.05 * 2960)


def test_force_sees_what_a_masked_layer_skips():
    model = mlp()
    batch = torch.randn(12, 6, generator=torch.Generator().manual_seed(2)), torch.arange(12) % 4
    earlier = prune_module(model, "random", 0.5)
    plain = score_module(model, "force", batch, F.cross_entropy, masks=earlier)
    masked = score_module(mask_model(model, earlier), "force", batch, F.cross_entropy)
    for name, scores in plain.items():
        torch.testing.assert_close(masked[name], scores)
    assert (flat(masked)[~flat(earlier)] > 0).any()


def test_erk_counts_kernels_and_biases():
    model = convnet()
    masks = prune_module(model, "random", 0.1, scope="erk")
    counts = allocate([[(8, 1, 3, 3), (8,)], [(10, 288)]], 0.1, "erk")
    assert counts == [int(flat({n: m for n, m in masks.items() if n.startswith(l)}).sum()) for l in ("0.", "3.")]
    assert sum(counts) == 296


def test_phew_walks_through_what_works_on_each_feature():
    """Sequences in sequences, norms, activations and dropout change nothing of the walks."""
    plain = score_module(mlp(), "phew", seed=3)
    other = mlp(nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Identity(), nn.GELU())
    assert {n: s.tolist() for n, s in score_module(other, "phew", seed=3).items()} == {
        n: s.tolist() for n, s in plain.items()
    }
    assert list(plain) == ["1.0.weight", "1.0.bias", "2.weight", "2.bias"]
    without = score_module(mlp(), "phew", seed=3, include_bias=False)
    assert all(torch.equal(without[name], plain[name]) for name in ("1.0.weight", "2.weight"))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.layer(x)


TIED = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
TIED[1].weight = TIED[0].weight


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (convnet(), {}, r"model: .* linear layers in sequence, 0 \(Conv2d\) is something else"),
        (Residual(), {}, r"model: .* it \(Residual\) is something else"),
        (nn.Sequential(nn.Linear(6, 6), Residual()), {}, r"1 \(Residual\) is something else"),
        (mlp(), {"ignore": ["2.*"]}, r"needs all linear layers, 2\.weight is not to be pruned"),
        (TIED, {}, r"needs all linear layers, 1\.weight is not to be pruned"),
        (nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(8, 2)), {}, "expects 2 to take what the linear layer"),
    ],
)
def test_phew_says_what_it_cannot_walk_over(model, options, message):
    with pytest.raises(ValueError, match=message):
        prune_module(model, "phew", 0.5, **options)
