"""Any nn.Module as the problem a pruner scores: the pruners of ``pns_fast.pruners`` serve it as they are."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import ParametrizationList

from ..pruners.checks import differentiable
from ..pruners.problem import ScoringProblem
from .masked_layer import MaskedLayer
from .supermask_layer import SupermaskLayer

Batches = list[tuple[tuple, object]]


class ModuleProblem(ScoringProblem):
    """A module as a problem of one network.

    Args:
        model: evaluated in the mode it is in; its parameters and buffers are not changed.
        masks: of the parameters to score, by name.
        batches: (inputs, target) pairs.
        loss_fn: ``loss_fn(output, target)``, a mean over the samples; None for pruners that need no loss.
        key: the (seed, network) pair.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        batches: Batches,
        loss_fn: Callable[..., Tensor] | None,
        key: tuple[int, int],
    ) -> None:
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"loss_fn: expected a function of output and target, got {loss_fn!r}")
        self._own = _own_tensors(model)
        masked = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, MaskedLayer)]
        self._masked = {f"{path}.{leaf}".lstrip(".") for path, layer in masked for leaf in layer.masks()}
        super().__init__([self._own[name][None] for name in masks], [m[None] for m in masks.values()], [key])
        self._model, self._names, self._batches, self._loss_fn = model, list(masks), batches, loss_fn

    def _call(
        self,
        parameters: Sequence[Tensor],
        inputs: tuple,
        prepare: Callable[[Tensor], Tensor],
        through_mask: bool = True,
    ):
        """The model's output with these parameters ``[1, ...]``, masked unless told otherwise; ``prepare`` is applied
        to all others."""
        masks = self.masks if through_mask else [torch.ones_like(m) for m in self.masks]
        scored = zip(self._names, parameters, masks, strict=True)
        scored = {id(self._own[name]): ((parameter * mask)[0], mask[0]) for name, parameter, mask in scored}
        others: dict[int, Tensor] = {}
        values = {}
        for name, own in self._own.items():
            if id(own) in scored:
                values[name], mask = scored[id(own)]
                if name in self._masked:  # a masked layer skips what this round's mask prunes
                    values[f"{name}_mask"] = mask
        for name, own in self._own.items():
            if name not in values:
                if id(own) not in others:  # clone: a forward pass may write to its buffers
                    others[id(own)] = prepare(own.detach().clone()) if own.is_floating_point() else own.clone()
                values[name] = others[id(own)]
        return functional_call(self._model, values, inputs, tie_weights=False)

    def loss(self, parameters: Sequence[Tensor], temperature: float = 1.0, through_mask: bool = True) -> Tensor:
        """The mean loss over all samples of the batches; outputs are divided by ``temperature``."""
        if not self._batches or self._loss_fn is None:
            raise ValueError("batches, loss_fn: expected both, this pruner scores by the loss")
        sizes = [len(inputs[0]) for inputs, _ in self._batches]
        total = 0.0
        for (inputs, target), size in zip(self._batches, sizes, strict=True):
            output = self._call(parameters, inputs, lambda t: t, through_mask)
            if temperature != 1.0:
                if not isinstance(output, Tensor):
                    raise TypeError(f"model: expected a tensor as output, this pruner scales it, got {type(output)}")
                output = output / temperature
            value = self._loss_fn(output, target)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(f"loss_fn: expected one number, the mean over samples, got {value!r}")
            total = total + value * (size / sum(sizes))
        return total

    def flow(self, parameters: Sequence[Tensor]) -> Tensor:
        """SynFlow's R in float64, on one all-ones sample; every other parameter and buffer by its absolute value.

        Not rescaled by layer as for populations: that needs layers that are homogeneous in their input.
        """
        if not self._batches:
            raise ValueError("batches: expected at least one, this pruner takes the shape of the inputs from it")
        inputs = self._batches[0][0]
        if not all(isinstance(x, Tensor) and x.is_floating_point() for x in inputs):
            raise TypeError("batches: expected floating point inputs, this pruner replaces them by ones")
        ones = tuple(torch.ones(1, *x.shape[1:], dtype=torch.float64, device=x.device) for x in inputs)
        output = self._call(parameters, ones, lambda t: t.double().abs())
        if not isinstance(output, Tensor):
            raise TypeError(f"model: expected a tensor as output, this pruner sums it, got {type(output)}")
        return output.sum()

    def chain(self) -> list[tuple[int, int | None]]:
        """The linear layers of a sequential model, with modules between them that work on each feature by itself."""
        at, found = {name: i for i, name in enumerate(self._names)}, []
        for path, layer in _in_sequence(self._model, ""):
            if isinstance(layer, nn.Linear) and not isinstance(layer, SupermaskLayer):
                # torch.nn.utils.prune calls what it has pruned weight_orig
                own = {leaf: at.get(f"{path}.{leaf}".lstrip(".")) for leaf, _ in layer.named_parameters(recurse=False)}
                weight, bias = (own.get(leaf, own.get(f"{leaf}_orig")) for leaf in ("weight", "bias"))
                if weight is None:
                    raise ValueError(f"model: this pruner needs all linear layers, {path}.weight is not to be pruned")
                if found and self.parameters[found[-1][0]].shape[1] != layer.in_features:
                    raise ValueError(f"model: this pruner expects {path} to take what the linear layer before it gives")
                found.append((weight, bias))
            elif not _is_featurewise(layer):
                name = f"{path or 'it'} ({type(layer).__name__})"
                raise ValueError(f"model: this pruner expects linear layers in sequence, {name} is something else")
        return found


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, a module's once, even if it has two: functional_call would not put back what it
    replaces twice. A tensor that modules share is there once for each."""
    return {
        f"{path}.{leaf}".lstrip("."): tensor
        for path, module in model.named_modules()
        for tensors in (module._parameters, module._buffers)
        for leaf, tensor in tensors.items()
        if tensor is not None
    }


def _in_sequence(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that an nn.Sequential, nested or not, calls one after the other, with their names."""
    if not isinstance(module, nn.Sequential):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _in_sequence(child, f"{path}.{name}".lstrip("."))


def _is_featurewise(module: nn.Module) -> bool:
    """Whether each output of ``module`` belongs to one input, as those of an activation do."""
    kinds = ("torch.nn.modules.activation", "torch.nn.modules.dropout")
    one_to_one = isinstance(module, (nn.Identity, nn.Flatten, nn.BatchNorm1d))
    return one_to_one or (type(module).__module__ in kinds and not isinstance(module, nn.MultiheadAttention))


def check_batches(batches: Iterable | None) -> Batches:
    """``batches`` as (inputs, target) pairs; one pair ``(x, y)``, x or y a tensor, is a list of one."""
    if batches is None:
        return []
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise TypeError(f"batches: expected (x, y) pairs, got {type(batches).__name__}")
    batches = list(batches)
    if len(batches) == 2 and any(isinstance(part, Tensor) for part in batches):
        batches = [tuple(batches)]
    pairs = []
    for i, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"batches[{i}]: expected (x, y), got {type(batch).__name__}")
        inputs = tuple(batch[0]) if isinstance(batch[0], (tuple, list)) else (batch[0],)
        if not inputs or not isinstance(inputs[0], Tensor) or inputs[0].dim() == 0 or len(inputs[0]) == 0:
            raise ValueError(f"batches[{i}]: expected x [samples > 0, ...] or a tuple of such tensors")
        pairs.append((tuple(differentiable(x) for x in inputs), differentiable(batch[1])))
    return pairs


def prunable_parameters(model: nn.Module, include_bias: bool, ignore: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters that pruning is about, by name, a shared one once.

    Floating point weights of two and more dimensions and, with ``include_bias``, the biases of their modules: a norm
    has neither. Parametrised weights are left out. ``ignore`` takes out names by shell patterns.
    """
    modules = dict(model.named_modules())
    found = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedTensorMixin):
            raise ValueError(f"model: {name} has no shape yet, run the model once")
        path, _, leaf = name.rpartition(".")
        module = modules[path]
        # a supermask layer's scores choose its subnet; a zero in a parametrization's original is no zero in the weight
        if isinstance(module, (SupermaskLayer, ParametrizationList)) or not parameter.is_floating_point():
            continue
        has_weight = any(p.dim() >= 2 for p in module.parameters(recurse=False))
        is_bias = parameter.dim() == 1 and "bias" in leaf and has_weight
        wanted = parameter.dim() >= 2 or (is_bias and include_bias)
        if wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore):
            found[name] = parameter
    if not found:
        raise ValueError("model: expected parameters to prune (weights of two and more dimensions), found none")
    return found


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; modes and plain tensor attributes are afterwards what they were.

    A forward pass through torch.nn.utils.prune sets such an attribute, ``weight``, which would hold on to our graph.
    """
    training = [module for module in model.modules() if module.training]
    attributes = [(m, k, v) for m in model.modules() for k, v in vars(m).items() if isinstance(v, Tensor)]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module, name, value in attributes:
            vars(module)[name] = value
