"""Cells: stable, distinct keys and complete grids."""

from dataclasses import fields, replace

import pytest

from pns_fast import pruners
from pns_fast.sweeps import Cell, expand
from pns_fast.sweeps.grid import DEFAULTS, density_label

CELL = Cell("singleshot", "circle", 5, 100, 0.01, "snip", "0.1", 0.1, seed=3, scope="global", rounds=1)


def test_key_is_stable():
    # a store written yesterday must be found today: a change here needs a new SCHEMA_VERSION
    assert CELL.key == "18ee38a8ad92d03ef4c1b1236f38f8dba33e1f4129043be45cc6bbaadb252b24"


def test_key_depends_on_every_field():
    other = {int: 7, float: 0.5, str: "other", type(None): 7}
    keys = {CELL.key}
    for field in fields(Cell):
        keys.add(replace(CELL, **{field.name: other[type(getattr(CELL, field.name))]}).key)
    assert len(keys) == len(fields(Cell)) + 1


def test_numbers_have_one_spelling():
    assert replace(CELL, noise=0).key == replace(CELL, noise=0.0).key
    assert [density_label(d) for d in ("0.10", 0.1, "1.0", 1, "1e-3", "ticket")] == [
        *("0.1", "0.1", "1", "1", "0.001", "ticket")
    ]


def test_figure_3_has_1875_cells():
    cells = expand("singleshot")
    assert len(cells) == len({c.key for c in cells}) == 3 * 5 * 5 * 25
    assert {c.task for c in cells} == {"circle", "relu", "helix"}
    assert {c.pruner for c in cells} == set(pruners.PAPER) == {"random", "magnitude", "snip", "grasp", "synflow"}
    at_ticket = {c.task: c.density for c in cells if c.density_label == "ticket"}
    assert at_ticket == {"circle": 108 / 20_600, "relu": 4 / 20_200, "helix": 95 / 20_400}
    assert {(c.epochs, c.batch_size, c.lr, c.n_samples) for c in cells} == {(10, 32, 1e-3, 10_000)}


def test_any_registered_pruner_goes_by_its_name():
    cells = expand("singleshot", ["relu"], ["all", "phew", "snip"], [0.5], seeds=[0])
    assert [c.pruner for c in cells] == [*pruners.PAPER, "phew"]
    assert [c.pruner for c in expand("multishot", ["relu"], ["force"], [0.5], seeds=[0])] == ["force"]


def test_all_edge_popup_pruners():
    cells = expand("edge-popup", ["relu"], densities=[0.5], seeds=[4])
    assert [c.pruner for c in cells] == ["edge-popup", "edge-popup-anneal"]
    assert (cells[0].popup_epochs, cells[0].popup_lr, cells[0].rounds) == (10, 0.1, None)


def test_repetitions_count_once():
    cells = expand("singleshot", ["relu", "relu"], ["random"], ["0.1", 0.1, "0.10"], seeds=[0, 0])
    assert len(cells) == 1


def test_modes_know_the_settings_of_their_cells():
    names = {field.name for field in fields(Cell)}
    assert all(set(settings) <= names for settings in DEFAULTS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "oneshot"}, "mode: expected one of singleshot, multishot, edge-popup, got 'oneshot'"),
        ({"tasks": ["spiral"]}, "task: expected one of circle, relu, helix, all, got 'spiral'"),
        ({"pruners": ["edge-popup"]}, "pruner: expected one of random, .*, got 'edge-popup'"),
        ({"densities": [0]}, "density: expected 'ticket' or a number in"),
        ({"densities": [1.5]}, "density: .* got 1.5"),
        ({"densities": ["dense"]}, "density: .* got 'dense'"),
        ({"densities": [float("nan")]}, "density: .* got nan"),
        ({"densities": []}, "densities: expected at least one, got none"),
        ({"seeds": [-1]}, "seeds: expected an integer of at least 0, got -1"),
        ({"seeds": range(0)}, "seeds: expected at least one, got none"),
        ({"depths": [2]}, "depths: expected an integer of at least 3, got 2"),
        ({"widths": [2.5]}, "widths: expected an integer of at least 1, got 2.5"),
        ({"widths": [19]}, "widths: the circle ticket of depth 5 needs width 20, got 19"),
        ({"noises": [-1.0]}, "noise"),
        ({"round_epochs": 5}, "settings: singleshot knows .*, got round_epochs"),
        ({"epochs": -1}, "epochs: expected an integer of at least 0, got -1"),
        ({"batch_size": True}, "batch_size: expected an integer of at least 1, got True"),
        ({"n_samples": 20}, "n_samples: expected an integer of at least 50, got 20"),
        ({"lr": 0.0}, "lr: expected a positive number, got 0.0"),
        ({"lr": float("nan")}, "lr: expected a positive number, got nan"),
        ({"scope": "neuron"}, "scope: expected one of global, layer, erk, got 'neuron'"),
        ({"rewind": "init"}, "settings: singleshot knows .*, got rewind"),
        ({"mode": "multishot", "rewind": "theta"}, "rewind: expected one of init, weights, learning-rate, got 'theta'"),
        ({"mode": "multishot", "rewind_epochs": -1}, "rewind_epochs: expected an integer of at least 0, got -1"),
        ({"mode": "multishot", "rewind_epochs": 1}, "rewind_epochs: expected at most 0 for rewind 'init'"),
        ({"mode": "multishot", "rewind": "weights", "rewind_epochs": 6}, "rewind_epochs: expected at most 5 .*, got 6"),
        ({"scheme": "glorot"}, "scheme: expected one of he_scaled, uniform, got 'glorot'"),
        ({"assignment": "best"}, "assignment: expected one of greedy, optimal, got 'best'"),
    ],
)
def test_wrong_grids_say_what_is_accepted(arguments, message):
    with pytest.raises(ValueError, match=message):
        expand(**{"mode": "singleshot", "tasks": ["circle"], "seeds": [0], **arguments})
