"""The paper's claims: verdicts on made-up panels, and the page that `reproduce` writes."""

from __future__ import annotations

import re

import pytest

import pns_fast as pns
from pns_fast.sweeps.claims import CLAIMS, Results, judged
from pns_fast.sweeps.paper import FIGURES
from pns_fast.sweeps.results import judge, write_page
from pns_fast.sweeps.summary import Panel, Point, Spread

LABELS = {"ticket": 0.005, "0.01": 0.01, "0.1": 0.1, "0.5": 0.5, "1": 1.0}
PRUNERS = ("random", "magnitude", "snip", "grasp", "synflow")


def panel(task, curves, collapsed=(), noise=0.01):
    """``curves``: curve -> (strong, weak) or label -> (strong, weak)."""
    points = {}
    for name, values in curves.items():
        by_label = values if isinstance(values, dict) else dict.fromkeys(LABELS, values)
        points[name] = [
            Point(label, LABELS[label], 10, 10 if (name, label) in collapsed else 0, *(Spread(v, v, v) for v in pair))
            for label, pair in by_label.items()
        ]
    return Panel(task, 5, 100, noise, task == "circle", 10, 0.005, Spread(0.98, 0.98, 0.98), points)


def verdicts(figure, *panels, **others):
    found = judged(CLAIMS[figure], Results({figure: panels, **others}))
    return [None if verdict is None else verdict.held for _, verdict in found]


def single_shot(circle=0.95, relu=2e-4, helix=0.1, low=0.2):
    """As the paper has it: weak tickets of moderate density on Circle and ReLU, layers collapse below."""
    weak = {"circle": circle, "relu": relu, "helix": helix}
    strong = {"circle": 0.2, "relu": 0.1, "helix": 0.1}
    at_low = strong | {"circle": low}
    found = []
    for task in weak:
        curve = {d: (strong[task], at_low[task] if d in ("ticket", "0.01") else weak[task]) for d in LABELS}
        found.append(panel(task, dict.fromkeys(PRUNERS, curve), [(p, "0.01") for p in PRUNERS]))
    return found


def test_every_figure_has_claims():
    assert set(CLAIMS) == set(FIGURES)


def test_what_the_paper_saw_holds():
    assert verdicts("fig3", *single_shot()) == [True] * 4
    assert verdicts("fig7", *single_shot()) == [True]
    assert verdicts("fig8", *single_shot()) == [True]


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [({"circle": 0.8}, 0), ({"relu": 2e-3}, 0), ({"helix": 5e-4}, 1), ({"low": 0.95}, 2)],
)
def test_each_claim_can_fail(seen, wrong):
    assert verdicts("fig3", *single_shot(**seen)) == [i != wrong for i in range(4)]


def test_what_was_not_run_is_not_judged():
    assert verdicts("fig9") == [None]
    circle = single_shot()[0]
    assert verdicts("fig3", circle) == [None] * 4  # a claim about three tasks needs all of them
    assert verdicts("fig4", circle)[0] is None  # compares with single-shot


def test_edge_popup():
    peak = {"ticket": (0.2, 0.2), "0.01": (0.2, 0.2), "0.1": (0.5, 0.9), "0.5": (0.87, 0.95), "1": (0.2, 0.95)}
    curves = dict.fromkeys(PRUNERS, (0.2, 0.9)) | {"edge-popup": peak, "edge-popup-anneal": (0.76, 0.9)}
    by_text = {c.says: v for c, v in judged(CLAIMS["fig4"], Results({"fig4": [panel("circle", curves)]}))}
    (at_half,) = [v for says, v in by_text.items() if "density 0.5 on Circle" in says]
    (annealed,) = [v for says, v in by_text.items() if "annealing" in says]
    assert at_half.held
    assert "87.0% at 0.5" in at_half.measured
    assert annealed.held
    assert annealed.measured == "circle at 0.1: 76.0% annealed, 50.0% not"


def test_the_page_of_a_quick_run(tmp_path):
    from pns_fast.cli import main
    from pns_fast.sweeps import read

    assert main(["reproduce", "fig12", "--quick", "--quiet", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "results.md").read_text()
    assert "its verdicts mean nothing" in page
    assert f"Run with pns_fast {pns.__version__}, " in page
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == ["Figure 12: " + FIGURES["fig12"].title]
    assert all((tmp_path / name).exists() for name in re.findall(r"\]\((.*?)\)", page))
    records = {"fig12": read(tmp_path / "paper.db")}
    assert [v is not None for _, v in judge(records)["fig12"]] == [True]
    assert write_page({}, tmp_path / "empty.md").read_text().startswith("# The paper's figures")
