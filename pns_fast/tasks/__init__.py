"""The three tasks with known tickets: Circle, ReLU, Helix. And data sets of real images."""

from __future__ import annotations

from .augmentation import augmented
from .circle import Circle
from .helix import Helix
from .images import ImageData, image_data_names, images
from .relu import Relu
from .task import Data, Task
from .ticket import Ticket

_TASKS: dict[str, type[Task]] = {task.name: task for task in (Circle, Relu, Helix)}

__all__ = [
    "Circle",
    "Data",
    "Helix",
    "ImageData",
    "Relu",
    "Task",
    "Ticket",
    "augmented",
    "get",
    "image_data_names",
    "images",
    "names",
]


def names() -> list[str]:
    """The names that :func:`get` knows.

    >>> names()
    ['circle', 'relu', 'helix']
    """
    return list(_TASKS)


def get(name: str, noise: float = 0.01) -> Task:
    """The task called ``name``.

    Args:
        name: one of :func:`names`.
        noise: share of flipped labels (circle), or standard deviation of the outputs (relu, helix).

    Raises:
        TypeError: name is no string or noise no number.
        ValueError: an unknown name, or a noise the task does not accept.

    >>> get("circle").ticket(5).density((2, 100, 100, 100, 4))
    0.005242718446601942
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {type(name).__name__}")
    if name not in _TASKS:
        raise ValueError(f"name: expected one of {', '.join(_TASKS)}, got {name!r}")
    return _TASKS[name](noise=noise)
