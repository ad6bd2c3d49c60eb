"""What a task is: a data set with a known optimal small network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import rng
from .ticket import Ticket

HELD_OUT = 10  # one sample in ten is the test split
MOST_LAYERS = 1000  # 2^depth, which divides the angles of the circle's mirrors, is a float64 up to 1,023


@dataclass(frozen=True, eq=False)
class Data:
    """A training and a test split."""

    x_train: Tensor  # [n, n_0] float32
    y_train: Tensor  # int64 [n] (classes) or float32 [n, n_L]
    x_test: Tensor
    y_test: Tensor


@dataclass(frozen=True)
class Task(ABC):
    """Inputs uniform on ``[-1, 1]^n_inputs``, noisy targets, and a ticket for every depth from 3.

    Args:
        noise: what it means is the task's; see its class.

    Raises:
        TypeError: ``noise`` is no number.
        ValueError: ``noise`` is negative or not finite.
    """

    noise: float = 0.01

    name: ClassVar[str]
    loss: ClassVar[str]  # "cross_entropy" | "mse"
    n_inputs: ClassVar[int]
    n_outputs: ClassVar[int]

    def __post_init__(self) -> None:
        if isinstance(self.noise, bool) or not isinstance(self.noise, (int, float, np.number)):
            raise TypeError(f"noise: expected a number, got {type(self.noise).__name__}")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"noise: expected a finite number >= 0, got {self.noise}")

    @property
    def metric_name(self) -> str:
        """What ``train`` reports as metric: "accuracy" or "mse_rescaled"."""
        return "accuracy" if self.loss == "cross_entropy" else "mse_rescaled"

    def widths(self, depth: int, width: int) -> tuple[int, ...]:
        """The widths of a mother network: ``depth`` neuron layers, the hidden ones ``width`` wide."""
        check_depth(depth)
        if isinstance(width, bool) or not isinstance(width, (int, np.integer)):
            raise TypeError(f"width: expected an int, got {width!r}")
        if width < 1:
            raise ValueError(f"width: expected at least 1, got {width}")
        return (self.n_inputs, *[int(width)] * (depth - 2), self.n_outputs)

    def sample(self, n: int = 10_000, seed: int = 0) -> Data:
        """``n`` samples, a tenth of them the test split (noisy like the training split).

        Raises:
            TypeError: n or seed is no int.
            ValueError: fewer than 2 samples, or a negative seed.
        """
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
            raise TypeError(f"n: expected an int, got {n!r}")
        if n < 2:
            raise ValueError(f"n: expected at least 2 samples, one a split, got {n}")
        if n >= 2**48:  # a petabyte, still far from what NumPy cannot count
            raise ValueError(f"n: expected fewer than 2**48 samples, got {n}")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
            raise TypeError(f"seed: expected an int, got {seed!r}")
        generator = rng.generator(rng.network_keys(seed, 1)[0], "data")
        x = generator.uniform(-1, 1, (n, self.n_inputs)).astype(np.float32)
        y = self._targets(x.astype(np.float64), generator)
        n_train = n - max(1, n // HELD_OUT)
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        return Data(x[:n_train].clone(), y[:n_train].clone(), x[n_train:].clone(), y[n_train:].clone())

    @abstractmethod
    def _targets(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Noisy targets of ``x`` [n, n_0] float64: int64 [n] or float32 [n, n_L]."""

    @abstractmethod
    def ticket(self, depth: int) -> Ticket:
        """The small network that solves the task with ``depth`` neuron layers."""


def check_depth(depth: int) -> None:
    """Raises TypeError or ValueError unless ``depth`` is an int from 3 to 1,000."""
    if isinstance(depth, bool) or not isinstance(depth, (int, np.integer)):
        raise TypeError(f"depth: expected an int, got {depth!r}")
    if depth < 3:
        raise ValueError(f"depth: expected at least 3 neuron layers (input, hidden, output), got {depth}")
    if depth > MOST_LAYERS:
        raise ValueError(f"depth: expected at most {MOST_LAYERS} neuron layers, got {depth}")


def regression_targets(clean: np.ndarray, noise: float, generator: np.random.Generator) -> np.ndarray:
    """``clean`` plus N(0, noise) on each output, float32."""
    return (clean + noise * generator.standard_normal(clean.shape)).astype(np.float32)
