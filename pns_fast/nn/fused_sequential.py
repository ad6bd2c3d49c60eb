"""FusedSequential: nn.Sequential that runs a masked convolution and the ReLU and pooling behind it in one call."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..ops._library import is_transformed
from .masked_conv2d import MaskedConv2d, conv2d


class FusedSequential(nn.Sequential):
    """``nn.Sequential`` with its modules, names, state and results, in less time.

    :func:`pns_fast.nn.mask_model` makes one of each plain ``nn.Sequential`` with something to fuse, and
    :func:`pns_fast.nn.finalize` turns it back. A :class:`MaskedConv2d` with an ``nn.ReLU`` or an ``nn.MaxPool2d(2)``
    directly behind it, or both in that order, is one call of :func:`pns_fast.ops.masked_conv2d`. Where one of them has
    a hook, and under tracing and transforms, each is called by itself.

    Example:
        >>> layers = torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
        >>> model = pns.nn.mask_model(torch.nn.Sequential(*layers))
        >>> type(model).__name__, model(torch.ones(1, 1, 6, 6)).shape
        ('FusedSequential', torch.Size([1, 2, 2, 2]))
    """

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor) or is_transformed() or torch_module._has_any_global_hook():
            return super().forward(input)
        modules, at = list(self), 0
        while at < len(modules):
            layer = modules[at]
            n, relu, max_pool = _behind(modules, at)
            if n == 0 or any(_is_hooked(m) for m in modules[at : at + 1 + n]):
                input, at = layer(input), at + 1
            else:
                input = conv2d(layer, input, layer.weight_mask, layer.bias, layer.bias_mask, relu, max_pool)
                at += 1 + n
        return input


def fuse(model: nn.Module) -> None:
    """Every plain ``nn.Sequential`` of ``model`` with something to fuse becomes a fused one, in place."""
    for module in model.modules():
        if type(module) is nn.Sequential and any(_behind(list(module), at)[0] for at in range(len(module))):
            module.__class__ = FusedSequential


def unfuse(model: nn.Module) -> None:
    """The reverse."""
    for module in model.modules():
        if type(module) is FusedSequential:
            module.__class__ = nn.Sequential


def _behind(modules: list[nn.Module], at: int) -> tuple[int, bool, int]:
    """How many modules behind the one at ``at`` are part of its call; whether there is a ReLU; the pooling."""
    if type(modules[at]) is not MaskedConv2d:
        return 0, False, 1
    n = 1
    relu = n < len(modules) - at and type(modules[at + n]) is nn.ReLU
    n += relu
    is_pooled = n < len(modules) - at and _halves(modules[at + n])
    return n - 1 + is_pooled, relu, 1 + is_pooled


def _halves(module: nn.Module) -> bool:
    """Whether it takes the largest of each square of 2 x 2."""
    return (
        type(module) is nn.MaxPool2d
        and _pair(module.kernel_size) == _pair(module.stride) == (2, 2)
        and _pair(module.padding) == (0, 0)
        and _pair(module.dilation) == (1, 1)
        and not (module.ceil_mode or module.return_indices)
    )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _is_hooked(module: nn.Module) -> bool:
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)
