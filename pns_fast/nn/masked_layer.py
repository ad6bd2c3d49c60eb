"""What every masked layer is beside its torch layer: bool masks as buffers, and the way there and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

HALVES = (torch.float16, torch.bfloat16)


def check_mask(name: str, mask: Tensor, parameter: Tensor) -> Tensor:
    """``mask`` if it is a bool tensor of the shape of ``parameter``."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name}: expected a bool tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected a bool tensor, got {mask.dtype}")
    if mask.shape != parameter.shape:
        raise ValueError(f"{name}: expected shape {list(parameter.shape)}, got {list(mask.shape)}")
    return mask


class MaskedLayer:
    """Before a torch layer with ``weight`` and ``bias`` among the bases of a masked one."""

    plain: ClassVar[type[nn.Module]]  # that torch layer
    weight_mask: Tensor
    bias_mask: Tensor | None

    def _add_masks(self) -> None:
        self.register_buffer("weight_mask", torch.ones_like(self.weight, dtype=torch.bool))
        full = None if self.bias is None else torch.ones_like(self.bias, dtype=torch.bool)
        self.register_buffer("bias_mask", full)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        own = name.removesuffix("_orig")
        if own != name and param is not None and param is self._parameters.get(own):
            # the first that torch.nn.utils.prune does to a layer; a buffer of its own with a mask follows
            raise ValueError(
                f"{own}: expected a plain layer for torch.nn.utils.prune, which would replace {own}_mask, got a "
                f"{type(self).__name__}; use layer.set_mask or pns_fast.nn.set_masks, or pns_fast.nn.finalize first"
            )
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        self._keep_bool()  # Module.type casts every buffer
        return self

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._keep_bool()  # load_state_dict(assign=True) takes the tensors of a checkpoint, which may have been cast

    def _keep_bool(self) -> None:
        for name in ("weight_mask", "bias_mask"):
            mask = self._buffers[name]
            if mask is not None and mask.dtype != torch.bool:
                self._buffers[name] = mask.bool()

    @classmethod
    def _from_plain(cls, layer: nn.Module, weight_mask: Tensor | None, bias_mask: Tensor | None):
        check_plain(cls, layer)
        masked = copy.deepcopy(layer)
        become_masked(masked, cls)
        masked.set_mask(weight_mask, bias_mask)
        return masked

    def set_mask(self, weight_mask: Tensor | None = None, bias_mask: Tensor | None = None) -> None:
        """Copies bool masks of the shapes of ``weight`` and ``bias`` into the buffers; None leaves one as it is."""
        if bias_mask is not None and self.bias is None:
            raise ValueError("bias_mask: expected None, the layer has no bias")
        given = [("weight", weight_mask), ("bias", bias_mask)]
        given = [(name, mask) for name, mask in given if mask is not None]
        for name, mask in given:  # all checks before the first change
            check_mask(f"{name}_mask", mask, getattr(self, name))
        for name, mask in given:
            getattr(self, f"{name}_mask").copy_(mask)

    def masks(self) -> dict[str, Tensor]:
        """The buffers by the name of their parameter: "weight", and "bias" if there is one."""
        masks = {"weight": self.weight_mask}
        return masks if self.bias_mask is None else {**masks, "bias": self.bias_mask}

    @property
    def density(self) -> float:
        """Kept weights and biases / weights and biases."""
        return density_of(self.masks())

    def finalize(self) -> nn.Module:
        """A plain torch layer with zeros written where this layer prunes."""
        layer = copy.deepcopy(self)
        become_plain(layer)
        return layer

    def extra_repr(self) -> str:
        if self.weight.is_meta:  # no values to count
            return super().extra_repr()
        return f"{super().extra_repr()}, density={self.density:.4g}"


def density_of(masks: dict[str, Tensor]) -> float:
    n = sum(m.numel() for m in masks.values())
    return sum(int(m.sum()) for m in masks.values()) / n if n > 0 else 1.0


def check_plain(cls: type, layer: nn.Module) -> None:
    if type(layer) is not cls.plain:
        raise TypeError(f"layer: expected a plain nn.{cls.plain.__name__}, got {type(layer).__name__}")


def check_parameters(layer: nn.Module) -> None:
    """Refuses a layer whose weight or bias is no parameter of its own: zeros that are written there would be lost."""
    for name in layer.masks():
        if name not in layer._parameters:
            raise ValueError(
                f"{name}: expected a parameter of a {type(layer).__name__}, got one that is computed from others "
                "(parametrised, or pruned by torch); make that permanent first"
            )


# A layer changes its class, as torch's parametrizations do: hooks, the training flag, attributes, and whoever else
# holds the module or its parameters stay as they are.


def become_masked(layer: nn.Module, cls: type[MaskedLayer]) -> None:
    """Turns a plain torch layer into a masked one with full masks, in place."""
    layer.__class__ = cls
    layer._add_masks()


def become_plain(layer: MaskedLayer) -> None:
    """Turns a masked layer into the plain torch layer with zeros where it pruned, in place."""
    check_parameters(layer)
    with torch.no_grad():
        for name, mask in layer.masks().items():
            getattr(layer, name).masked_fill_(~mask, 0)
    layer.__class__ = layer.plain
    del layer.weight_mask, layer.bias_mask
