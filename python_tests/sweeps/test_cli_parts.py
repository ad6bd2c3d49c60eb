"""The command line's workers, shards, merge and status."""

import os
import re

import pytest

from pns_fast import sweeps
from pns_fast.cli import main

SMALL = ["--task=relu", "--depth=3", "--width=8", "--samples=100", "--epochs=1", "--seeds=3", "--pruner=random,snip"]
SMALL += ["--density=ticket,0.5"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shards_have_stores_of_their_own_which_merge(here, capsys):
    for k in (1, 2):
        assert main(["sweep", "singleshot", *SMALL, f"--shard={k}/2", "--quiet"]) == 0
    assert sorted(os.listdir(here)) == ["pns-singleshot-1of2.db", "pns-singleshot-2of2.db"]
    assert main(["sweep", "merge", *sorted(os.listdir(here)), "-o", "pns-singleshot.db"]) == 0
    assert capsys.readouterr().out == (
        "pns-singleshot-1of2.db: 8 new, 0 in the place of failed ones, 0 known\n"
        "pns-singleshot-2of2.db: 4 new, 0 in the place of failed ones, 0 known\n"
    )
    assert main(["sweep", "singleshot", *SMALL, "--dry-run"]) == 0
    assert capsys.readouterr().out == "12 cells: 12 done, 0 failed, 0 to run\n"
    assert [run["asked"]["shard"] for run in sweeps.runs("pns-singleshot.db")] == [[1, 2], [2, 2]]


def test_a_shard_of_a_figure_draws_nothing(here, capsys):
    argv = ["reproduce", "fig10", "--quick", "--seeds=2", "--shard=2/2"]
    assert main([*argv, "--dry-run"]) == 0
    assert capsys.readouterr().out == "fig10  10 cells: 0 done, 0 failed, 10 to run\n"
    assert main(argv) == 0
    assert os.listdir(here / "paper-quick") == ["paper-2of2.db"]
    assert main(["sweep", "merge", "paper-quick/paper-2of2.db", "-o", "paper-quick/paper.db"]) == 0
    assert main([*argv[:-1], "--quiet"]) == 0
    assert sorted(os.listdir(here / "paper-quick")) == [
        *("fig10-layers.pdf", "fig10-layers.png", "fig10-recovery.pdf", "fig10-recovery.png"),
        *("fig10.csv", "fig10.pdf", "fig10.png", "paper-2of2.db", "paper.db", "results.md"),
    ]


def test_an_empty_shard_is_no_error(here):
    assert main(["sweep", "singleshot", *SMALL, "--shard=4/4"]) == 0


def test_status(here, capsys):
    assert main(["sweep", "singleshot", *SMALL, "--quiet"]) == 0
    assert main(["sweep", "status", "pns-singleshot.db"]) == 0
    counts, mode, run = capsys.readouterr().out.splitlines()
    assert (counts, mode) == ("12 cells", "  singleshot relu: 12 ok, 0 failed")
    assert re.fullmatch(r"run 1: \d{4}-.* on .*, serial, workers 1, 12 cells stored, [\d.]+ s", run)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--shard=0/4"], "argument --shard: expected K/N with K from 1 to N, such as 2/8, got '0/4'"),
        (["--shard=5/4"], "argument --shard: expected K/N with K from 1 to N"),
        (["--shard=4"], "argument --shard: expected K/N with K from 1 to N"),
        (["--shard=1/2", "--csv=x.csv"], "argument --shard: has a part of the networks only"),
        (["--workers=0"], "workers: expected a positive integer, got 0"),
        (["--workers=2", "--threads=2"], "argument --threads: a worker has one"),
        (["--workers=2", "--scheduler=tcp://127.0.0.1:1"], "argument --workers: those of --scheduler are used"),
    ],
)
def test_errors_are_one_line(here, capsys, argv, message):
    assert main(["sweep", "singleshot", *SMALL, *argv]) == 2
    assert capsys.readouterr().err.startswith(f"pns-fast: error: {message}")
    assert os.listdir(here) == []
