"""train(): the semantics of a plain torch loop, invariance, and wrong calls."""

import math
from dataclasses import replace

import pytest
import torch
from tolerances import TOLERANCES

from pns_fast import SGD, Adam, Masks, Population, edge_popup, init_population, multishot, ops, tasks, train

WIDTHS = {"circle": (2, 11, 7, 4), "helix": (1, 11, 7, 3)}
N = 3
STEP = {"schedule": "step", "step_epochs": 2, "gamma": 0.1}


def small(task, n=80, seed=0):
    return tasks.get(task).sample(n=n, seed=seed)


def random_masks(population, density):
    g = torch.Generator().manual_seed(2)
    flat = population.flatten()
    return Masks.from_flat(torch.rand(flat.shape, generator=g) < density, population.widths)


def assert_same(a, b, rows=slice(None)):
    """All results of ``a`` equal those of ``b``'s ``rows``, bitwise."""
    assert torch.equal(a.population.flatten(), b.population.flatten()[rows])
    for field in ("train_loss", "test_loss", "metric"):
        torch.testing.assert_close(getattr(a, field), getattr(b, field)[rows], rtol=0, atol=0, equal_nan=True)


def plain_loop(module, keep, data, key, epochs, make_optimizer, batch_size):
    """Trains ``module`` in place as anyone would write it; returns the mean loss of each epoch."""
    loss_fn = torch.nn.CrossEntropyLoss() if data.y_train.dtype == torch.int64 else torch.nn.MSELoss()
    keep = keep.split([p.numel() for p in module.parameters()])
    keep = [k.reshape(p.shape) for k, p in zip(keep, module.parameters(), strict=True)]
    with torch.no_grad():
        for p, k in zip(module.parameters(), keep, strict=True):
            p *= k
    (optimizer, scheduler), curve = make_optimizer(module.parameters()), []
    for epoch in range(epochs):
        order = torch.as_tensor(ops.batch_order(len(data.x_train), key, epoch))
        losses = []
        for batch in order.split(batch_size):
            optimizer.zero_grad()
            value = loss_fn(module(data.x_train[batch]), data.y_train[batch])
            value.backward()
            for p, k in zip(module.parameters(), keep, strict=True):
                p.grad *= k
            optimizer.step()
            with torch.no_grad():
                for p, k in zip(module.parameters(), keep, strict=True):
                    p *= k
            losses.append(value.item() * len(batch))
        curve.append(sum(losses) / len(data.x_train))
        scheduler.step()
    return curve


def test_a_population_of_a_modules_parameters_trains_to_plain_numbers():
    linears = init_population(WIDTHS["circle"]).module(0)[::2]
    population = Population([m.weight[None] for m in linears], [m.bias[None] for m in linears])
    result = train(population, None, small("circle"), epochs=1)
    popup = edge_popup(population, small("circle"), 0.5, epochs=1)
    shots = multishot(population, "snip", 0.5, small("circle"), rounds=1, round_epochs=1, epochs=1)
    found = [result.metric, *result.population.weights, popup.scores, *popup.population.biases, shots.strong_metric]
    assert not any(t.requires_grad for t in found)


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("task", ["circle", "helix"])
@pytest.mark.parametrize("optimizer", [Adam(lr=1e-2), SGD(lr=0.05), SGD(lr=0.05, **STEP)])
def test_follows_a_plain_torch_loop(task, optimizer, density):
    data, population = small(task), init_population(WIDTHS[task], n=N)
    masks = random_masks(population, density)
    result = train(population, masks, data, epochs=4, batch_size=20, optimizer=optimizer, seed=5)

    def make(parameters):
        if isinstance(optimizer, Adam):
            made = torch.optim.Adam(parameters, lr=1e-2)
        else:
            made = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
        gamma = optimizer.gamma if optimizer.schedule == "step" else 1.0
        return made, torch.optim.lr_scheduler.StepLR(made, 2, gamma)

    rtol, atol = TOLERANCES["train_16_steps"]
    for i in range(N):
        keep = masks.flatten()[i]
        module = population.module(i)
        before = module(data.x_test).detach()
        curve = plain_loop(module, keep, data, (5, i), 4, make, 20)
        parameters = torch.cat([p.detach().flatten() for p in module.parameters()])
        trained = result.population.flatten()[i]
        torch.testing.assert_close(trained[keep], parameters[keep], rtol=rtol, atol=atol)
        assert torch.equal(trained[~keep], population.flatten()[i][~keep])
        curve = torch.tensor(curve, dtype=torch.float64)
        torch.testing.assert_close(result.train_loss[i], curve, rtol=rtol, atol=atol)
        output = module(data.x_test).detach()
        if task == "circle":
            expected = torch.nn.functional.cross_entropy(output, data.y_test)
            accuracy = (output.argmax(1) == data.y_test).double().mean()
            assert result.metric[i, -1] == accuracy
            if density == 1:
                assert result.metric[i, 0] == (before.argmax(1) == data.y_test).double().mean()
        else:
            expected = torch.nn.functional.mse_loss(output, data.y_test)
            fits = [torch.linalg.lstsq(output[:, [j]], data.y_test[:, [j]]).solution.item() for j in range(3)]
            rescaled = ((output * torch.tensor(fits) - data.y_test) ** 2).mean()
            assert result.metric[i, -1].item() == pytest.approx(rescaled.item(), rel=1e-2)
        assert result.test_loss[i, -1].item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("task", ["circle", "helix"])
def test_a_network_trains_alike_alone_in_a_batch_and_with_any_threads(task):
    population = init_population(WIDTHS[task], n=N, seed=[7, 8, 9])
    masks = random_masks(population, 0.5)
    data = [small(task, seed=s) for s in range(N)]
    threads = torch.get_num_threads()
    try:
        results = []
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            results.append(train(population, masks, data, epochs=2, seed=[7, 8, 9]))
            for i in range(N):
                alone = train(population.select(i), masks.select(i), data[i], epochs=2, seed=7 + i)
                assert_same(alone, results[-1], slice(i, i + 1))
        assert_same(*results)
    finally:
        torch.set_num_threads(threads)


def test_a_repeated_dataset_is_the_same_as_one_for_all():
    population, data = init_population(WIDTHS["circle"], n=N), small("circle")
    one = train(population, None, data, epochs=1)
    assert_same(train(population, None, [data] * N, epochs=1), one)
    copies = [replace(data, x_train=data.x_train.clone()) for _ in range(N)]
    assert_same(train(population, None, copies, epochs=1), one)


def test_no_masks_trains_everything():
    population, data = init_population(WIDTHS["circle"], n=N), small("circle")
    assert_same(train(population, Masks.full(population), data, 1), train(population, None, data, 1))


def test_another_seed_is_another_order():
    population, data = init_population(WIDTHS["circle"]), small("circle")
    a, b = (train(population, None, data, epochs=1, seed=s).population.flatten() for s in (0, 1))
    assert not torch.equal(a, b)


def test_no_epochs_evaluates_only():
    population, data = init_population(WIDTHS["circle"], n=N), small("circle")
    result = train(population, None, data, epochs=0)
    assert (result.train_loss.shape, result.test_loss.shape, result.metric.shape) == ((N, 0), (N, 1), (N, 1))
    assert torch.equal(result.population.flatten(), population.flatten())


def test_inputs_are_not_changed():
    population, data = init_population(WIDTHS["circle"], n=N), small("circle")
    masks = random_masks(population, 0.5)
    before = population.flatten(), masks.flatten(), data.x_train.clone()
    result = train(population, masks, data, epochs=1)
    assert not torch.equal(result.population.flatten(), before[0])
    assert torch.equal(population.flatten(), before[0])
    assert torch.equal(masks.flatten(), before[1])
    assert torch.equal(data.x_train, before[2])


def test_a_network_that_diverges_is_reported_and_disturbs_no_other():
    population, data = init_population(WIDTHS["helix"], n=N), small("helix")
    for w in population.weights:
        w[1] *= 1e18
    result = train(population, None, data, epochs=2)
    assert not torch.isfinite(result.train_loss[1]).any()
    assert not torch.isfinite(result.test_loss[1]).any()
    assert result.metric[1, 1:].isnan().all()
    assert result.diverged.tolist() == [False, True, False]
    for i in (0, 2):
        assert torch.isfinite(result.test_loss[i]).all()
    assert_same(train(population.select(0), None, data, epochs=2), result, slice(0, 1))


def test_a_network_that_its_last_step_ruins_is_reported_too():
    population, data = init_population(WIDTHS["helix"], n=N), small("helix")
    result = train(population, None, data, epochs=1, batch_size=1000, optimizer=SGD(lr=1e30))
    assert torch.isfinite(result.train_loss).all()
    assert result.diverged.tolist() == [True] * N


def test_what_is_not_finite_before_training_is_no_divergence():
    population, data = init_population(WIDTHS["helix"], n=N), small("helix")
    for w in population.weights:
        w *= 1e18
    assert train(population, None, data, epochs=0).diverged.tolist() == [False] * N


def test_a_collapsed_network_trains_what_it_can():
    population, data = init_population(WIDTHS["circle"], n=N), small("circle")
    masks = Masks.full(population)
    masks.weights[1][:] = False
    result = train(population, masks, data, epochs=3, optimizer=Adam(lr=0.05))
    assert torch.equal(result.population.weights[0], population.weights[0])
    assert (result.train_loss[:, -1] < result.train_loss[:, 0]).all()


def test_mse_on_one_output_and_loss_given():
    data = tasks.get("relu").sample(n=60)
    population = init_population((1, 6, 1), n=2)
    assert_same(train(population, None, data, 1, loss="mse"), train(population, None, data, 1))


DATA = small("circle")
NAN = DATA.x_train.clone()
NAN[3, 1] = math.nan
HELIX = small("helix")
BAD = [
    ({"population": None}, TypeError, "population"),
    ({"masks": torch.ones(N, 3, dtype=torch.bool)}, TypeError, "masks"),
    ({"masks": Masks.full(init_population((2, 11, 8, 4), n=N))}, ValueError, "masks"),
    ({"masks": Masks.full(init_population(WIDTHS["circle"], n=2))}, ValueError, "masks"),
    ({"data": DATA.x_train}, TypeError, "data"),
    ({"data": [DATA, 3, DATA]}, TypeError, "data"),
    ({"data": [DATA] * 2}, ValueError, "data: expected one Data or a list of 3, got 2"),
    ({"data": []}, ValueError, "data"),
    ({"data": [DATA, DATA, small("circle", n=90)]}, ValueError, "same shape"),
    ({"data": HELIX}, ValueError, r"x_train: expected shape \[samples > 0, 2\]"),
    ({"data": replace(DATA, x_train=NAN)}, ValueError, "x_train: expected finite"),
    ({"data": replace(DATA, x_train=DATA.x_train.long())}, TypeError, "x_train"),
    ({"data": replace(DATA, x_train=DATA.x_train[:0], y_train=DATA.y_train[:0])}, ValueError, "x_train"),
    ({"data": replace(DATA, x_test=DATA.x_test[None])}, ValueError, "x_test"),
    ({"data": replace(DATA, y_train=DATA.y_train[:-1])}, ValueError, "y_train"),
    ({"data": replace(DATA, y_train=DATA.y_train + 4)}, ValueError, r"labels in \[0, 4\)"),
    ({"data": replace(DATA, y_test=DATA.y_test - 4)}, ValueError, "y_test"),
    ({"data": replace(DATA, y_train=DATA.y_train.int())}, TypeError, "y_train"),
    ({"data": replace(DATA, y_train=DATA.y_train.tolist())}, TypeError, "y_train"),
    ({"data": replace(DATA, y_train=DATA.x_train)}, ValueError, "y_train"),
    ({"loss": "mse"}, TypeError, "y_train"),
    ({"loss": "hinge"}, ValueError, "loss: expected one of cross_entropy, mse, got 'hinge'"),
    ({"epochs": -1}, ValueError, "epochs"),
    ({"epochs": 1.0}, TypeError, "epochs"),
    ({"batch_size": 0}, ValueError, "batch_size"),
    ({"optimizer": "adam"}, TypeError, "optimizer"),
    ({"optimizer": Adam}, TypeError, "optimizer"),
    ({"seed": [1, 2]}, ValueError, "seed"),
    ({"seed": -3}, ValueError, "seed"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_wrong_calls(change, error, message):
    call = {"population": init_population(WIDTHS["circle"], n=N), "masks": None, "data": DATA, "epochs": 1}
    with pytest.raises(error, match=message):
        train(**{**call, **change})
