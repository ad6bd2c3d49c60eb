"""The paper's figures on the planted tasks: which networks each one needs, and how it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .grid import DEFAULTS, Cell, expand

_ALL = ("circle", "relu", "helix")
_DENSITIES = ("ticket", 0.01, 0.1, 0.5, 1.0)
# What --quick puts in the place of the paper's settings: every figure in seconds, none of it to be trusted.
_QUICK = {"n_samples": 500, "epochs": 2, "round_epochs": 1, "popup_epochs": 2}
_QUICK_SEEDS, _QUICK_ROUNDS, _QUICK_WIDTH = 2, 3, 100


@dataclass(frozen=True)
class Grid:
    """One sweep of a figure; ``settings`` differ from the mode's defaults."""

    mode: str
    tasks: Sequence[str] = _ALL
    pruners: Sequence[str] = ("all",)
    densities: Sequence[str | float] = _DENSITIES
    n_seeds: int = 25
    depth: int = 5
    width: int = 100
    noises: Sequence[float] = (0.01,)
    settings: Mapping[str, object] = field(default_factory=dict)

    def cells(self, n_seeds: int | None = None, quick: bool = False) -> list[Cell]:
        """The cells: of ``n_seeds`` seeds if given, with less of everything if ``quick``."""
        settings, width = dict(self.settings), self.width
        if quick:
            settings |= {name: value for name, value in _QUICK.items() if name in DEFAULTS[self.mode]}
            rounds = {**DEFAULTS[self.mode], **settings}.get("rounds")
            if rounds is not None:
                settings["rounds"] = min(rounds, _QUICK_ROUNDS)
            width, n_seeds = min(width, _QUICK_WIDTH), n_seeds or _QUICK_SEEDS
        return expand(
            self.mode,
            self.tasks,
            self.pruners,
            self.densities,
            range(n_seeds or self.n_seeds),
            [self.depth],
            [width],
            self.noises,
            **settings,
        )


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper: its grids; ``by`` and ``show`` as in :func:`pns_fast.sweeps.figure`."""

    title: str
    grids: tuple[Grid, ...]
    by: str | None = None
    show: tuple[tuple[str, str], ...] | None = None

    def cells(self, n_seeds: int | None = None, quick: bool = False) -> list[Cell]:
        """The networks of all grids.

        Args:
            n_seeds: networks a point; None for the paper's number.
            quick: a small version: few seeds, samples, epochs and rounds, width 100 at most.
        """
        return [cell for grid in self.grids for cell in grid.cells(n_seeds, quick)]

    def save(self, records: Sequence[dict], path: Path) -> list[Path]:
        """Write the figure as ``path``.png and .pdf, its networks as .csv, and how much of the ticket they found as
        ``path``-recovery and ``path``-layers, .png and .pdf.

        Args:
            records: the cells as :func:`pns_fast.sweeps.read` gives them.
            path: without a suffix.

        Returns:
            The files written; no figure where no cell is finished.
        """
        from .figure_style import save
        from .figures import figure
        from .table import write_csv
        from .truth_figures import layers_figure, recovery_figure

        files = [path.with_suffix(".csv")]
        write_csv(records, files[0])
        if not any(r["status"] == "ok" for r in records):
            return files
        draws = {
            "": lambda: figure(records, self.by, self.show),
            "-recovery": lambda: recovery_figure(records, self.by),
            "-layers": lambda: layers_figure(records, self.by),
        }
        for what, draw in draws.items():
            drawn = [path.with_name(f"{path.name}{what}{suffix}") for suffix in (".png", ".pdf")]
            save(draw, *drawn)
            files += drawn
        return files


_CIRCLE_6 = {"tasks": ("circle",), "n_seeds": 10, "depth": 6}

FIGURES = {
    "fig3": PaperFigure(
        "Single-shot pruning, depth 5",
        (Grid("singleshot"),),
        show=(("circle", "strong"), ("circle", "weak"), ("relu", "weak"), ("helix", "weak")),
    ),
    "fig4": PaperFigure(
        "Multi-shot pruning and edge-popup, depth 5", (Grid("multishot", n_seeds=10), Grid("edge-popup", n_seeds=10))
    ),
    "fig6": PaperFigure("Single-shot pruning, depth 3", (Grid("singleshot", depth=3),)),
    "fig7": PaperFigure("Single-shot pruning, depth 5", (Grid("singleshot"),)),
    "fig8": PaperFigure("Single-shot pruning, depth 10", (Grid("singleshot", depth=10),)),
    "fig9": PaperFigure("Single-shot pruning, depth 6, width 1,000", (Grid("singleshot", width=1000, **_CIRCLE_6),)),
    "fig10": PaperFigure(
        "Single-shot SynFlow, 100 rounds of scoring",
        tuple(Grid("singleshot", pruners=("synflow",), settings={"rounds": n}, **_CIRCLE_6) for n in (100, 1)),
        by="rounds",
    ),
    "fig11": PaperFigure(
        "Multi-shot pruning under label noise", (Grid("multishot", noises=(0.0, 0.001, 0.01, 0.1), **_CIRCLE_6),)
    ),
    "fig12": PaperFigure(
        "Multi-shot GraSP, one density a layer",
        tuple(
            Grid(
                "multishot",
                tasks=("circle",),
                pruners=("grasp",),
                densities=(0.001, *_DENSITIES),
                n_seeds=10,
                settings={"scope": scope},
            )
            for scope in ("layer", "global")
        ),
        by="scope",
    ),
}
