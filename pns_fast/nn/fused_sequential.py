"""FusedSequential: nn.Sequential that runs masked layers with what is behind them in one call."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..ops._library import is_transformed
from ..ops._masked_chain import masked_chain
from .masked_conv2d import MaskedConv2d, conv2d
from .masked_linear import MaskedLinear


class FusedSequential(nn.Sequential):
    """``nn.Sequential`` with its modules, names, state and results, in less time.

    :func:`pns_fast.nn.mask_model` makes one of each plain ``nn.Sequential`` with something to fuse, and
    :func:`pns_fast.nn.finalize` turns it back. A :class:`MaskedConv2d` with an ``nn.ReLU`` or an ``nn.MaxPool2d(2)``
    directly behind it, or both in that order, is one call of :func:`pns_fast.ops.masked_conv2d`. On the CPU
    :class:`MaskedLinear` layers and their ``nn.ReLU`` modules, as many as follow each other, are one step of autograd.
    Where one of them has a hook, and under tracing and transforms, each is called by itself.

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
            together = _together(modules, at)
            if len(together) == 1 or any(_is_hooked(m) for m in together):
                input, at = modules[at](input), at + 1
            else:
                input, at = _run(together, input), at + len(together)
        return input


def fuse(model: nn.Module) -> None:
    """Every plain ``nn.Sequential`` of ``model`` with something to fuse becomes a fused one, in place."""
    for module in model.modules():
        if type(module) is nn.Sequential and any(len(_together(list(module), at)) > 1 for at in range(len(module))):
            module.__class__ = FusedSequential


def unfuse(model: nn.Module) -> None:
    """The reverse."""
    for module in model.modules():
        if type(module) is FusedSequential:
            module.__class__ = nn.Sequential


def _together(modules: list[nn.Module], at: int) -> list[nn.Module]:
    """The module at ``at`` and those behind it that are part of one call."""
    end = at + 1
    if type(modules[at]) is MaskedConv2d:
        end += _is_relu(modules, end)
        end += end < len(modules) and _halves(modules[end])
    elif type(modules[at]) is MaskedLinear:
        end += _is_relu(modules, end)
        while end < len(modules) and type(modules[end]) is MaskedLinear:
            end += 1 + _is_relu(modules, end + 1)
    return modules[at:end]


def _run(together: list[nn.Module], input: Tensor) -> Tensor:
    layer, *behind = together
    if type(layer) is MaskedConv2d:
        relu, max_pool = _is_relu(together, 1), 1 + (type(behind[-1]) is nn.MaxPool2d)
        return conv2d(layer, input, layer.weight_mask, layer.bias, layer.bias_mask, relu, max_pool)
    layers = [(*_tensors(m), _is_relu(together, i + 1)) for i, m in enumerate(together) if type(m) is MaskedLinear]
    output = masked_chain(input, layers)
    if output is None:
        output = input
        for module in together:
            output = module(output)
    return output


def _tensors(layer: MaskedLinear) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Weight, bias and masks; by attribute, which takes a Module longer, only where somebody has put others there."""
    parameters, buffers = layer._parameters, layer._buffers
    try:
        return parameters["weight"], buffers["weight_mask"], parameters["bias"], buffers["bias_mask"]
    except KeyError:
        return layer.weight, layer.weight_mask, layer.bias, layer.bias_mask


def _is_relu(modules: list[nn.Module], at: int) -> bool:
    return at < len(modules) and type(modules[at]) is nn.ReLU


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
    """Whether more is to be called than its class says: a hook, or a forward that this one has been given."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or "forward" in module.__dict__
