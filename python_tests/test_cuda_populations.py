"""Populations on a GPU: planted, pruned, trained and measured there as on the CPU."""

import dataclasses

import pytest
import torch
from tolerances import TOLERANCES

import pns_fast as pns
from pns_fast import Masks, init_population, multishot, prune, pruners, tasks, train

pytestmark = pytest.mark.gpu

WIDTHS = (2, 40, 40, 4)
TASKS = ("circle", "relu", "helix")


def close(ours, theirs, tolerance):
    rtol, atol = TOLERANCES[tolerance]
    torch.testing.assert_close(ours.cpu(), theirs, rtol=rtol, atol=atol, equal_nan=True)


def planted(task, n=6, depth=5, device="cpu", **options):
    task = tasks.get(task)
    return pns.plant(task.ticket(depth), init_population(task.widths(depth, 40), n=n).to(device), **options)


def share_equal(ours, theirs):
    """The part of mask entries that agree."""
    return (ours.flatten().cpu() == theirs.flatten()).double().mean()


@pytest.mark.parametrize("assignment", ["greedy", "optimal"])
@pytest.mark.parametrize("task", TASKS)
def test_planting_finds_the_same_neurons(cuda, task, assignment):
    theirs, ours = (planted(task, device=d, assignment=assignment) for d in ("cpu", cuda))
    for part in (ours.population, ours.masks, ours.output_scale, ours.fallbacks, *ours.neurons):
        assert part.device == cuda
    assert all(torch.equal(a.cpu(), b) for a, b in zip(ours.neurons, theirs.neurons, strict=True))
    assert torch.equal(ours.masks.flatten().cpu(), theirs.masks.flatten())
    assert torch.equal(ours.fallbacks.cpu(), theirs.fallbacks)
    close(ours.output_scale, theirs.output_scale, "planted_scale")
    close(ours.population.flatten(), theirs.population.flatten(), "float32_rounding")
    x = tasks.get(task).sample(n=500).x_test
    expected = tasks.get(task).ticket(5).forward(x.to(cuda))
    difference = (ours.ticket_forward(x.to(cuda)) - expected).abs().max() / expected.abs().max()
    assert difference <= TOLERANCES["planted_output"][0]


@pytest.mark.sanitize
def test_fallbacks_are_the_same(cuda):
    # all parameters negative, the ticket's positive: no neuron has a positive scale
    mother = init_population((1, 4, 1), n=3)
    mother = pns.Population([-w.abs() for w in mother.weights], [-b.abs() for b in mother.biases])
    ticket = [(torch.ones(2, 1), torch.ones(2)), (torch.ones(1, 2), torch.ones(1))]
    theirs, ours = pns.plant(ticket, mother), pns.plant(ticket, mother.to(cuda))
    assert torch.equal(ours.fallbacks.cpu(), theirs.fallbacks)
    assert theirs.fallbacks.tolist() == [2, 2, 2]
    assert all(torch.equal(a.cpu(), b) for a, b in zip(ours.neurons, theirs.neurons, strict=True))


@pytest.mark.sanitize
@pytest.mark.parametrize("with_masks", [False, True])
def test_forward_and_gradients(cuda, with_masks):
    population = init_population(WIDTHS, n=5)
    masks = prune(population, "random", 0.3) if with_masks else None
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", cuda):
        leaves = [w.to(device, copy=True).requires_grad_() for w in population.weights]
        on_device = pns.Population(leaves, [b.to(device) for b in population.biases])
        y = on_device.forward(x.to(device), None if masks is None else masks.to(device))
        results.append([y.detach(), *torch.autograd.grad(y.square().mean(), leaves)])
    for i, (theirs, ours) in enumerate(zip(*results, strict=True)):
        assert ours.device == cuda
        scale = theirs.abs().max()
        close(ours / scale, theirs / scale, "float32_forward" if i == 0 else "float32_gradient")


def test_what_masks_know_of_themselves(cuda):
    masks = prune(init_population(WIDTHS, n=8), "random", 0.02)
    ours, other = masks.to(cuda), Masks.from_flat(masks.flatten().roll(7, 1), WIDTHS)
    for name in ("kept", "density", "layer_densities", "collapsed", "effective_density"):
        assert torch.equal(getattr(ours, name)().cpu(), getattr(masks, name)()), name
    found, expected = pns.recovery(ours, other.to(cuda)), pns.recovery(masks, other)
    for field in dataclasses.fields(expected):
        assert torch.equal(getattr(found, field.name).cpu(), getattr(expected, field.name)), field.name
    assert torch.equal(ours.select([3, 1]).flatten().cpu(), masks.select([3, 1]).flatten())
    assert torch.equal(ours.select(torch.tensor([3, 1])).flatten(), ours.select([3, 1]).flatten())


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("pruner", pruners.names())
def test_masks_are_those_of_the_cpu(cuda, pruner, rounds, scope):
    population, data = planted("circle").population, tasks.get("circle").sample(n=500)
    batch = pruners.pruning_batch([data] * population.n, "cross_entropy")  # stays on the CPU: prune moves it
    for density in (0.02, 0.3):
        options = {"scope": scope, "rounds": rounds, "seed": 4}
        theirs = prune(population, pruner, density, batch, **options)
        ours = prune(population.to(cuda), pruner, density, batch, **options)
        assert ours.device == cuda
        assert torch.equal(ours.kept().cpu(), theirs.kept())
        if pruner in ("random", "magnitude", "phew") or (pruner == "synflow" and rounds == 1):
            assert torch.equal(ours.flatten().cpu(), theirs.flatten())  # the same scores, or far enough apart
        else:
            assert share_equal(ours, theirs) > 0.995  # scores that differ by rounding may change places


@pytest.mark.parametrize("pruner", pruners.names())
def test_scores_are_those_of_the_cpu(cuda, pruner):
    population = planted("helix", n=3).population.to(dtype=torch.float64)
    batch = pruners.pruning_batch(tasks.get("helix").sample(n=200), "mse")
    theirs = pruners.score(population, pruner, batch, "mse")
    ours = pruners.score(population.to(cuda), pruner, tuple(part.to(cuda) for part in batch), "mse")
    scale = theirs.abs().amax(1, keepdim=True)
    close(ours / scale.to(cuda), theirs / scale, "scores_float64")


def test_training_follows_the_cpus_curve(cuda):
    population = planted("circle").population
    masks = prune(population, "magnitude", 0.2)
    data = [tasks.get("circle").sample(n=400, seed=s) for s in range(population.n)]
    options = {"epochs": 2, "optimizer": pns.Adam(lr=1e-3), "seed": 3}
    theirs = train(population, masks, data, **options)
    on_gpu = [tasks.Data(*(getattr(d, f.name).to(cuda) for f in dataclasses.fields(d))) for d in data]
    for given in (data, on_gpu):  # data may wait on the CPU
        ours = train(population.to(cuda), masks.to(cuda), given, **options)
        assert ours.population.device == ours.train_loss.device == ours.metric.device == cuda
        close(ours.train_loss, theirs.train_loss, "loss_curve_200_adam_steps")
        close(ours.test_loss, theirs.test_loss, "loss_curve_200_adam_steps")
        assert (ours.metric.cpu() - theirs.metric).abs().max() <= 2 / 40  # of 40 test samples two may change sides
        pruned = ~masks.flatten()
        assert torch.equal(ours.population.flatten().cpu()[pruned], population.flatten()[pruned])
        assert ours.diverged.tolist() == [False] * population.n


@pytest.mark.sanitize
def test_edge_popup_follows_the_cpus_curve(cuda):
    population, data = init_population((1, 20, 20, 1), n=4), tasks.get("relu").sample(n=200)
    options = {"epochs": 1, "seed": [5, 6, 7, 8]}
    theirs, ours = (pns.edge_popup(population.to(d), data, 0.3, **options) for d in ("cpu", cuda))
    assert ours.masks.device == ours.scores.device == cuda
    assert torch.equal(ours.masks.kept().cpu(), theirs.masks.kept())
    close(ours.test_loss[:, 0], theirs.test_loss[:, 0], "loss_curve")
    assert share_equal(ours.masks, theirs.masks) > 0.98
    assert ours.diverged.tolist() == [False] * 4


def test_multishot_keeps_as_much_and_reports_there(cuda):
    population, data = planted("circle", n=4).population, tasks.get("circle").sample(n=200)
    pruner, density = ["magnitude", "snip", "synflow", "random"], [0.1, 0.3, 0.3, 1.0]
    options = {"rounds": 2, "round_epochs": 1, "epochs": 1}
    theirs, ours = (multishot(population.to(d), pruner, density, data, **options) for d in ("cpu", cuda))
    assert ours.masks.device == ours.strong_metric.device == cuda
    assert torch.equal(ours.masks.kept().cpu(), theirs.masks.kept())
    assert share_equal(ours.masks, theirs.masks) > 0.99


def test_module_of_a_network(cuda):
    population = init_population(WIDTHS, n=2).to(cuda)
    x = torch.randn(5, 2, device=cuda)
    module = population.module(1)
    assert next(module.parameters()).device == cuda
    torch.testing.assert_close(module(x), population.forward(x)[1], rtol=1e-3, atol=1e-4)  # torch may use TF32


def test_devices_that_do_not_fit_are_named(cuda):
    population, data = init_population(WIDTHS, n=2), tasks.get("circle").sample(n=100)
    on_gpu = tasks.Data(*(getattr(data, f.name).to(cuda) for f in dataclasses.fields(data)))
    with pytest.raises(ValueError, match="data: expected device cpu like the population, got cuda:0"):
        train(population, None, on_gpu, epochs=0)
    with pytest.raises(ValueError, match="x: expected device cuda:0 like the population, got cpu"):
        population.to(cuda).forward(data.x_test)
    with pytest.raises(ValueError, match="masks: expected 2 networks"):
        train(population.to(cuda), Masks.full(population), data, epochs=0)
    with pytest.raises(ValueError, match=r"masks: expected 2 networks .* on cuda:0, got 2 .* on cpu"):
        pns.recovery(Masks.full(population), Masks.full(population.to(cuda)))
    x, y = on_gpu.x_train[:8], on_gpu.y_train[:8]
    with pytest.raises(ValueError, match="batch x: expected device cpu like the population, got cuda:0"):
        prune(population, "snip", 0.5, (x, y))


def test_a_default_device_changes_nothing(cuda):
    """On the CPU: test_odd_input.py."""
    population, data = planted("circle").population, tasks.get("circle").sample(n=200)
    batch = pruners.pruning_batch(data, "cross_entropy")

    def results():
        for on in (population, population.to(cuda)):
            masks = prune(on, "synflow", 0.2, batch)
            trained, popup = train(on, masks, data, epochs=1), pns.edge_popup(on, data, 0.3, epochs=1)
            yield from (masks.flatten(), trained.test_loss, popup.scores.flatten(), trained.population.flatten())
            yield pns.plant(tasks.get("circle").ticket(5), on).masks.flatten()
            yield pns.ops.topk_mask(on.flatten(), 0.1, hint=0.5)

    expected = list(results())
    with cuda:
        found = list(results())
    for a, b in zip(found, expected, strict=True):
        assert a.device == b.device
        assert torch.equal(a, b)
