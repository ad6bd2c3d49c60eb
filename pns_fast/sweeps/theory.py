"""``pns-fast theory``: Lemma 1 and Theorem 2 of a task's ticket as tables, beside what a search finds; the figure."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import tasks, theory
from .figures import save
from .table import print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

_CURVES = (4.0, 2.0, 1.0, 0.5, 0.25)  # of the figure: times eps
_COLOURS = ("#9ecae1", "#57a0ce", "#d62728", "#2171b5", "#08306b")
_POINTS = 300  # of a curve
_NORMS = {"max": "the largest entry, as printed", "spectral": "the largest singular value"}


@dataclass(frozen=True)
class Evaluated:
    """A ticket's terms and the bounds at some widths, as asked for on the command line."""

    task: str
    ticket: tasks.Ticket
    eps: float
    probability: float
    widths: tuple[int, ...]
    init: str
    options: dict[str, str]  # norm, output
    terms: list[theory.LayerTerms]
    layer_widths: list[int | float]
    needed: int | float
    needed_exact: int | float
    n_simulated: int
    found: dict[str, list[theory.Simulation]]  # scaling -> one a width; empty if nothing was simulated

    def mother(self, width: int) -> tuple[int, ...]:
        """The widths of a random network: all layers but the input have ``width`` neurons."""
        return (self.ticket.widths[0], *[width] * (len(self.ticket.widths) - 1))

    def bound(self, width: int, eps: float | None = None, match: str = "printed") -> float:
        """Theorem 2's bound at a width."""
        eps = self.eps if eps is None else eps
        return theory.existence_probability(
            self.ticket, self.mother(width), eps, self.init, match=match, **self.options
        )


def evaluate(
    task: str,
    depth: int,
    eps: float,
    probability: float,
    widths: Sequence[int],
    init: str = "uniform",
    norm: str = "max",
    output: str = "matched",
    n: int = 0,
    seed: int = 0,
) -> Evaluated:
    """Everything that :func:`print_evaluated` prints; ``n`` random networks are searched at each width, 0 for none.

    Raises:
        ValueError: what :mod:`pns_fast.theory` refuses, an unknown task, or a width below the ticket's.

    Example:
        >>> evaluate("relu", 5, 0.1, 0.9, [100]).needed
        302
    """
    ticket, options = tasks.get(task).ticket(depth), {"norm": norm, "output": output}
    evaluated = Evaluated(
        task, ticket, eps, probability, tuple(widths), init, options,
        terms=theory.layer_terms(ticket, eps, norm=norm),
        layer_widths=theory.layer_widths(ticket, probability, eps, init, **options),
        needed=theory.required_width(ticket, probability, eps, init, **options),
        needed_exact=theory.required_width(ticket, probability, eps, init, match="exact", **options),
        n_simulated=n,
        found={},
    )  # fmt: skip
    for width in widths:
        evaluated.bound(width)  # a width that does not fit is told before the others are searched
    for scaling in ("network", "neuron") if n else ():
        evaluated.found[scaling] = [
            theory.simulate(ticket, evaluated.mother(w), eps, init, n=n, seed=seed, scaling=scaling, **options)
            for w in widths
        ]
    return evaluated


def print_evaluated(evaluated: Evaluated) -> None:
    """The layers, the width needed, where the theorem's assumption fails, and the bound at each width."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(
        f"[bold]{evaluated.task}[/] ticket {evaluated.ticket.widths}, output off by at most {evaluated.eps:g}; "
        f"|W| is {_NORMS[evaluated.options['norm']]}"
    )
    print_table(_layer_table(evaluated))
    trained = evaluated.options["output"] == "trained"
    console.print(
        f"width needed for probability {evaluated.probability:g}: [bold]{shown(evaluated.needed)}[/] in every layer"
        f"{', the last one trained' if trained else ', the last one included'}"
    )
    searched = evaluated.terms[:-1] if trained else evaluated.terms
    fails = [str(l) for l, terms in enumerate(searched, 1) if not terms.assumption_holds]
    if fails:
        exact = evaluated.needed_exact
        width = "no width is enough" if exact == math.inf else f"the width needed is [bold]{shown(exact)}[/]"
        console.print(
            f"[yellow]the theorem assumes |theta| <= 1 - eps_l, which fails in layer {', '.join(fails)}[/]; "
            f"by the exact match probabilities {width}"
        )
    searched = f"; found in {evaluated.n_simulated:,} networks" if evaluated.n_simulated else ""
    console.print(f"\nprobability that a network of {evaluated.init} parameters contains the ticket{searched}")
    print_table(_width_table(evaluated))


def _layer_table(evaluated: Evaluated) -> Table:
    names = (
        "layer",
        "neurons",
        "parameters k",
        "sup |x|_1",
        "|W|",
        "eps_l",
        "max |theta|",
        "<= 1 - eps_l",
        "width needed",
    )
    table = _table(names)
    needed = [*map(shown, evaluated.layer_widths), "trained"]  # the last is for a layer that has no width
    for l, (terms, width) in enumerate(zip(evaluated.terms, needed, strict=False), 1):
        fewest, most = min(terms.n_parameters), max(terms.n_parameters)
        table.add_row(
            str(l), str(len(terms.n_parameters)), f"{fewest}" if fewest == most else f"{fewest}-{most}",
            f"{terms.largest_input:.4g}", f"{terms.weight_norm:.4g}", f"{terms.error:.3g}",
            f"{terms.largest_parameter:.4g}", "yes" if terms.assumption_holds else "[yellow]no[/]", width,
        )  # fmt: skip
    return table


def _width_table(evaluated: Evaluated) -> Table:
    headers = {"network": "found, one scale", "neuron": "found, a scale a neuron"}
    matched = evaluated.options["output"] == "matched"
    n_outputs = evaluated.ticket.widths[-1]
    names = [
        "width",
        "bound",
        "exact bound",
        *([f"bound, {n_outputs} output{'s' * (n_outputs > 1)}"] if matched else []),
    ]
    table = _table([*names, *(headers[scaling] for scaling in evaluated.found)])
    for i, width in enumerate(evaluated.widths):
        bounds = [evaluated.bound(width), evaluated.bound(width, match="exact")]
        if matched:
            own = (*evaluated.mother(width)[:-1], n_outputs)
            bounds.append(
                theory.existence_probability(evaluated.ticket, own, evaluated.eps, evaluated.init, **evaluated.options)
            )
        searched = [found[i] for found in evaluated.found.values()]
        table.add_row(
            f"{width:,}",
            *(f"{p:.4g}" for p in bounds),
            *(f"{s.probability:.4g} ± {s.standard_error:.1g}" for s in searched),
        )
    return table


def _table(names: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for name in names:
        table.add_column(name, justify="right")
    return table


def shown(width: int | float) -> str:
    """A width of any size in a few characters.

    >>> shown(1234567), shown(3 * 10**400), shown(math.inf)
    ('1,234,567', '3e+400', 'never')
    """
    if width == math.inf:
        return "never"
    if width < 10**7:
        return f"{width:,}"
    exponent = int(math.log10(width))
    return f"{10 ** (math.log10(width) - exponent):.3g}e+{exponent}"


def save_theory_figure(evaluated: Evaluated, path: str | os.PathLike) -> None:
    """The bound against the width for some eps, with the width needed and, where simulated, what was found.

    Raises:
        ValueError: a suffix other than .png, .pdf or .svg.
        OSError: ``path`` cannot be written.
    """
    save(lambda: _figure(evaluated), path)


def _figure(evaluated: Evaluated) -> Figure:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5.6, 3.3), layout="constrained")
    ax = drawn.subplots()
    needed_by_eps = {}
    for factor, colour in zip(_CURVES, _COLOURS, strict=True):
        eps = factor * evaluated.eps
        arguments = (evaluated.ticket, evaluated.probability, eps, evaluated.init)
        needed_by_eps[eps] = (theory.required_width(*arguments, **evaluated.options), colour)
    # widths may be beyond floats, so the axis is that of their logarithms
    marked = [math.log10(n) for n in (*(n for n, _ in needed_by_eps.values()), *evaluated.widths)]
    low, high = math.log10(max(evaluated.ticket.widths[1:])), max(marked)
    high += max(0.3, 0.05 * (high - low))
    grid = [low + (high - low) * i / _POINTS for i in range(_POINTS + 1)]
    for eps, (needed, colour) in needed_by_eps.items():
        _curve(ax, evaluated, grid, eps, needed, colour)
    ax.axhline(evaluated.probability, color="black", linewidth=0.8, dashes=(4, 2.5), zorder=1)
    _found(ax, evaluated)
    ax.set(xlim=(low, high), ylim=(-0.02, 1.02), xlabel="width of the random network")
    ax.set_ylabel("probability that it contains the ticket")
    ax.set_title(f"{evaluated.task} ticket, depth {len(evaluated.ticket.widths)}, {evaluated.init} parameters")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.xaxis.set_major_formatter(lambda x, _: rf"$10^{{{x:g}}}$")
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    ax.set_axisbelow(True)
    drawn.legend(loc="outside right upper", frameon=False, title="Theorem 2 (width needed)", alignment="left")
    return drawn


def _curve(ax: Axes, evaluated: Evaluated, grid: list[float], eps: float, needed: int, colour: str) -> None:
    own = eps == evaluated.eps
    style = {"color": colour, "linewidth": 2.0 if own else 1.3, "zorder": 4 if own else 3}
    bounds = [evaluated.bound(_power_of_ten(x), eps) for x in grid]
    ax.plot(grid, bounds, label=rf"$\epsilon$ = {eps:g}  ({shown(needed)})", **style)
    ax.plot(math.log10(needed), evaluated.probability, "o", color=colour, markersize=4.6, zorder=5)
    if own and evaluated.needed_exact not in (evaluated.needed, math.inf):
        exact = [evaluated.bound(_power_of_ten(x), eps, "exact") for x in grid]
        label = f"exact match probability  ({shown(evaluated.needed_exact)})"
        ax.plot(grid, exact, label=label, **style, linestyle=(0, (4, 1.5)))


def _found(ax: Axes, evaluated: Evaluated) -> None:
    """What the search found, with three standard errors."""
    labels = {"network": ("s", "found, one scale"), "neuron": ("^", "found, a scale a neuron")}
    for scaling, simulations in evaluated.found.items():
        marker, label = labels[scaling]
        ax.errorbar(
            [math.log10(w) for w in evaluated.widths],
            [s.probability for s in simulations],
            [3 * s.standard_error for s in simulations],
            fmt=marker, color="#333333", markersize=4.6, linewidth=1, label=label, zorder=6,
        )  # fmt: skip


def _power_of_ten(x: float) -> int:
    """``10^x`` as an int, for any x >= 0."""
    whole = int(x)
    return max(1, round(10 ** (x - whole) * 10**15) * 10**whole // 10**15)
