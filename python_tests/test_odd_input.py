"""Odd but right calls of the public API: numbers of NumPy, inputs that want gradients, a default device, paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pns_fast as pns
from pns_fast import sweeps
from pns_fast.tasks import Data

CIRCLE = pns.tasks.get("circle")
WIDTHS = (2, 30, 30, 4)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 4))


def cells(**changes):
    small = {"depths": [3], "widths": [4], "n_samples": 100, "epochs": 1, **changes}
    return sweeps.expand("singleshot", ["relu"], ["random"], [0.5], **{"seeds": range(2), **small})


def test_counts_and_seeds_of_numpy():
    two, population = np.int64(2), pns.init_population(WIDTHS, n=3, seed=2)
    assert torch.equal(pns.init_population(WIDTHS, n=np.int32(3), seed=two).flatten(), population.flatten())
    assert torch.equal(population.module(two)[0].weight, population.weights[0][2])
    assert torch.equal(CIRCLE.sample(n=np.int64(50), seed=two).x_train, CIRCLE.sample(n=50, seed=2).x_train)
    a, b = (pns.prune(population, "random", 0.5, seed=seed, rounds=n) for seed, n in ((two, two), (2, 2)))
    assert torch.equal(a.flatten(), b.flatten())
    assert torch.equal(pns.init_population(np.array(WIDTHS), n=3, seed=2).flatten(), population.flatten())
    assert CIRCLE.ticket(4).density(np.array(WIDTHS)) == CIRCLE.ticket(4).density(WIDTHS)
    a, b = (pns.init_population(WIDTHS, n=3, seed=seeds) for seeds in (np.arange(3), [0, 1, 2]))
    assert torch.equal(a.flatten(), b.flatten())
    assert pns.nn.SupermaskLinear(4, 4, keep=np.float32(0.5)).density == 0.5


def test_batch_sizes_of_numpy_train_modules():
    data = CIRCLE.sample(n=100)
    a, b = (pns.train_module(network(), None, data, epochs=np.int64(1), batch_size=n) for n in (np.int64(32), 32))
    assert torch.equal(a.test_loss, b.test_loss)


def test_a_grid_of_numpy_has_the_same_keys():
    grids = [
        cells(seeds=np.arange(2), depths=np.array([3]), noises=np.array([0.5]), epochs=np.int64(1), lr=np.float64(0.5)),
        cells(noises=[np.float32(0.5)], lr=np.float32(0.5)),
        cells(noises=[0.5], lr=0.5),
    ]
    keys = [[cell.key for cell in grid] for grid in grids]
    assert keys[0] == keys[1] == keys[2]


def test_theory_takes_any_real_number():
    ticket = pns.tasks.get("relu").ticket(4)
    expected = pns.theory.required_width(ticket, 0.5, 0.25)
    assert pns.theory.required_width(ticket, np.float32(0.5), np.float32(0.25)) == expected
    assert pns.theory.required_width(ticket, np.float64(0.5), np.float64(0.25)) == expected


def test_inputs_that_want_gradients_give_results_that_do_not():
    data = CIRCLE.sample(n=100)
    wanting = Data(*(t.clone().requires_grad_(t.is_floating_point()) for t in vars(data).values()))
    population = pns.init_population(WIDTHS, n=2)
    results = [pns.train(population, None, d, epochs=1) for d in (data, wanting)]
    results += [pns.edge_popup(population, d, 0.5, epochs=1) for d in (data, wanting)]
    for plain, result in (results[:2], results[2:]):
        found = result.train_loss, result.test_loss, result.metric, result.population.flatten()
        expected = plain.train_loss, plain.test_loss, plain.metric, plain.population.flatten()
        assert not any(t.requires_grad for t in found)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def pruned_and_trained(data):
    """What needs gradients inside, though no result wants any."""
    population, batch = pns.init_population(WIDTHS, n=2), (data.x_train * 1, data.y_train * 1)
    for name in ("snip", "grasp", "synflow", "force"):
        yield pns.prune(population, name, 0.5, batch, rounds=2).flatten()
        yield from pns.prune_module(network(), name, 0.5, batch, F.cross_entropy, rounds=2).values()
    yield pns.prune(population, "snip", 0.5, batch, masks=pns.Masks.full(population)).flatten()
    yield from pns.prune_module(pns.nn.mask_model(network()), "snip", 0.5, batch, F.cross_entropy).values()
    yield pns.pruners.score(population, "snip", batch)
    yield from pns.nn.score_module(network(), "snip", batch, F.cross_entropy).values()
    yield pns.multishot(population, "snip", 0.5, data, rounds=1, round_epochs=1, epochs=1).masks.flatten()
    found = pns.multishot_module(network(), "snip", 0.5, data, rounds=1, round_epochs=1, epochs=1)
    yield from (*found.masks.values(), found.result.test_loss)
    yield pns.train_module(network(), found.masks, data, epochs=1).test_loss
    yield pns.edge_popup_module(network(), data, 0.5, epochs=1).test_loss


def test_gradients_are_taken_wherever_the_caller_is():
    """In inference mode run Lightning's hooks of a validation; tensors that it makes cannot be saved for backward."""
    data = CIRCLE.sample(n=100)
    expected = list(pruned_and_trained(data))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = list(pruned_and_trained(data))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def results_of_everything(tmp_path):
    """Tensors of most of the public functions; inputs are on the CPU."""
    data, population = CIRCLE.sample(n=100), pns.init_population(WIDTHS, n=2)
    ticket = CIRCLE.ticket(4)
    planted = pns.plant(ticket, population, assignment="optimal")
    masks = pns.prune(population.select([1]), "synflow", 0.5, batch=(data.x_train, data.y_train))
    sgd = pns.SGD(lr=0.1)  # torch's Adam counts steps on the default device before torch 2.13
    trained = pns.train_module(network_of(population), None, data, epochs=1, optimizer=sgd)
    found = pns.theory.simulate(pns.tasks.get("relu").ticket(3), (1, 9, 9), 0.9, n=5)
    relu = pns.plant([([[1.0]], [0.0]), ([[1.0]], [0.0])], pns.init_population((1, 5, 1)))
    sweeps.run(cells(), tmp_path / "s.db")
    (losses,) = [[r["weak_loss"] for r in sweeps.read(tmp_path / "s.db")]]
    tensors = [planted.ticket_forward(data.x_test), planted.fallbacks, masks.flatten(), relu.output_scale]
    tensors += [trained.test_loss, trained.metric, found.found]
    return tensors, losses


def network_of(population):
    return population.module(0)


def test_a_default_device_changes_nothing(tmp_path):
    """As after ``torch.set_default_device("cuda")``; "meta" has no values, so that any use of it shows."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    expected, losses = results_of_everything(tmp_path / "a")
    with torch.device("meta"):
        found, losses_found = results_of_everything(tmp_path / "b")
    assert all(t.device.type == "cpu" for t in found)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert losses_found == losses


def test_paths_with_spaces_and_umlauts(tmp_path):
    folder = tmp_path / "Mäuse & Köpfe #1 %20?"
    folder.mkdir()
    model = pns.nn.mask_model(network())
    pns.nn.save_masks(model, folder / "Maske ß.safetensors")
    assert list(pns.nn.load_masks(folder / "Maske ß.safetensors")) == list(pns.nn.get_masks(model))
    assert sweeps.run(cells(), folder / "Größe 1.db").n_ok == 2
    sweeps.merge([folder / "Größe 1.db"], folder / "alle #2.db")
    records = sweeps.read(folder / "alle #2.db")
    sweeps.save_figure(records, folder / "Bild ü.png")
    sweeps.write_csv(records, folder / "Tabelle ü.csv")
    assert len(list(folder.iterdir())) == 5


@pytest.mark.parametrize("name", pns.pruners.names())
def test_a_mask_that_keeps_nothing_stays_so(name):
    population, data = pns.init_population(WIDTHS, n=2), CIRCLE.sample(n=100)
    none = pns.Masks.from_flat(torch.zeros_like(population.flatten(), dtype=torch.bool), WIDTHS)
    assert not pns.prune(population, name, 0.5, batch=(data.x_train, data.y_train), masks=none).flatten().any()
    trained = pns.train(population, none, data, epochs=1)
    torch.testing.assert_close(trained.test_loss, torch.full((2, 2), 4.0, dtype=torch.float64).log())
    model, batch = network(), (data.x_train, data.y_train)
    masks = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    assert not any(m.any() for m in pns.prune_module(model, name, 0.5, batch, F.cross_entropy, masks=masks).values())
