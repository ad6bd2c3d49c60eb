"""Optimisers as typed settings: the kernel does the arithmetic, these say which and with what numbers."""

from __future__ import annotations

from dataclasses import dataclass

from ..pruners.checks import check_choice, check_count, check_number

SCHEDULES = ("constant", "cosine", "step")


@dataclass(frozen=True)
class Adam:
    """Adam, as ``torch.optim.Adam`` (weight decay is added to the gradient). Kingma & Ba 2015.

    Args:
        lr: learning rate, >= 0.
        beta1, beta2: decay of the first and the second moment, in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: L2 penalty, >= 0.
        schedule: "constant"; "cosine": epoch e of E trains at ``lr (1 + cos(pi e / E)) / 2``; or "step": at
            ``lr * gamma ** (e // step_epochs)``, as ``torch.optim.lr_scheduler.StepLR``.
        step_epochs: epochs between steps, >= 1; read by schedule "step" only.
        gamma: factor of a step, >= 0; read by schedule "step" only.

    Raises:
        TypeError, ValueError: a setting out of range, NaN included.

    >>> Adam(lr=0.01)  # doctest: +NORMALIZE_WHITESPACE
    Adam(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.0, schedule='constant',
    step_epochs=30, gamma=0.1)
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "constant"
    step_epochs: int = 30
    gamma: float = 0.1

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_number(name, getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            check_number(name, getattr(self, name), 0, below=1)
        _check_schedule(self)

    def settings(self) -> dict[str, float | str]:
        """The keyword arguments of ``ops.mlp_trainer``."""
        return {
            "optimizer": "adam",
            "lr": float(self.lr),
            "beta1": float(self.beta1),
            "beta2": float(self.beta2),
            "eps": float(self.eps),
            "weight_decay": float(self.weight_decay),
            **_schedule_settings(self),
        }


@dataclass(frozen=True)
class SGD:
    """SGD with heavy-ball momentum, as ``torch.optim.SGD``. The defaults are Ramanujan et al. 2020's.

    Args:
        lr: learning rate, >= 0.
        momentum: in [0, 1).
        weight_decay: L2 penalty, >= 0.
        schedule: "constant"; "cosine": epoch e of E trains at ``lr (1 + cos(pi e / E)) / 2``; or "step": at
            ``lr * gamma ** (e // step_epochs)``, as ``torch.optim.lr_scheduler.StepLR``.
        step_epochs: epochs between steps, >= 1; read by schedule "step" only.
        gamma: factor of a step, >= 0; read by schedule "step" only.

    Raises:
        TypeError, ValueError: a setting out of range, NaN included.

    >>> SGD(schedule="cosine")
    SGD(lr=0.1, momentum=0.9, weight_decay=0.0005, schedule='cosine', step_epochs=30, gamma=0.1)
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "constant"
    step_epochs: int = 30
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_number("lr", self.lr, 0)
        check_number("momentum", self.momentum, 0, below=1)
        check_number("weight_decay", self.weight_decay, 0)
        _check_schedule(self)

    def settings(self) -> dict[str, float | str]:
        """The keyword arguments of ``ops.mlp_trainer``."""
        return {
            "optimizer": "sgd",
            "lr": float(self.lr),
            "beta1": float(self.momentum),
            "weight_decay": float(self.weight_decay),
            **_schedule_settings(self),
        }


def _check_schedule(optimizer: Adam | SGD) -> None:
    check_choice("schedule", optimizer.schedule, SCHEDULES)
    check_count("step_epochs", optimizer.step_epochs, 1)
    check_number("gamma", optimizer.gamma, 0)


def _schedule_settings(optimizer: Adam | SGD) -> dict[str, float | str]:
    return {
        "schedule": optimizer.schedule,
        "step_epochs": int(optimizer.step_epochs),
        "gamma": float(optimizer.gamma),
    }
