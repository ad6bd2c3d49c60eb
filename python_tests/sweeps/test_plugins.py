"""Pruners of a user's own in sweeps: from a file, from a module, on the command line and in another process."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest

from pns_fast import pruners, sweeps
from pns_fast.cli import main
from pns_fast.pruners import registry

CODE = """
import pns_fast as pns

@pns.pruners.register("{name}")
def largest_first(problem):
    return [p.abs() for p in problem.parameters]
"""
SMALL = [
    "--task=relu",
    "--depth=3",
    "--width=8",
    "--samples=100",
    "--epochs=1",
    "--seeds=2",
    "--density=0.3",
    "--quiet",
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("_PRUNERS", "_REVIVING"):
        monkeypatch.setattr(registry, name, getattr(registry, name).copy())
    return tmp_path


def test_a_file_is_imported_once_and_told_by_its_absolute_path(here):
    (here / "mine.py").write_text(CODE.format(name="mine"))
    assert sweeps.load_plugins(["mine.py"]) == [str(here / "mine.py")] == sweeps.load_plugins([str(here / "mine.py")])
    assert pruners.names()[-1] == "mine"
    (cell,) = sweeps.expand("singleshot", ["relu"], ["mine"], [0.5], [0])
    assert cell.pruner == "mine"
    assert "mine" not in {c.pruner for c in sweeps.expand("singleshot")}


def test_a_module_is_imported_by_its_name(here, monkeypatch):
    (here / "pruners_of_mine.py").write_text(CODE.format(name="of-a-module"))
    monkeypatch.syspath_prepend(here)
    assert sweeps.load_plugins(["pruners_of_mine"]) == ["pruners_of_mine"]
    assert pruners.names()[-1] == "of-a-module"


def test_files_of_one_name_are_two_plugins(here):
    for folder in ("a", "b"):
        (here / folder).mkdir()
        (here / folder / "mine.py").write_text(CODE.format(name=f"of-{folder}"))
    sweeps.load_plugins(["a/mine.py", "b/mine.py"])
    assert pruners.names()[-2:] == ["of-a", "of-b"]


def test_a_sweep_runs_notes_and_resumes_it(here):
    (here / "mine.py").write_text(CODE.format(name="mine"))
    argv = ["sweep", "singleshot", *SMALL, "--plugin=mine.py", "--pruner=magnitude,mine", "--store=s.db"]
    assert main([*argv, "--figure=f.png"]) == 0
    found = {(r["pruner"], r["seed"]): r["weak_loss"] for r in sweeps.read("s.db") if r["status"] == "ok"}
    assert len(found) == 4
    assert all(found["mine", seed] == found["magnitude", seed] for seed in (0, 1))
    with sqlite3.connect("s.db") as store:
        (asked,) = store.execute("SELECT asked FROM run").fetchone()
    assert json.loads(asked)["plugin"] == [str(here / "mine.py")]

    module = [sys.executable, "-m", "pns_fast"]  # a process that has not seen it
    again = subprocess.run([*module, *argv, "--dry-run"], capture_output=True, text=True, env=os.environ, check=True)
    assert again.stdout == "4 cells: 4 done, 0 failed, 0 to run\n"


def test_multishot_takes_plugins_and_a_config_names_them(here, capsys):
    (here / "mine.py").write_text(CODE.format(name="mine"))
    argv = ["sweep", "multishot", *SMALL, "--plugin=mine.py", "--pruner=mine", "--rounds=1", "--round-epochs=1"]
    assert main([*argv, "--print-config"]) == 0
    text = capsys.readouterr().out
    assert 'plugin = ["mine.py"]\n' in text
    (here / "m.toml").write_text(text)
    assert main(["sweep", "multishot", "--config=m.toml", "--quiet"]) == 0
    assert {r["pruner"] for r in sweeps.read("pns-multishot.db")} == {"mine"}


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("missing.py", "No such file or directory: "),
        ("no_such_module_at_all", "plugin no_such_module_at_all: ModuleNotFoundError: "),
        ("broken.py", "broken.py: ZeroDivisionError: division by zero"),
        ("taken.py", "taken.py: ValueError: name: a pruner 'snip' is registered already"),
    ],
)
def test_what_cannot_be_imported_is_one_line(here, capsys, plugin, message):
    (here / "broken.py").write_text("1 / 0")
    (here / "taken.py").write_text(CODE.format(name="snip"))
    assert main(["sweep", "singleshot", *SMALL, f"--plugin={plugin}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pns-fast: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_edge_popup_takes_no_plugins(capsys):
    assert main(["sweep", "edge-popup", *SMALL, "--plugin=mine.py"]) == 2
    assert "unrecognized arguments: --plugin=mine.py" in capsys.readouterr().err


def test_workers_load_it_too(here):
    (here / "mine.py").write_text(CODE.format(name="for-workers"))
    command = ["sweep", "singleshot", "--plugin", "mine.py", "--pruner", "for-workers", "--workers", "1", *SMALL]
    assert main([*command, "--store", "x.db"]) == 0
    assert {r["status"] for r in sweeps.read("x.db")} == {"ok"}
