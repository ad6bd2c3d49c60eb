"""Masks: densities, layer collapse and effective density on networks small enough to count by hand."""

import pytest
import torch

import pns_fast as pns
from pns_fast.networks import cat_masks


def masks_of(*layers):
    """Masks of one network from (weight, bias) pairs of 0/1 lists."""
    return pns.Masks([torch.tensor([w]).bool() for w, _ in layers], [torch.tensor([b]).bool() for _, b in layers])


# 2 -> 2 -> 1, 9 parameters: (name, masks, kept, effective, collapsed)
CASES = [
    ("full", masks_of(([[1, 1], [1, 1]], [1, 1]), ([[1, 1]], [1])), 9, 9, False),
    ("empty", masks_of(([[0, 0], [0, 0]], [0, 0]), ([[0, 0]], [0])), 0, 0, True),
    ("one path", masks_of(([[1, 0], [0, 0]], [1, 0]), ([[1, 0]], [0])), 3, 3, False),
    # the second hidden neuron has inputs and a bias but no output
    ("dead end forwards", masks_of(([[1, 0], [1, 1]], [1, 1]), ([[1, 0]], [1])), 7, 4, False),
    # the second hidden neuron has an output but no input, so its weight and its bias carry no signal
    ("dead end backwards", masks_of(([[1, 1], [0, 0]], [0, 1]), ([[1, 1]], [1])), 6, 4, False),
    ("biases only", masks_of(([[0, 0], [0, 0]], [1, 1]), ([[0, 0]], [1])), 3, 0, True),
    ("bias path", masks_of(([[0, 0], [0, 0]], [1, 1]), ([[1, 1]], [1])), 5, 0, True),
    # every layer keeps a weight, yet nothing connects
    ("broken", masks_of(([[1, 1], [0, 0]], [1, 1]), ([[0, 1]], [1])), 6, 0, False),
    ("last layer gone", masks_of(([[1, 1], [1, 1]], [1, 1]), ([[0, 0]], [1])), 7, 0, True),
]


@pytest.mark.parametrize(("masks", "kept", "effective", "collapsed"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_by_hand(masks, kept, effective, collapsed):
    assert masks.kept().tolist() == [kept]
    assert masks.density().tolist() == [kept / 9]
    assert masks.effective_density().tolist() == [effective / 9]
    assert masks.collapsed().tolist() == [collapsed]


def test_batch_is_the_cases_together():
    masks = cat_masks([case[1] for case in CASES])
    assert masks.n == len(CASES)
    assert masks.kept().dtype == torch.int64
    assert masks.density().dtype == masks.effective_density().dtype == torch.float64
    assert masks.kept().tolist() == [case[2] for case in CASES]
    assert masks.effective_density().tolist() == [case[3] / 9 for case in CASES]
    assert masks.collapsed().tolist() == [case[4] for case in CASES]


def test_long_dead_end():
    """1 -> 2 -> 2 -> 1: a chain that ends one layer before the output is dead all the way back."""
    masks = masks_of(([[1], [1]], [1, 1]), ([[1, 0], [0, 1]], [1, 1]), ([[1, 0]], [1]))
    assert masks.kept().item() == 10
    assert masks.effective_density().item() == 6 / 13


def test_densities_of_weights_and_layers():
    masks = masks_of(([[1, 0], [0, 0]], [1, 1]), ([[1, 1]], [0]))
    assert masks.density(biases=False).tolist() == [3 / 6]
    assert masks.layer_densities().tolist() == [[1 / 4, 1.0]]


def test_effective_parameters_are_those_that_matter():
    """Dropping what does not count leaves the function's dependence on the input unchanged."""
    widths = (3, 6, 6, 2)
    population = pns.init_population(widths, n=20, seed=3).to(dtype=torch.float64)
    flat = torch.rand(population.flatten().shape, generator=torch.Generator().manual_seed(1)) < 0.25
    masks = pns.Masks.from_flat(flat, widths)
    parameters = population.flatten().abs().requires_grad_()  # positive: no path cancels and no ReLU is off
    x = torch.rand(1, 3, dtype=torch.float64).requires_grad_()
    output = pns.Population.from_flat(parameters, widths).forward(x.expand(20, 1, 3), masks).sum()
    slope = torch.autograd.grad(output, x, create_graph=True)[0].sum()
    used = torch.autograd.grad(slope, parameters)[0] != 0  # weights on some input-output path
    on_path = pns.Masks.from_flat(used, widths)
    n_effective = sum(w.flatten(1).sum(1) for w in on_path.weights)
    for l, w in enumerate(on_path.weights):
        n_effective = n_effective + (masks.biases[l] & w.any(2)).sum(1)
    assert masks.effective_density().tolist() == (n_effective.double() / flat.shape[1]).tolist()


def test_full_and_flat():
    population = pns.init_population((2, 5, 3), n=2)
    full = pns.Masks.full(population)
    assert full.density().tolist() == [1.0, 1.0]
    flat = torch.arange(2 * 33).reshape(2, 33) % 3 == 0
    assert torch.equal(pns.Masks.from_flat(flat, (2, 5, 3)).flatten(), flat)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pns.Masks([torch.ones(1, 1, 1)], [torch.ones(1, 1)]), TypeError, "expected bool"),
        (lambda: pns.Masks.from_flat(torch.ones(1, 2), (1, 1)), TypeError, "expected bool"),
        (
            lambda: pns.Masks([torch.ones(1, 1, 1).bool()], [torch.ones(1, 2).bool()]),
            ValueError,
            r"biases\[0\]",
        ),
        (lambda: cat_masks([CASES[0][1], masks_of(([[1]], [1]))]), ValueError, "masks"),
        (lambda: CASES[0][1].select(1), ValueError, "indices"),
    ],
)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_names_of_one_network():
    population = pns.init_population((2, 3, 4, 1), n=3)
    masks = pns.Masks.from_flat(torch.rand(3, 30) < 0.5, population.widths)
    named = masks.named(1)
    assert list(named) == [name for name, _ in population.module(1).named_parameters()]
    assert torch.equal(torch.cat([m.flatten() for m in named.values()]), masks.flatten()[1])
    with pytest.raises(ValueError, match="indices"):
        masks.named(3)
