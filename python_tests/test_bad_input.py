"""Wrong calls of the public API: each is a ValueError or TypeError (OSError for files) naming what was wrong."""

from __future__ import annotations

import sqlite3

import pytest
import torch

import pns_fast as pns
from pns_fast import sweeps

NAN = float("nan")
T, F = torch.ones, torch.zeros


def population(n=2, widths=(2, 8, 8, 4), seed=0):
    return pns.init_population(widths, n=n, seed=seed)


def circle(n=60):
    return pns.tasks.get("circle").sample(n=n)


def masks(**kwargs):
    return pns.Masks.full(population(**kwargs))


def batch(n=40):
    data = circle(400)
    return data.x_train[:n], data.y_train[:n]


def trainer(**changes):
    """mlp_trainer on one tiny network, with some arguments replaced."""
    index = F(1, dtype=torch.int64)
    positional = {
        "parameters": F(1, 17),
        "mask": T(1, 17, dtype=torch.bool),
        "widths": [2, 3, 2],
        "x_train": F(1, 8, 2),
        "y_train": F(1, 8, dtype=torch.int64),
        "x_test": F(1, 4, 2),
        "y_test": F(1, 4, dtype=torch.int64),
        "dataset": index,
        "keys": F(1, 2, dtype=torch.int64),
    }
    options = {
        "loss": "cross_entropy",
        "epochs": 1,
        "batch_size": 4,
        "optimizer": "sgd",
        "lr": 0.1,
        "beta1": 0.0,
    }
    for name, value in changes.items():
        (positional if name in positional else options)[name] = value
    return pns.ops.mlp_trainer(*positional.values(), **options)


BOOL = {"dtype": torch.bool}
WRONG_CALLS = [
    # (the argument that the message names, the error, the call)
    ("scores", TypeError, lambda: pns.ops.topk_mask([1.0, 2.0], 1)),
    ("scores", TypeError, lambda: pns.ops.topk_mask(torch.arange(4), 1)),
    ("scores", ValueError, lambda: pns.ops.topk_mask(torch.tensor(1.0), 1)),
    ("scores", ValueError, lambda: pns.ops.topk_mask(torch.tensor([1.0, NAN]), 1)),
    ("scores", ValueError, lambda: pns.ops.topk_mask([T(3), torch.tensor([NAN])], 1)),
    ("scores", TypeError, lambda: pns.ops.topk_mask([T(3), T(3, dtype=torch.float64)], 1)),
    ("scores", ValueError, lambda: pns.ops.topk_mask([T(3), T(3, device="meta")], 1)),
    ("keep", ValueError, lambda: pns.ops.topk_mask(T(3), 4)),
    ("keep", ValueError, lambda: pns.ops.topk_mask(T(3), -1)),
    ("keep", ValueError, lambda: pns.ops.topk_mask(T(3), 1.5)),
    ("keep", ValueError, lambda: pns.ops.topk_mask(T(3), NAN)),
    ("keep", TypeError, lambda: pns.ops.topk_mask(T(3), True)),
    ("keep", ValueError, lambda: pns.ops.topk_mask([], 1)),
    ("ties", ValueError, lambda: pns.ops.topk_mask(T(3), 1, ties="random")),
    ("k", ValueError, lambda: pns.ops.kth_largest(T(3), 0)),
    ("k", ValueError, lambda: pns.ops.kth_largest(T(0), 1)),
    ("support", TypeError, lambda: pns.ops.best_match(T(2, 3), T(2, 3), T(4, 3))),
    ("support", ValueError, lambda: pns.ops.best_match(T(2, 3), T(2, 2, **BOOL), T(4, 3))),
    ("candidates", ValueError, lambda: pns.ops.best_match(T(2, 3), T(2, 3, **BOOL), T(4, 2))),
    ("available", ValueError, lambda: pns.ops.best_match(T(2, 3), T(2, 3, **BOOL), T(4, 3), T(3, **BOOL))),
    ("target", ValueError, lambda: pns.ops.best_match(torch.tensor([[NAN]]), T(1, 1, **BOOL), T(1, 1))),
    ("x", ValueError, lambda: pns.ops.masked_linear(T(4, 3), T(5, 2), T(5, 2, **BOOL))),
    ("x", ValueError, lambda: pns.ops.masked_linear(T(2, 4, 3), T(3, 5, 3), T(3, 5, 3, **BOOL))),
    ("weight", TypeError, lambda: pns.ops.masked_linear(T(4, 3), T(5, 3).half(), T(5, 3, **BOOL))),
    ("weight", TypeError, lambda: pns.ops.masked_linear(T(4, 3), T(5, 3).double(), T(5, 3, **BOOL))),
    ("weight", ValueError, lambda: pns.ops.masked_linear(T(4, 3), T(5, 3, device="meta"), T(5, 3, **BOOL))),
    ("mask", ValueError, lambda: pns.ops.masked_linear(T(4, 3), T(5, 3), T(5, 2, **BOOL))),
    ("mask", TypeError, lambda: pns.ops.masked_linear(T(4, 3), T(5, 3), T(5, 3, dtype=torch.int64))),
    ("bias", ValueError, lambda: pns.ops.masked_linear(T(4, 3), T(5, 3), T(5, 3, **BOOL), T(4))),
    ("keep", ValueError, lambda: pns.ops.supermask(T(3), 4)),
    ("parameters", ValueError, lambda: trainer(widths=[2, 4, 2])),
    ("widths", ValueError, lambda: trainer(widths=[2])),
    ("loss", ValueError, lambda: trainer(loss="hinge")),
    ("optimizer", ValueError, lambda: trainer(optimizer="rmsprop")),
    ("y_train", ValueError, lambda: trainer(y_train=torch.full((1, 8), 2))),
    ("y_train", TypeError, lambda: trainer(y_train=F(1, 8))),
    ("x_train", ValueError, lambda: trainer(x_train=F(1, 8, 3))),
    ("dataset", ValueError, lambda: trainer(dataset=torch.tensor([1]))),
    ("epochs", ValueError, lambda: trainer(epochs=-1)),
    ("batch_size", ValueError, lambda: trainer(batch_size=0)),
    ("schedule", ValueError, lambda: trainer(schedule="linear")),
    ("step_epochs", ValueError, lambda: trainer(schedule="step", step_epochs=0)),
    ("gamma", ValueError, lambda: trainer(schedule="step", gamma=NAN)),
    ("gamma", ValueError, lambda: trainer(schedule="step", gamma=-0.1)),
    ("progress", TypeError, lambda: trainer(progress=1)),
    ("name", ValueError, lambda: pns.tasks.get("square")),
    ("noise", ValueError, lambda: pns.tasks.get("circle", noise=-0.1)),
    ("depth", ValueError, lambda: pns.tasks.get("circle").ticket(2)),
    ("n", ValueError, lambda: pns.tasks.get("relu").sample(n=0)),
    ("widths", ValueError, lambda: pns.init_population((2, 0, 4))),
    ("scheme", ValueError, lambda: pns.init_population((2, 3, 4), scheme="orthogonal")),
    ("seed", ValueError, lambda: pns.init_population((2, 3, 4), n=3, seed=[1, 2])),
    ("seed", ValueError, lambda: pns.init_population((2, 3, 4), seed=-1)),
    (
        "ticket",
        ValueError,
        lambda: pns.plant(pns.tasks.get("circle").ticket(4), population()),
    ),  # 20 knots, width 8
    (
        "ticket",
        ValueError,
        lambda: pns.plant(pns.tasks.get("circle").ticket(6), population(widths=(2, 99, 99, 4))),
    ),
    (
        "ticket",
        ValueError,
        lambda: pns.plant(pns.tasks.get("relu").ticket(4), population()),
    ),  # 1 input, not 2
    ("rule", ValueError, lambda: pns.plant([(T(4, 2), T(4))], population(widths=(2, 4)), rule="other")),
    (
        "assignment",
        ValueError,
        lambda: pns.plant([(T(4, 2), T(4))], population(widths=(2, 4)), assignment="best"),
    ),
    ("pruner", ValueError, lambda: pns.prune(population(), "movement", 0.1)),
    ("density", ValueError, lambda: pns.prune(population(), "magnitude", 1.2)),
    ("density", ValueError, lambda: pns.prune(population(), "magnitude", NAN)),
    ("batch", ValueError, lambda: pns.prune(population(), "snip", 0.1)),
    ("scope", ValueError, lambda: pns.prune(population(), "magnitude", 0.1, scope="channel")),
    ("masks", ValueError, lambda: pns.prune(population(), "magnitude", 0.1, masks=masks(widths=(2, 8, 4)))),
    (
        "batch",
        ValueError,
        lambda: pns.prune(population(), "snip", 0.1, batch=(T(40, 3), F(40, dtype=torch.int64))),
    ),
    ("masks", ValueError, lambda: pns.train(population(), masks(n=3), circle())),
    ("data", TypeError, lambda: pns.train(population(), masks(), "circle")),
    ("data", ValueError, lambda: pns.train(population(), masks(), [circle()])),
    ("data", ValueError, lambda: pns.train(population(), masks(), pns.tasks.get("relu").sample(n=60))),
    ("epochs", ValueError, lambda: pns.train(population(), masks(), circle(), epochs=-1)),
    ("batch_size", ValueError, lambda: pns.train(population(), masks(), circle(), batch_size=0)),
    ("density", ValueError, lambda: pns.edge_popup(population(), circle(), 0.0)),
    ("progress", TypeError, lambda: pns.train(population(), masks(), circle(), progress="bar")),
    ("progress", TypeError, lambda: pns.edge_popup(population(), circle(), 0.5, progress="bar")),
    ("progress", TypeError, lambda: pns.multishot(population(), "random", 0.5, circle(), progress="bar")),
    ("lr", ValueError, lambda: pns.Adam(lr=NAN)),
    ("step_epochs", ValueError, lambda: pns.Adam(schedule="step", step_epochs=0)),
    ("gamma", ValueError, lambda: pns.SGD(schedule="step", gamma=NAN)),
    ("pruner", ValueError, lambda: pns.multishot(population(), "movement", 0.1, circle())),
    ("rewind", ValueError, lambda: pns.multishot(population(), "random", 0.1, circle(), rewind="late")),
    ("rewind_epochs", ValueError, lambda: pns.multishot(population(), "random", 0.1, circle(), rewind_epochs=1)),
    ("density", ValueError, lambda: pns.pruners.allocate([[(3, 2), (3,)]], 0.0, "erk")),
    ("scope", ValueError, lambda: pns.pruners.allocate([[(3, 2), (3,)]], 0.5, "filter")),
    ("revives", TypeError, lambda: pns.pruners.register("new", revives="yes")),
    ("plugin", ValueError, lambda: sweeps.load_plugins(["no_such_module_of_anybody"])),
    ("masks", ValueError, lambda: pns.recovery(masks(n=3), masks(n=2))),
    ("x", ValueError, lambda: population().forward(T(5, 3))),
    ("keep", ValueError, lambda: pns.ops.topk_mask(T(3), 10**30)),
    ("keep", ValueError, lambda: pns.ops.topk_mask([T(3)], -(10**30))),
    ("keep", ValueError, lambda: pns.ops.supermask(T(3), 10**30)),
    ("k", ValueError, lambda: pns.ops.kth_largest(T(3), 10**30)),
    ("weights", TypeError, lambda: pns.Population(None, None)),
    ("population", TypeError, lambda: pns.Masks.full(None)),
    ("device", ValueError, lambda: population().to("gpu")),
    ("device", ValueError, lambda: masks().to(1.5)),
    ("indices", TypeError, lambda: population().select(slice(1))),
    ("indices", TypeError, lambda: population().select("0")),
    ("model", ValueError, lambda: pns.train_module(torch.nn.Linear(2, 4).requires_grad_(False), None, circle())),
    ("n", ValueError, lambda: pns.tasks.get("relu").sample(n=10**30)),
    ("epochs", ValueError, lambda: pns.train(population(), None, circle(), epochs=10**30)),
    ("batch_size", ValueError, lambda: pns.train(population(), None, circle(), batch_size=10**30)),
    ("population", TypeError, lambda: pns.train(population().to(dtype=torch.float64), None, circle())),
    ("pruner", TypeError, lambda: pns.prune(population(), None, 0.1)),
    ("loss_fn", TypeError, lambda: pns.prune_module(torch.nn.Linear(2, 4), "snip", 0.5, batch(), "mse")),
    ("ignore", TypeError, lambda: pns.prune_module(torch.nn.Linear(2, 4), "magnitude", 0.5, ignore=None)),
    ("seeds", TypeError, lambda: sweeps.expand("singleshot", seeds=3)),
    ("noises", TypeError, lambda: sweeps.expand("singleshot", noises=0.1)),
    ("lr", ValueError, lambda: sweeps.expand("singleshot", lr="0.1")),
]


@pytest.mark.parametrize(
    ("argument", "error", "call"),
    WRONG_CALLS,
    ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(WRONG_CALLS)],
)
def test_the_error_names_the_argument(argument, error, call):
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) in (ValueError, TypeError)
    assert argument in str(caught.value), str(caught.value)


def small_sweep(store):
    cells = sweeps.expand(
        "singleshot",
        ["relu"],
        ["random"],
        [0.5],
        seeds=range(2),
        depths=[3],
        widths=[4],
        n_samples=100,
        epochs=1,
    )
    return sweeps.run(cells, store)


def rows(store):
    with sqlite3.connect(store) as db:
        return db.execute("SELECT key, name, value FROM metric ORDER BY key, name").fetchall()


def test_a_store_from_another_version_is_refused_and_keeps_every_row(tmp_path):
    store = tmp_path / "results.db"
    small_sweep(store)
    with sqlite3.connect(store) as db:
        db.execute("UPDATE meta SET value = '999' WHERE name = 'schema_version'")
    before = rows(store)
    with pytest.raises(ValueError, match="schema version 999"):
        small_sweep(store)
    assert rows(store) == before
    assert len(before) > 0


def test_a_file_that_is_no_store_is_refused_and_kept(tmp_path):
    store = tmp_path / "notes.txt"
    store.write_text("not a database, but somebody's notes\n" * 100)
    before = store.read_bytes()
    with pytest.raises(ValueError, match=r"notes\.txt"):
        small_sweep(store)
    assert store.read_bytes() == before


def test_an_unwritable_place_is_an_oserror(tmp_path):
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file" / "results.db", tmp_path / "missing" / "results.db", tmp_path):
        with pytest.raises(OSError, match="store"):
            small_sweep(store)
