"""SupermaskLinear: edge-popup's layer. Weights stay, a score for each is trained, the best scores are the subnet."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from .. import ops
from .masked_linear import linear


class SupermaskLinear(nn.Linear):
    """``y = x (W * top(|S|))^T + b * top(|s|)`` with W and b fixed, S and s trained.

    The weights and the biases are ranked apart, each keeps the fraction ``keep``. The gradient goes straight
    through the selection to every score, ``dL/ds = dL/dw_eff * w * sign(s)`` with sign(0) = 1.

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``.
        keep: density in [0, 1]. The attribute may be changed, to anneal.

    ``weight`` (He normal) and ``bias`` (as in nn.Linear) need no gradient. ``weight_scores`` start uniform in
    ``+-1/sqrt(in_features)``, ``bias_scores`` at zero. An optimiser gets the parameters with ``requires_grad``.

    Raises:
        TypeError, ValueError: naming ``keep``.

    Source: Ramanujan et al. 2020; biases: Fischer & Burkholz 2022, Section 3.2. As :func:`pns_fast.edge_popup`.

    Example:
        >>> layer = SupermaskLinear(10, 4, keep=0.1)
        >>> {name: int(mask.sum()) for name, mask in layer.masks().items()}
        {'weight': 4, 'bias': 1}
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        keep: float,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self._add_scores(keep)

    def _add_scores(self, keep: float) -> None:
        self.keep = _check_keep(keep)
        self.weight.requires_grad_(False)
        self.weight_scores = nn.Parameter(torch.empty_like(self.weight))
        nn.init.kaiming_uniform_(self.weight_scores, a=math.sqrt(5))
        if self.bias is None:
            self.register_parameter("bias_scores", None)
        else:
            self.bias.requires_grad_(False)
            self.bias_scores = nn.Parameter(torch.zeros_like(self.bias))

    @classmethod
    def from_linear(cls, layer: nn.Linear, keep: float) -> SupermaskLinear:
        """A copy of a plain ``nn.Linear`` with fixed parameters and fresh scores."""
        if type(layer) is not nn.Linear:
            raise TypeError(f"layer: expected a plain nn.Linear, got {type(layer).__name__}")
        _check_keep(keep)
        layer = copy.deepcopy(layer)
        layer.__class__ = cls
        layer._add_scores(keep)
        return layer

    def masks(self) -> dict[str, Tensor]:
        """What the scores keep now, by the name of the parameter: bool "weight", and "bias" if there is one."""
        with torch.no_grad():
            return {name: _supermask(scores, self.keep).bool() for name, scores in self._scores()}

    def _scores(self) -> list[tuple[str, Tensor]]:
        scores = [("weight", self.weight_scores), ("bias", self.bias_scores)]
        return [(name, s) for name, s in scores if s is not None]

    @property
    def density(self) -> float:
        """Kept weights and biases / weights and biases."""
        masks = self.masks().values()
        return sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)

    def finalize(self) -> nn.Linear:
        """A plain, trainable ``nn.Linear`` with zeros written where the scores prune."""
        layer = copy.deepcopy(self)
        subnet_become_plain(layer)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * _supermask(self.bias_scores, self.keep)
        return linear(input, self.weight, _supermask(self.weight_scores, self.keep), bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, keep={self.keep}"


def subnet_become_plain(layer: SupermaskLinear) -> None:
    """Turns a SupermaskLinear into a plain nn.Linear with zeros where it prunes, in place."""
    with torch.no_grad():
        for name, mask in layer.masks().items():
            getattr(layer, name).masked_fill_(~mask, 0)
    for name, _ in layer._scores():
        getattr(layer, name).requires_grad_(True)
    layer.__class__ = nn.Linear
    del layer.weight_scores, layer.bias_scores, layer.keep


def _check_keep(keep: float, name: str = "keep") -> float:
    if not isinstance(keep, float):
        raise TypeError(f"{name}: expected a float, the fraction kept, got {keep!r}")
    if not 0 <= keep <= 1:
        raise ValueError(f"{name}: expected a fraction in [0, 1], got {keep!r}")
    return keep


def _supermask(scores: Tensor, keep: float) -> Tensor:
    # not scores.abs(): its gradient at 0 is 0, and bias scores, which start there, would never move
    return ops.supermask(torch.where(scores < 0, -scores, scores), keep)


class GetSubnet(torch.autograd.Function):
    """hidden-networks' ``GetSubnet.apply(scores, k)``: the 0/1 mask of the largest scores, gradient straight through.

    Args (of ``apply``):
        scores: float tensor of any shape, ranked as it is (that code passes ``self.scores.abs()``).
        k: density in [0, 1], the fraction kept: ``ceil(k * n)`` scores, ties to the lowest index. The original keeps
            ``n - int((1 - k) * n)``, the same up to rounding, with ties as the sort leaves them.

    Source: Ramanujan et al. 2020, https://github.com/allenai/hidden-networks.

    Example:
        >>> GetSubnet.apply(torch.tensor([0.3, 0.1, 0.2, 0.4]), 0.5)
        tensor([1., 0., 0., 1.])
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, k: float) -> Tensor:
        return ops.topk_mask(scores.reshape(-1), _check_keep(k, "k")).reshape(scores.shape).to(scores.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None
