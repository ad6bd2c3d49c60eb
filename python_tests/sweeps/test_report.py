"""The report: complete, balanced, escaped, offline, and its commands are those that made the store."""

import os
import re
import shlex
from html.parser import HTMLParser

import pytest

from pns_fast import pruners, sweeps
from pns_fast.cli import _parser, main
from pns_fast.sweeps import rerun
from pns_fast.sweeps.report import report

SMALL = ["--task=circle,relu", "--pruner=random,snip", "--depth=3", "--width=32", "--samples=100", "--epochs=1"]
SMALL += ["--seeds=2", "--density=ticket,0.5", "--quiet"]
VOID = {"meta", "img", "br"}
EVIL = "</pre><script>alert('x')</script>&amp;"


class Page(HTMLParser):
    """Text by tag, attributes by tag; an error where tags are not balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.tags = [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def failing(monkeypatch):
    score = pruners.score

    def failing_score(population, name, batch, loss, seeds):
        if name == "snip" and 1 in seeds:
            raise FloatingPointError(f"scores of seed 1 {EVIL}")
        return score(population, name, batch, loss, seeds)

    monkeypatch.setattr(pruners, "score", failing_score)


def test_a_store_of_several_modes_and_settings(here, failing, capsys):
    assert main(["sweep", "singleshot", *SMALL, "--store=s.db"]) == 1
    assert main(["sweep", "singleshot", *SMALL, "--store=s.db", "--depth=4", "--rounds=2", "--pruner=synflow"]) == 0
    assert main(["sweep", "edge-popup", *SMALL, "--store=s.db", "--pruner=all", "--popup-epochs=1"]) == 0
    capsys.readouterr()
    assert main(["report", "s.db", "-o", "r.html", f"--title=A & B {EVIL}"]) == 0
    assert re.fullmatch(r"report  r.html \(\d\.\d MB\)\n", capsys.readouterr().out)
    text = (here / "r.html").read_text()
    page = Page(text)
    titles = page.texts["h2"]
    assert titles == [
        "Single-shot, depth 3, width 32, noise 0.01, n_samples 100, epochs 1",
        "Single-shot, depth 4, width 32, noise 0.01, n_samples 100, epochs 1, rounds 2",
        "Edge-popup, depth 3, width 32, noise 0.01, n_samples 100, epochs 1, popup_epochs 1",
        *("All numbers", "Failed: 4", "Runs", "Where the time went", "Run it again"),
    ]
    assert page.texts["h3"] == ["Performance", "What was found of the ticket", "By layer"] * 3
    anchors = [a["href"] for a in page.all("a")]
    assert {a.removeprefix("#") for a in anchors} == {h["id"] for h in page.all("h2")}
    images = page.all("img")
    assert len(images) == 9
    assert all(i["src"].startswith("data:image/png;base64,iVBOR") and i["alt"] for i in images)
    assert page.texts["title"] == page.texts["h1"] == [f"A & B {EVIL}"]
    assert len(text) < 3_000_000

    # offline, and nothing of the store became markup
    assert not re.search(r"(src|href)=\"(?!data:|#)|https?://|@import|url\(", text)
    assert [name for name, _ in page.tags].count("script") == 1
    assert "alert" not in "".join(page.texts["script"])

    (failure,) = page.texts["code"]
    assert failure == f"FloatingPointError: scores of seed 1 {EVIL}"
    assert len(page.all("details")) == 1  # one traceback, four networks
    traceback = next(t for t in page.texts["pre"] if t.startswith("Traceback"))
    assert traceback.endswith(failure)
    (cells,) = [t for t in page.texts["pre"] if t.startswith("singleshot, circle")]
    assert len(cells.splitlines()) == 4
    assert "snip, density ticket, seed 1: " in cells


def rows_of(text):
    """The sortable table: a dictionary of (text, data-v) a row."""
    table = re.search(r'<table class="sortable">.*?</table>', text, re.DOTALL).group()
    names = re.findall(r"<th[^>]*>(.*?)</th>", table)
    cells = [re.findall(r'<td(?: data-v="([^"]*)")?>(.*?)</td>', row) for row in table.split("<tr>")[2:]]
    return [dict(zip(names, [(content, v) for v, content in row], strict=True)) for row in cells]


def test_the_table_has_the_numbers_of_the_panels(here):
    main(["sweep", "singleshot", *SMALL, "--store=s.db"])
    rows = rows_of(report("s.db"))
    panels = sweeps.panels(sweeps.read("s.db"))
    assert len(rows) == 2 * 2 * 2
    assert [(r["task"][0], r["pruner"][0]) for r in rows] == [
        (task, pruner) for task in ("circle", "relu") for pruner in ("random", "snip") for _ in range(2)
    ]
    points = [p for panel in panels for points in panel.curves.values() for p in points]
    for row, point in zip(rows, points, strict=True):
        assert float(row["density"][1]) == point.density
        assert int(row["n"][1]) == 2
        assert float(row["weak"][1]) == point.weak.mean
        assert float(row["weak gap"][1]) == point.weak_gap.mean
        assert float(row["recall"][1]) == point.recall.mean
    circle, relu = rows[0], rows[-1]
    assert circle["metric"][0] == "accuracy, %"
    assert circle["weak"][0].startswith(f"{100 * points[0].weak.mean:.1f}<small>")
    assert relu["metric"][0] == "MSE, 1e-4"
    assert sum(row["density"][0].endswith(" (ticket)") for row in rows) == 4


def test_numbers_that_are_nan_have_no_place_in_the_order(here, record):
    main(["sweep", "singleshot", *SMALL, "--store=s.db", "--lr=1e30", "--density=1", "--pruner=random"])
    text = report("s.db")
    assert "4 diverged" in text
    assert {row["weak"] for row in rows_of(text)} == {("–", "")}


def test_the_same_store_gives_the_same_page(here):
    main(["sweep", "singleshot", *SMALL, "--store=s.db", "--task=relu"])
    assert (
        main(["report", "s.db", "-o", "a.html", "--quiet"]) == main(["report", "s.db", "-o", "b.html", "--quiet"]) == 0
    )
    assert (here / "a.html").read_bytes() == (here / "b.html").read_bytes()
    assert sorted(p.name for p in here.iterdir()) == ["a.html", "b.html", "s.db"]


def test_only_some_cells(here, capsys):
    main(["sweep", "singleshot", *SMALL, "--store=s.db"])
    assert main(["report", "s.db", "-o", "r.html", "--where=task=relu", "--where", "density_label=0.5", "--quiet"]) == 0
    text = (here / "r.html").read_text()
    assert {row["task"][0] for row in rows_of(text)} == {"relu"}
    assert "Only networks with task=relu, density_label=0.5." in text
    for argv, message in (
        (["s.db", "-o", "r.html", "--where=depth=9"], "store s.db: no cells that match"),
        (["s.db", "-o", "r.db"], "--output: expected a file name ending in .html or .htm, got 'r.db'"),
        (["s.db", "-o", "no/r.html"], "--output no/r.html: there is no directory no"),
        (["no.db", "-o", "r.html"], "store no.db: no such file"),
    ):
        assert main(["report", *argv]) == 2
        assert message in capsys.readouterr().err


COMMANDS = [
    ["sweep", "singleshot", *SMALL, "--store=a b.db", "--noise=0,0.1", "--first-seed=3", "--figure=it's.png"],
    ["sweep", "multishot", *SMALL, "--store=a b.db", "--rounds=1", "--round-epochs=1", "--lr=1e-05", "--scope=layer"],
    ["sweep", "edge-popup", *SMALL, "--store=a b.db", "--pruner=all", "--popup-epochs=1", "--threads=1", "--chunk=3"],
    ["reproduce", "fig12", "--quick", "--seeds=1", "--out=o", "--store=a b.db", "--quiet"],
]


def shown_commands(text):
    return [c for c in Page(text).texts["pre"] if c.startswith("pns-fast ")]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: argv[1])
def test_the_command_shown_is_the_one_that_was_run(here, capsys, argv):
    assert main(argv) == 0
    capsys.readouterr()
    if "reproduce" in argv:
        drawn = {f"fig12{what}{suffix}" for what in ("", "-recovery", "-layers") for suffix in (".png", ".pdf")}
        assert {p.name for p in (here / "o").iterdir()} >= drawn | {"fig12.csv"}
    (shown,) = shown_commands(report("a b.db"))
    program, *arguments = shlex.split(shown.replace("\\\n", " "))
    assert program == "pns-fast"
    given, again = vars(_parser().parse_args(argv)), vars(_parser().parse_args(arguments))
    ignored = {"quiet", "parser", "run"}  # parsers are made anew
    assert {k: v for k, v in again.items() if k not in ignored} == {k: v for k, v in given.items() if k not in ignored}
    assert main([*arguments, "--dry-run"]) == 0
    assert re.search(r"(\d+) cells: \1 done, 0 failed, 0 to run", capsys.readouterr().out)


def test_a_command_is_shown_once_and_python_has_none(here):
    argv = ["sweep", "singleshot", *SMALL, "--store=s.db", "--task=relu"]
    main(argv)
    sweeps.run(sweeps.expand("singleshot", ["relu"], ["random"], [0.5], [9], n_samples=50, epochs=0), "s.db")
    main(argv)
    text = report("s.db")
    assert len(shown_commands(text)) == 1
    page = Page(text)
    assert "Runs 1, 3:" in page.texts["p"]
    assert "Run 2: from Python (pns_fast.sweeps.run), no command line." in page.texts["p"]
    assert rerun.command({"cells": 3, "pending": 3}) is None


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        ({"executor": "serial", "workers": 1, "shard": None}, []),
        ({"executor": "local", "workers": 2, "shard": [3, 4]}, ["--workers=2", "--shard=3/4"]),
        ({"executor": "dask", "workers": 8}, []),
    ],
)
def test_where_it_ran_is_part_of_the_command_only_if_it_was_asked_for(noted, expected):
    assert rerun.command({"cells": 8, "mode": "singleshot", "seeds": 2, **noted}) == [
        *("sweep", "singleshot", "--seeds=2"),
        *expected,
    ]


def test_runs_are_read_as_they_were_noted(here):
    main(["sweep", "singleshot", *SMALL, "--store=s.db", "--task=relu"])
    with sweeps.Store("s.db") as store:
        store.begin_run({"torch": "x"}, {"note": 1})  # and killed
    first, killed = sweeps.runs("s.db")
    assert (first["n_cells"], first["asked"]["task"]) == (8, ["relu"])
    assert first["finished"] > first["started"]
    assert first["seconds"]["total"] > 0
    assert (killed["finished"], killed["seconds"], killed["n_cells"], killed["asked"]) == (None, None, 0, {"note": 1})
    text = report("s.db")
    assert "killed, or still running" in text
    assert "1 that did not end by themselves are not counted" in text


def test_a_file_name_that_is_no_text(here):
    """Linux takes any bytes, which Python reads as lone surrogates."""
    store, name = os.fsdecode(b"\xfc.db"), os.fsdecode(b"\xfc.html")
    assert main(["sweep", "singleshot", *SMALL, "--epochs=0", f"--store={store}"]) == 0
    assert main(["report", store, "-o", name, "--quiet"]) == 0
    assert "<h1>?.db</h1>" in (here / name).read_text(encoding="utf-8")
