"""Which networks a sweep has. A cell is one network, its key the hash of all that decides its numbers."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product

# Part of every key and of every store: raise it when the same parameters begin to mean other numbers.
SCHEMA_VERSION = 2

MODES = ("singleshot", "multishot", "edge-popup")
EDGE_POPUP_PRUNERS = ("edge-popup", "edge-popup-anneal")

_COMMON = {
    "n_samples": 10_000,
    "epochs": 10,
    "batch_size": 32,
    "lr": 1e-3,
    "scheme": "he_scaled",
    "assignment": "greedy",
}
# The paper's settings. A setting that a mode does not know is None in its cells and no part of their keys.
DEFAULTS = {
    "singleshot": {**_COMMON, "scope": "global", "rounds": 1},
    "multishot": {**_COMMON, "scope": "global", "rounds": 10, "round_epochs": 5, "rewind": "init", "rewind_epochs": 0},
    "edge-popup": {**_COMMON, "popup_epochs": 10, "popup_lr": 0.1},
}


@dataclass(frozen=True)
class Cell:
    """One network of a sweep: everything that its numbers depend on, and nothing else.

    ``rounds`` is the number of scorings (singleshot) or of {train, prune, rewind} (multishot). ``epochs`` are
    those of the final training, ``round_epochs`` of each multishot round, ``popup_epochs`` of the scores. ``rewind``
    and ``rewind_epochs`` are those of :func:`pns_fast.multishot`.

    Example:
        >>> cell = Cell("singleshot", "helix", 5, 100, 0.01, "snip", "0.1", 0.1, seed=3, epochs=10)
        >>> cell == Cell.from_dict(cell.params()), len(cell.key)
        (True, 64)
    """

    mode: str
    task: str
    depth: int
    width: int
    noise: float
    pruner: str
    density_label: str
    density: float
    seed: int
    n_samples: int = 10_000
    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3
    scheme: str = "he_scaled"
    assignment: str = "greedy"
    scope: str | None = None
    rounds: int | None = None
    round_epochs: int | None = None
    rewind: str | None = None
    rewind_epochs: int | None = None
    popup_epochs: int | None = None
    popup_lr: float | None = None

    def __post_init__(self):
        for name in _FLOATS:  # 0 and 0.0 are one noise level, so they must be one key
            value = getattr(self, name)
            if isinstance(value, int):
                object.__setattr__(self, name, float(value))

    def params(self) -> dict:
        """The fields as a dictionary, without the settings that this mode does not know."""
        return {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}

    @classmethod
    def from_dict(cls, params: dict) -> Cell:
        """The cell whose :meth:`params` are ``params``."""
        return cls(**params)

    @cached_property
    def key(self) -> str:
        """Hex sha256 of the canonical JSON of :meth:`params` and the schema version."""
        canonical = json.dumps(
            {"schema_version": SCHEMA_VERSION, **self.params()}, sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode()).hexdigest()


_FIELDS = tuple(field.name for field in fields(Cell))
_FLOATS = tuple(field.name for field in fields(Cell) if field.type.startswith("float"))


def expand(
    mode: str,
    tasks: Sequence[str] = ("all",),
    pruners: Sequence[str] = ("all",),
    densities: Sequence[str | float] = ("ticket", 0.01, 0.1, 0.5, 1.0),
    seeds: Sequence[int] = range(25),
    depths: Sequence[int] = (5,),
    widths: Sequence[int] = (100,),
    noises: Sequence[float] = (0.01,),
    **settings,
) -> list[Cell]:
    """All cells of a grid: the product of the lists, each with the same settings.

    Args:
        mode: "singleshot", "multishot" or "edge-popup".
        tasks, pruners: names, or "all". All pruners are the paper's five; any other registered one goes by its name.
        densities: fractions of parameters to keep, or "ticket" for that of the planted ticket.
        seeds: one network each; a seed decides mother network, data and batches.
        depths, widths, noises: architectures (depth counts input and output) and label noise.
        settings: replace the mode's defaults, see ``DEFAULTS``.

    Returns:
        The cells, ordered by task, depth, width, noise, pruner, seed, density.

    Raises:
        ValueError: an unknown name or setting, a value out of range, a mother network too narrow.

    Example:
        >>> cells = expand("singleshot", ["relu"], ["random"], ["ticket", 0.1], seeds=range(2))
        >>> [(c.seed, c.density_label, round(c.density, 6)) for c in cells]
        [(0, 'ticket', 0.000198), (0, '0.1', 0.1), (1, 'ticket', 0.000198), (1, '0.1', 0.1)]
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    unknown = sorted(set(settings) - set(DEFAULTS[mode]))
    if unknown:
        raise ValueError(f"settings: {mode} knows {', '.join(DEFAULTS[mode])}, got {', '.join(unknown)}")
    settings = {**DEFAULTS[mode], **settings}
    settings = _check_settings(settings)
    labels = _once("densities", [density_label(d) for d in densities])
    seeds, depths, widths = _once("seeds", seeds), _once("depths", depths), _once("widths", widths)
    depths, widths = [_check_int("depths", d, 3) for d in depths], [_check_int("widths", w, 1) for w in widths]
    seeds = [_check_int("seeds", seed, 0, most=2**63 - 1) for seed in seeds]
    tasks = _names("task", tasks, _task_names())
    pruners = _names("pruner", pruners, *_pruner_names(mode))
    cells = []
    for task, depth, width, noise in product(tasks, depths, widths, _once("noises", noises)):
        at_ticket, noise = _ticket_density(task, depth, width, noise), float(noise)
        for pruner, seed, label in product(pruners, seeds, labels):
            density = at_ticket if label == "ticket" else float(label)
            cells.append(Cell(mode, task, depth, width, noise, pruner, label, density, seed=seed, **settings))
    return cells


def density_label(density: str | float) -> str:
    """The one spelling of a density: "ticket" or the shortest number, so that 0.10 and "0.1" are one cell.

    Example:
        >>> density_label("0.10"), density_label(1.0), density_label("ticket")
        ('0.1', '1', 'ticket')
    """
    if density == "ticket":
        return "ticket"
    try:
        value = float(density)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value <= 1:
        raise ValueError(f"density: expected 'ticket' or a number in (0, 1], got {density!r}")
    return f"{value:.15g}"


def _ticket_density(task: str, depth: int, width: int, noise: float) -> float:
    """Kept weights of the task's ticket over the weights of the mother network, which must fit it."""
    from .. import tasks

    instance = tasks.get(task, noise=noise)
    ticket, mother = instance.ticket(depth), tuple(instance.widths(depth, width))
    if any(t > m for t, m in zip(ticket.widths, mother, strict=True)):
        raise ValueError(
            f"widths: the {task} ticket of depth {depth} needs width {max(ticket.widths[1:-1])}, got {width}"
        )
    return float(ticket.density(mother))


def _task_names() -> list[str]:
    from .. import tasks

    return list(tasks.names())


def _pruner_names(mode: str) -> tuple[list[str], Sequence[str]]:
    """Those accepted, and those that "all" stands for."""
    if mode == "edge-popup":
        return list(EDGE_POPUP_PRUNERS), EDGE_POPUP_PRUNERS
    from .. import pruners

    return pruners.names(), pruners.PAPER


def _names(what: str, given: Sequence[str], known: list[str], of_all: Sequence[str] | None = None) -> list[str]:
    """``given`` in order, "all" replaced by ``of_all``, which is all that is known if it is None."""
    of_all = known if of_all is None else of_all
    given = [name for g in given for name in (of_all if g == "all" else [g])]
    for name in given:
        if name not in known:
            raise ValueError(f"{what}: expected one of {', '.join([*known, 'all'])}, got {name!r}")
    return _once(what, given)


def _once(what: str, values: Sequence) -> list:
    """``values`` without repetitions, in order."""
    if not isinstance(values, Iterable):
        raise TypeError(f"{what}: expected a list, got {values!r}")
    values = list(dict.fromkeys(values))
    if not values:
        raise ValueError(f"{what}: expected at least one, got none")
    return values


def _check_int(name: str, value: object, least: int, most: int = 2**31 - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    if value > most:
        raise ValueError(f"{name}: expected an integer of at most {most}, got {value!r}")
    return int(value)


def _check_settings(settings: dict) -> dict:
    """``settings`` with Python's own numbers, which are what keys are made of."""
    from .. import pruners
    from ..training.multishot import check_rewind

    least = {"n_samples": 50, "epochs": 0, "batch_size": 1, "rounds": 1, "popup_epochs": 1}
    least |= {"round_epochs": 0, "rewind_epochs": 0}
    settings = dict(settings)
    for name, value in settings.items():
        if name in least:
            settings[name] = _check_int(name, value, least[name])
        if name in ("lr", "popup_lr"):
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
            settings[name] = float(value)
    choices = {
        "scope": pruners.SCOPES,
        "assignment": ("greedy", "optimal"),
        "scheme": ("he_scaled", "uniform"),
    }
    for name, accepted in choices.items():
        if name in settings and settings[name] not in accepted:
            raise ValueError(f"{name}: expected one of {', '.join(accepted)}, got {settings[name]!r}")
    if "rewind" in settings:
        check_rewind(*(settings[name] for name in ("rewind", "rewind_epochs", "round_epochs")))
    return settings
