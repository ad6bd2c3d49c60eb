"""The paper's claims beside what was measured: a table after each figure, and a page of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .claims import CLAIMS, FOUND_ACCURACY, FOUND_MSE, Claim, Results, Verdict, judged
from .paper import FIGURES, PaperFigure
from .summary import panels

if TYPE_CHECKING:
    from rich.table import Table

_HELD = {True: "yes", False: "**no**"}
_HEAD = f"""# The paper's figures on the planted tasks

Each figure as measured, with what the paper says about it (in our words; density is the kept fraction). A ticket counts
as found where the mean over the seeds reaches {FOUND_ACCURACY:.0%} accuracy, or a mean squared error, each output
rescaled, of at most {FOUND_MSE:g}, ten times the noise of the data. A strong ticket is judged after pruning, a weak one
after training.
"""
_QUICK = """
**A quick version: few seeds, samples, epochs and rounds. It shows that everything runs; its verdicts mean nothing.**
"""


def judge(records: Mapping[str, Sequence[dict]]) -> dict[str, list[tuple[Claim, Verdict | None]]]:
    """The claims about each figure with their verdicts.

    Args:
        records: name of a figure -> its cells, out of :func:`pns_fast.sweeps.read`.

    Returns:
        Name of each of these figures -> its claims, with None where networks of a claim are missing.
    """
    finished = {name: found for name, found in records.items() if any(r["status"] == "ok" for r in found)}
    results = Results({name: panels(found, FIGURES[name].by) for name, found in finished.items()})
    return {name: judged(CLAIMS.get(name, ()), results) for name in finished}


def claims_table(claims: Sequence[tuple[Claim, Verdict | None]]) -> Table:
    """For the terminal: what the paper says, what was measured, whether it held."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, ratio in (("the paper says", 4), ("measured", 6)):
        table.add_column(name, ratio=ratio)
    table.add_column("held", no_wrap=True)
    for claim, verdict in claims:
        if verdict is None:
            table.add_row(claim.says, "[dim]its networks have not been run[/]", "")
        else:
            table.add_row(claim.says, verdict.measured, "yes" if verdict.held else "[yellow]no[/]")
    return table


def write_page(
    records: Mapping[str, Sequence[dict]], path: Path, runs: Sequence[dict] = (), quick: bool = False
) -> Path:
    """Write the page: a section a figure with its pictures, which lie beside the page.

    Args:
        records: as in :func:`judge`.
        path: a Markdown file.
        runs: of the store, out of :func:`pns_fast.sweeps.runs`: what the networks ran on is said at the head.
        quick: say that the networks are those of ``--quick``.

    Returns:
        ``path``.
    """
    parts = [_HEAD + (_QUICK if quick else "")]
    for versions in dict.fromkeys(", ".join(f"{n} {v}" for n, v in run["versions"].items()) for run in runs):
        parts.append(f"Run with {versions}.\n")
    for name, claims in judge(records).items():
        parts.append(_section(name, FIGURES[name], records[name], claims, quick))
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _section(
    name: str,
    figure: PaperFigure,
    records: Sequence[dict],
    claims: Sequence[tuple[Claim, Verdict | None]],
    quick: bool,
) -> str:
    n_ok = sum(r["status"] == "ok" for r in records)
    command = f"pns-fast reproduce {name}{' --quick' if quick else ''}"
    lines = [f"## Figure {name.removeprefix('fig')}: {figure.title}", "", f"![{figure.title}]({name}.png)", ""]
    truth = f"Planted parameters found: [overall]({name}-recovery.png), [by layer]({name}-layers.png)."
    lines += [f"`{command}`: {n_ok:,} networks. {truth}", ""]
    lines += ["| the paper says | measured | held |", "|---|---|---|"]
    known = [(claim, verdict) for claim, verdict in claims if verdict is not None]
    lines += [f"| {claim.says} | {verdict.measured} | {_HELD[verdict.held]} |" for claim, verdict in known]
    reasons = [(claim, claim.why) for claim, verdict in known if not verdict.held and claim.why]
    for claim, why in reasons:
        lines += ["", f"*{claim.says}* {why}"]
    return "\n".join([*lines, ""])
