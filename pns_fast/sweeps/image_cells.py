"""Which networks the image experiment has, and where they are kept: a folder with one JSON file a finished network.

A store of its own, since a network here has no depth or noise, and tickets (safetensors) lie beside the numbers. A file
appears whole or not at all, and its name has the hash of all that decides its numbers: a run that was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

# Part of every key: raise it when the same parameters begin to mean other numbers.
VERSION = 1

PRUNERS = ("magnitude", "snip", "synflow", "random", "grasp")
POPUPS = ("edge-popup", "edge-popup-anneal")
WEAK_DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
POPUP_DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.5)
TICKET_PRUNER, TICKET_DENSITY = "synflow", 0.01
UNPRUNED = "none"  # the pruner of density 1, where all are the same network


@dataclass(frozen=True)
class Settings:
    """What all networks of an experiment share. ``digest`` is that of the images."""

    data: str
    digest: str
    model: str
    rounds: int
    round_epochs: int
    epochs: int
    popup_epochs: int
    batch_size: int
    lr: float = 1e-3
    popup_lr: float = 0.1


# How much of everything. Embedded images: the whole experiment on two cores in minutes. A data set from a folder: the
# rounds of the paper's multi-shot pruning, longer last trainings, for a GPU.
EMBEDDED = {
    "digits": {"rounds": 10, "round_epochs": 1, "epochs": 15, "popup_epochs": 20, "batch_size": 32},
    "mnist5k": {"rounds": 5, "round_epochs": 1, "epochs": 5, "popup_epochs": 6, "batch_size": 32},
}
FROM_FOLDER = {"rounds": 10, "round_epochs": 5, "epochs": 30, "popup_epochs": 30, "batch_size": 128}
QUICK = {"rounds": 5, "round_epochs": 1, "epochs": 1, "popup_epochs": 2, "batch_size": 32}
SEEDS = {"mnist5k": 1}  # of all others 3
# On the CPU, if not told otherwise: layers of 8 x 8 images are too small to share, and on a busy machine threads wait
# for each other (measured: an epoch of 0.3 s on one thread took 6 s on two).
THREADS = {"digits": 1}


@dataclass(frozen=True)
class ImageCell:
    """One network.

    ``weak``: pruned in rounds, then trained. ``planted``: the ticket of this seed planted in a fresh network.
    ``popup``: edge-popup in that network.
    """

    kind: str  # "weak" | "planted" | "popup"
    pruner: str
    density: float
    seed: int
    settings: Settings

    def params(self) -> dict:
        """All fields in one dictionary."""
        own = asdict(self)
        return {**own.pop("settings"), **own}

    @cached_property
    def key(self) -> str:
        """Hex sha256 of the canonical JSON of :meth:`params` and the version."""
        canonical = json.dumps({"version": VERSION, **self.params()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of its files: readable, and no other cell's."""
        return f"{self.kind}-{self.pruner}-{self.density:g}-seed{self.seed}-{self.key[:12]}"

    @property
    def is_ticket(self) -> bool:
        """Whether this network is what gets planted."""
        return (self.kind, self.pruner, self.density) == ("weak", TICKET_PRUNER, TICKET_DENSITY)


def ticket_cell(settings: Settings, seed: int) -> ImageCell:
    """The network that is planted for this seed."""
    return ImageCell("weak", TICKET_PRUNER, TICKET_DENSITY, seed, settings)


def image_cells(
    settings: Settings,
    n_seeds: int,
    pruners: Sequence[str] = PRUNERS,
    weak_densities: Sequence[float] = WEAK_DENSITIES,
    popup_densities: Sequence[float] = POPUP_DENSITIES,
) -> list[ImageCell]:
    """All networks, a seed after the other; tickets come before what is made of them.

    Example:
        >>> settings = Settings("digits", "", "vgg-small", **EMBEDDED["digits"])
        >>> len(image_cells(settings, n_seeds=3))  # 3 (5 * 5 + 1 weak, 1 planted, 2 * 5 edge-popup)
        111
    """
    cells = []
    for seed in range(n_seeds):
        points = [(p, d) for p in pruners for d in weak_densities if d < 1]
        points += [(UNPRUNED, 1.0)] if 1 in weak_densities else []
        cells += [ticket_cell(settings, seed), *(ImageCell("weak", p, d, seed, settings) for p, d in points)]
        cells.append(ImageCell("planted", TICKET_PRUNER, TICKET_DENSITY, seed, settings))
        cells += [ImageCell("popup", p, d, seed, settings) for p in POPUPS for d in popup_densities]
    return list(dict.fromkeys(cells))


class ImageStore:
    """The folder."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def status(self, cell: ImageCell) -> str | None:
        """ "ok", "failed", or None where the cell has not run."""
        record = self.read(cell)
        return None if record is None else record["status"]

    def read(self, cell: ImageCell) -> dict | None:
        """The cell's parameters and numbers as one dictionary; None where it has not run."""
        path = self.folder / f"{cell.name}.json"
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"store {path}: not JSON ({error}); remove it to run this network again") from error
        return record

    def write(self, cell: ImageCell, record: dict) -> None:
        """Store ``status``, ``error`` or numbers of a finished cell."""
        self.write_file(
            f"{cell.name}.json", json.dumps({"key": cell.key, **cell.params(), **record}, indent=1).encode()
        )

    def write_file(self, name: str, content: bytes) -> None:
        """A file of the folder, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # in the same folder: os.replace is atomic within one file system only
        part = self.folder / f".{name}.{uuid.uuid4().hex}"
        try:
            with open(part, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.folder / name)
        finally:
            part.unlink(missing_ok=True)

    def ticket_path(self, cell: ImageCell) -> Path:
        """Where the trained parameters of a ticket are."""
        return self.folder / f"{cell.name}.safetensors"
