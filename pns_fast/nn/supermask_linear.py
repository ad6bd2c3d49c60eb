"""SupermaskLinear: edge-popup's layer. Weights stay, a score for each is trained, the best scores are the subnet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from .masked_linear import linear
from .supermask_layer import SupermaskLayer, check_keep


class SupermaskLinear(SupermaskLayer, nn.Linear):
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

    plain = nn.Linear

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
        self._start(keep)

    @classmethod
    def from_linear(cls, layer: nn.Linear, keep: float) -> SupermaskLinear:
        """A copy of a plain ``nn.Linear`` with fixed parameters and fresh scores."""
        return cls._from_plain(layer, keep)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self._supermask(), self._masked_bias())


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
        return ops.topk_mask(scores.reshape(-1), check_keep(k, "k")).reshape(scores.shape).to(scores.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None
