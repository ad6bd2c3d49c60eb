"""Planting in any feed-forward nn.Module: convolutional and linear layers, residual sums included."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..networks.unwrap import unwrap
from .match import match_greedy, match_outputs
from .module_graph import Line, Step, folded, steps


@dataclass(frozen=True, eq=False)
class PlantedModule:
    """A mother network with a target planted in it."""

    module: nn.Module  # the mother in evaluation mode, batch norms folded
    masks: dict[str, Tensor]  # the ticket: parameter name -> bool mask, for every convolution and linear layer
    output_scale: Tensor  # float64 [n_L]: the ticket's output times this is the target's
    neurons: dict[str, Tensor]  # layer name of the mother -> int64 [target's outputs]: where each is, -1: no parameter
    fallbacks: int  # neurons for which no free one had a positive scale
    tied: int  # neurons whose place and scale a residual sum prescribed

    def ticket_forward(self, x: Tensor) -> Tensor:
        """The masked planted network times ``output_scale``: the target's outputs.

        Args:
            x: a batch, as the module takes it.

        Returns:
            ``[B, ..., n_L]`` in the dtype of ``x``.
        """
        parameters = dict(self.module.named_parameters())
        ticket = {name: parameters[name].detach() * mask for name, mask in self.masks.items()}
        with torch.no_grad():
            # a layer may have a second name: functional_call would not put back what it replaces twice
            output = functional_call(self.module, ticket, (x,), tie_weights=False)
        return (output * _along_channels(self.output_scale, output)).to(x.dtype)


@dataclass
class _Places:
    """Where the channels of a line are in the mother, and the scales they have there."""

    index: Tensor  # int64 [T], -1 where no layer has needed the channel yet
    scale: Tensor  # float64 [T]

    @classmethod
    def none(cls, n: int, device: torch.device) -> _Places:
        return cls(torch.full((n,), -1, device=device), torch.ones(n, dtype=torch.float64, device=device))

    @classmethod
    def identity(cls, n: int, device: torch.device) -> _Places:
        return cls(torch.arange(n, device=device), torch.ones(n, dtype=torch.float64, device=device))

    def flattened(self, n_features: int) -> _Places:
        """Of features: each channel's place and scale repeat for its pixels."""
        n_pixels = n_features // len(self.index)
        pixel = torch.arange(n_pixels, device=self.index.device)
        index = torch.where(self.index[:, None] < 0, -1, self.index[:, None] * n_pixels + pixel)
        return _Places(index.flatten(), self.scale.repeat_interleave(n_pixels))


@dataclass
class _Planting:
    """What grows from layer to layer."""

    places: dict[Line, _Places] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    neurons: dict[str, Tensor] = field(default_factory=dict)
    fallbacks: int = 0
    tied: int = 0


@torch.no_grad()
def plant_module(target: nn.Module, mother: nn.Module) -> PlantedModule:
    """Plant a target network in a mother network of the same structure, layer by layer from the input.

    A candidate for an output channel is an output channel of the mother's layer; theta is ``(b, w[in, kh, kw] *
    lambda_old[in])`` at its non-zero positions, and the rest is as in :func:`pns_fast.plant`: the free channel of least
    ``|theta - lambda m|`` with ``lambda = theta.m / |m|^2 > 0`` takes ``theta / lambda`` there and keeps the rest.
    Across a flatten a channel's scale repeats for its pixels; ReLU, pooling and dropout pass scales through; batch norm
    is folded into the layer before it, in both networks. Where outputs are added up (a residual sum) all summands need
    the same places and scales: the first layer that needs a channel chooses, later ones are tied to it, and so are
    hidden less well. What is added to the network's input is tied to that: same place, scale 1.

    Args:
        target: what to plant: what is zero in it is no part of the ticket. ``Conv2d``, ``Linear``, ``ReLU``, max and
            average pooling, flatten, dropout, batch norm after a layer, sums of two; masked layers by their masks.
        mother: a network of the same structure, at least as wide in every layer, each layer there once; it is not
            changed. Masked layers count as plain ones with zeros, in the result their masks are full. Of either
            network, what is inside torch.compile, DataParallel and DistributedDataParallel.

    Returns:
        A :class:`PlantedModule`.

    Raises:
        TypeError: an argument that is no module, or parameters that are not of floating point.
        ValueError: structures that differ, layers that do not fit, that are used twice or share parameters, or an
            operation that scales do not pass through.

    Source: Fischer & Burkholz 2022, section 2.2 and Algorithm 1, applied to convolutional layers as their text says.

    >>> def network(n):
    ...     return nn.Sequential(nn.Conv2d(1, n, 3), nn.ReLU(), nn.Flatten(), nn.Linear(n * 4, 2))
    >>> target, x = network(2), torch.randn(5, 1, 4, 4)
    >>> planted = plant_module(target, network(30))
    >>> torch.allclose(planted.ticket_forward(x), target(x), atol=1e-4)
    True
    """
    for name, model in (("target", target), ("mother", mother)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name}: expected an nn.Module, got {type(model).__name__}")
    target, mother = folded(unwrap(target), "target"), folded(unwrap(mother), "mother")
    growing, order = _Planting(), steps(target, mother)
    if not order:
        raise ValueError("target: expected convolutional or linear layers, found none")
    for step in order:
        _plant_layer(growing, step, target.get_submodule(step.target), mother.get_submodule(step.mother))
    output = next(p for line, p in growing.places.items() if line.root().is_output)
    return PlantedModule(mother, growing.masks, output.scale, growing.neurons, growing.fallbacks, growing.tied)


def _plant_layer(growing: _Planting, step: Step, target: nn.Module, mother: nn.Module) -> None:
    weight, bias = _parameters(target)
    inputs = _inputs(growing, step, weight, mother)
    # An input that no layer feeds is a constant 0: what reads it need not be planted.
    weight = weight * (inputs.index >= 0)[:, None]
    theta = torch.cat([(weight * inputs.scale[:, None]).flatten(1), bias[:, None]], dim=1)
    support = torch.cat([weight.flatten(1), bias[:, None]], dim=1) != 0
    candidates = _candidates(mother, inputs.index)
    line = step.writes.root()
    if line.is_output and len(candidates) != len(theta):
        raise ValueError(f"mother: {step.mother} has {len(candidates)} outputs, the target's {len(theta)}")
    # What is added to the network's input has its places and scales.
    unplaced = _Places.identity if line.is_input else _Places.none
    outputs = growing.places.setdefault(line, unplaced(len(theta), theta.device))
    growing.tied += int((support.any(1) & (outputs.index >= 0)).sum())
    growing.fallbacks += _choose(outputs, theta, support, candidates, line.is_output)
    growing.neurons[step.mother] = torch.where(support.any(1) | line.is_output, outputs.index, -1)
    _write(growing, step.mother, mother, theta / outputs.scale[:, None], support, inputs.index, outputs.index)


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight ``[T, I, kernel positions]`` and bias ``[T]`` in float64, without what a masked layer prunes."""
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    for name, parameter in (("weight_mask", weight), ("bias_mask", bias)):
        if isinstance(mask := getattr(layer, name, None), Tensor):
            parameter *= mask
    return weight.flatten(2) if weight.dim() > 2 else weight[..., None], bias


def _inputs(growing: _Planting, step: Step, weight: Tensor, mother: nn.Module) -> _Places:
    """Where the layer's inputs are."""
    line, n_in = step.reads.root(), weight.shape[1]
    if line not in growing.places:  # the network's input, whose channels stay where they are
        if mother.weight.shape[1] != n_in:
            raise ValueError(f"mother: {step.mother} has {mother.weight.shape[1]} inputs, the target's {n_in}")
        return _Places.identity(n_in, weight.device)
    places = growing.places[line]
    if step.is_flat and not line.has_pixels and n_in != len(places.index):
        raise ValueError(f"target: {step.target} reads the features of several positions flattened, planting knows one")
    return places.flattened(n_in) if step.is_flat else places


def _candidates(mother: nn.Module, index: Tensor) -> Tensor:
    """Every output channel's parameters at the placed inputs, the bias last: ``[C, I * kernel positions + 1]``."""
    weight, bias = _parameters(mother)
    return torch.cat([weight[:, index.clamp(min=0)].flatten(1), bias[:, None]], dim=1)


def _choose(outputs: _Places, theta: Tensor, support: Tensor, candidates: Tensor, is_output: bool) -> int:
    """Place the channels that this layer is the first to need; returns the number of fallbacks."""
    new = (support.any(1) | is_output) & (outputs.index < 0)
    rows = new.nonzero().flatten()
    if is_output:
        found = match_outputs(theta[None], support, candidates[None, : len(theta)])
        outputs.index[rows], outputs.scale[rows] = rows, found.scale[0, rows]
        return 0
    free = torch.ones(len(candidates), dtype=torch.bool, device=theta.device)
    free[outputs.index[outputs.index >= 0]] = False
    places = free.nonzero().flatten()
    found = match_greedy(theta[None, rows], support[rows], candidates[None, places])
    outputs.index[rows], outputs.scale[rows] = places[found.index[0]], found.scale[0]
    return int(found.fallbacks[0])


def _write(
    growing: _Planting, name: str, mother: nn.Module, values: Tensor, support: Tensor, inputs: Tensor, outputs: Tensor
) -> None:
    """Put values ``[T, I * kernel positions + 1]`` on the support into the layer, and mark them in its masks."""
    n_positions = (values.shape[1] - 1) // len(inputs)
    weight = mother.weight.view(*mother.weight.shape[:2], n_positions)
    mask = torch.zeros_like(weight, dtype=torch.bool)
    t, at = support[:, :-1].nonzero(as_tuple=True)
    place = outputs[t], inputs[at // n_positions], at % n_positions
    weight[place] = values[t, at].to(weight.dtype)
    mask[place] = True
    growing.masks[f"{name}.weight"] = mask.view_as(mother.weight)
    if mother.bias is not None:
        t = support[:, -1].nonzero().flatten()
        mother.bias[outputs[t]] = values[t, -1].to(mother.bias.dtype)
        kept = torch.zeros_like(mother.bias, dtype=torch.bool)
        kept[outputs[t]] = True
        growing.masks[f"{name}.bias"] = kept


def _along_channels(scale: Tensor, output: Tensor) -> Tensor:
    """The scale where channels are: the second dimension of images, the last of features."""
    return scale[:, None, None] if output.dim() == 4 else scale
