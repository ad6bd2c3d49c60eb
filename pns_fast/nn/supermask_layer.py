"""What every supermask layer is beside its torch layer: fixed parameters, a trained score for each, the best kept."""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from .masked_layer import check_parameters, check_plain, density_of


class SupermaskLayer:
    """Before a torch layer with ``weight`` and ``bias`` among the bases of a supermask one."""

    plain: ClassVar[type[nn.Module]]  # that torch layer

    def _start(self, keep: float) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self._add_scores(keep)

    def _add_scores(self, keep: float) -> None:
        self.keep = check_keep(keep)
        self.weight.requires_grad_(False)
        self.weight_scores = nn.Parameter(torch.empty_like(self.weight))
        nn.init.kaiming_uniform_(self.weight_scores, a=math.sqrt(5))
        if self.bias is None:
            self.register_parameter("bias_scores", None)
        else:
            self.bias.requires_grad_(False)
            self.bias_scores = nn.Parameter(torch.zeros_like(self.bias))

    @classmethod
    def _from_plain(cls, layer: nn.Module, keep: float):
        check_plain(cls, layer)
        check_keep(keep)
        layer = copy.deepcopy(layer)
        become_supermask(layer, cls, keep)
        return layer

    def masks(self) -> dict[str, Tensor]:
        """What the scores keep now, by the name of the parameter: bool "weight", and "bias" if there is one."""
        with torch.no_grad():
            return {name: supermask(scores, self.keep).bool() for name, scores in self._scores()}

    def _scores(self) -> list[tuple[str, Tensor]]:
        scores = [("weight", self.weight_scores), ("bias", self.bias_scores)]
        return [(name, s) for name, s in scores if s is not None]

    @property
    def density(self) -> float:
        """Kept weights and biases / weights and biases."""
        return density_of(self.masks())

    def finalize(self) -> nn.Module:
        """A plain, trainable torch layer with zeros written where the scores prune."""
        layer = copy.deepcopy(self)
        subnet_become_plain(layer)
        return layer

    def _supermask(self) -> Tensor:
        return supermask(self.weight_scores, self.keep)

    def _masked_bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias * supermask(self.bias_scores, self.keep)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, keep={self.keep}"


def become_supermask(layer: nn.Module, cls: type[SupermaskLayer], keep: float) -> None:
    """Turns a plain torch layer into a supermask one with fresh scores, in place."""
    layer.__class__ = cls
    layer._add_scores(keep)


def subnet_become_plain(layer: SupermaskLayer) -> None:
    """Turns a supermask layer into the plain torch layer with zeros where it prunes, in place."""
    check_parameters(layer)
    with torch.no_grad():
        for name, mask in layer.masks().items():
            getattr(layer, name).masked_fill_(~mask, 0)
    for name, _ in layer._scores():
        getattr(layer, name).requires_grad_(True)
    layer.__class__ = layer.plain
    del layer.weight_scores, layer.bias_scores, layer.keep


def check_keep(keep: float, name: str = "keep") -> float:
    if not isinstance(keep, (float, np.floating)):
        raise TypeError(f"{name}: expected a float, the fraction kept, got {keep!r}")
    if not 0 <= keep <= 1:
        raise ValueError(f"{name}: expected a fraction in [0, 1], got {keep!r}")
    return keep if isinstance(keep, float) else float(keep)


def supermask(scores: Tensor, keep: float) -> Tensor:
    # not scores.abs(): its gradient at 0 is 0, and bias scores, which start there, would never move
    sign = torch.copysign(scores.new_ones(()), scores.detach() + 0.0)  # 1 at -0.0, too
    # checked again: the attribute may be changed, and 1 would be a count
    return ops.supermask(scores * sign, check_keep(keep))
