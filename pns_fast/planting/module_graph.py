"""Two modules as one sequence of steps: which layers feed which, and which of their channels must lie together.

Planting multiplies the channels of a layer by positive scales and moves them to other places. ReLU, pooling, dropout
and a flatten pass that through. A sum does so only where both summands have the same scales and places: their layers
are on one *line*, which ends at the next layer that reads it.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..networks.unwrap import copied

_LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_PASSING_MODULES = (
    *(nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout2d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_PASSING_FUNCTIONS = (
    *(F.relu, torch.relu, F.dropout, F.dropout2d),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
)
_PASSING_METHODS = ("relu", "relu_", "contiguous")
_SUMS = (operator.add, operator.iadd, torch.add)


class Line:
    """The layers whose outputs are added up, in one place: a union-find node."""

    def __init__(self) -> None:
        self._parent: Line | None = None
        self.is_input = self.is_output = False
        self.has_pixels = False  # written by convolutions: a flatten puts a channel's pixels side by side

    def root(self) -> Line:
        line = self
        while line._parent is not None:
            line = line._parent
        return line

    def join(self, other: Line) -> None:
        """Both become one line."""
        mine, its = self.root(), other.root()
        if mine is not its:
            its._parent = mine
            mine.is_input |= its.is_input
            mine.is_output |= its.is_output
            mine.has_pixels |= its.has_pixels


@dataclass(frozen=True)
class Step:
    """A layer: the line it reads (flattened or not) and the one it adds to."""

    target: str  # its name in the target
    mother: str  # and in the mother
    reads: Line
    is_flat: bool
    writes: Line


class _Tracer(fx.Tracer):
    """Layers are leaves, masked ones too."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _LAYERS) or super().is_leaf_module(module, name)


def folded(model: nn.Module, argument: str) -> nn.Module:
    """A copy in evaluation mode, zeros where masked layers prune, each batch norm folded into the layer before it."""
    model = copied(model).eval()
    _write_masks(model)
    modules, nodes = dict(model.named_modules()), list(_trace(model, argument).nodes)
    n_calls = Counter(id(modules[node.target]) for node in nodes if node.op == "call_module")
    for node in nodes:
        if _is_layer(node, model):
            _check_forward(modules[node.target], f"{argument}: {node.target}")
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, _NORMS):
            continue
        before = node.args[0]
        layer = modules.get(before.target) if before.op == "call_module" else None
        if not isinstance(layer, _LAYERS) or len(before.users) != 1 or n_calls[id(layer)] != 1:
            raise ValueError(
                f"{argument}: batch norm {node.target} follows no layer of its own that it can be folded into"
            )
        if norm.running_mean is None:
            raise ValueError(f"{argument}: batch norm {node.target} tracks no statistics, so it cannot be folded")
        fuse = fuse_conv_bn_eval if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval
        _replace(model, layer, fuse(layer, norm))
        _replace(model, norm, nn.Identity())
    return model


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Under each of its names: forward may use another than the graph."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def _write_masks(model: nn.Module) -> None:
    """Masked and supermask layers keep all of what is left: norms are folded into it, and the mother is written to."""
    for layer in model.modules():
        masks = layer.masks() if isinstance(layer, _LAYERS) and hasattr(layer, "masks") else {}
        for name, mask in masks.items():
            if name in layer._parameters:
                layer._parameters[name].masked_fill_(~mask, 0)
                mask.fill_(True)


def _check_forward(layer: nn.Module, what: str) -> None:
    """A subclass may compute something else of its weights than a layer of them does; a masked one does not."""
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    if type(layer).forward is not kind.forward and not hasattr(layer, "masks"):
        raise ValueError(f"{what} is a {type(layer).__name__} with a forward of its own, expected a {kind.__name__}")


def steps(target: nn.Module, mother: nn.Module) -> list[Step]:
    """The layers of two folded modules of the same structure, in the order of computation.

    Raises:
        ValueError: the structures differ, or have something that scales do not pass through.
    """
    lines: dict[fx.Node, tuple[Line, bool]] = {}
    found, written = [], set()
    for node, twin in _pairs(target, mother):
        if node.op == "placeholder":
            lines[node] = Line(), False
            lines[node][0].is_input = True
        elif node.op == "output":
            lines[node.args[0]][0].root().is_output = True
        elif _is_layer(node, target):
            layer = mother.get_submodule(twin.target)
            _check_layer(twin.target, target.get_submodule(node.target), layer)
            _check_writable(twin.target, layer, written)
            read, is_flat = lines[node.args[0]]
            lines[node] = Line(), False
            lines[node][0].has_pixels = isinstance(layer, nn.Conv2d)
            found.append(Step(node.target, twin.target, read, is_flat, lines[node][0]))
        else:
            lines[node] = _passed(node, target, [lines[i] for i in node.all_input_nodes])
    return found


def _trace(model: nn.Module, argument: str) -> fx.Graph:
    try:
        graph = _Tracer().trace(model)
    except fx.proxy.TraceError as error:
        raise ValueError(f"{argument}: its forward cannot be traced ({error})") from error
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    outputs = [n for n in graph.nodes if n.op == "output"]
    if len(inputs) != 1 or not isinstance(outputs[0].args[0], fx.Node):
        raise ValueError(f"{argument}: expected one tensor in and one out, got {len(inputs)} inputs")
    return graph


def _pairs(target: nn.Module, mother: nn.Module) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The nodes of both graphs, step by step the same."""
    graphs = [list(_trace(m, name).nodes) for name, m in (("target", target), ("mother", mother))]
    if len(graphs[0]) != len(graphs[1]):
        raise ValueError(
            f"mother: expected the structure of the target, {len(graphs[0])} operations, got {len(graphs[1])}"
        )
    order = {node: k for nodes in graphs for k, node in enumerate(nodes)}
    for node, twin in zip(*graphs, strict=True):
        reads = [[order[i] for i in n.all_input_nodes] for n in (node, twin)]
        if (node.op, _kind(node, target), reads[0]) != (twin.op, _kind(twin, mother), reads[1]):
            raise ValueError(
                f"mother: expected the structure of the target, which has {_shown(node, target)} where the mother has "
                f"{_shown(twin, mother)}"
            )
        yield node, twin


def _kind(node: fx.Node, model: nn.Module) -> object:
    """What two nodes must have in common; of layers their sizes may differ."""
    if node.op == "call_module":
        module = model.get_submodule(node.target)
        return "layer" if isinstance(module, _LAYERS) else (type(module), module.extra_repr())
    constants = [a for a in (*node.args, *node.kwargs.values()) if not isinstance(a, fx.Node)]
    return None if node.op in ("placeholder", "output") else (node.target, repr(constants))


def _shown(node: fx.Node, model: nn.Module) -> str:
    if node.op == "call_module":
        return f"{node.target} ({type(model.get_submodule(node.target)).__name__})"
    return str(getattr(node.target, "__name__", node.target))


def _is_layer(node: fx.Node, model: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(node.target), _LAYERS)


def _passed(node: fx.Node, model: nn.Module, read: list[tuple[Line, bool]]) -> tuple[Line, bool]:
    """The line that an operation between layers hands on."""
    module = model.get_submodule(node.target) if node.op == "call_module" else None
    is_sum = (node.op == "call_function" and node.target in _SUMS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )
    if is_sum and len(read) == 2 and not node.kwargs and read[0][1] == read[1][1]:
        read[0][0].join(read[1][0])
        return read[0]
    if len(read) == 1:
        passes = (
            isinstance(module, _PASSING_MODULES)
            or (node.op == "call_function" and node.target in _PASSING_FUNCTIONS)
            or (node.op == "call_method" and node.target in _PASSING_METHODS)
        )
        if passes:
            return read[0]
        if _is_flatten(node, module):
            return read[0][0], True
    raise ValueError(
        f"target: planting cannot pass {_shown(node, model)}; it knows Conv2d, Linear, ReLU, max and average pooling, "
        "flatten, dropout, batch norm after a layer, and sums"
    )


def _is_flatten(node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    is_call = (node.op == "call_function" and node.target is torch.flatten) or (
        node.op == "call_method" and node.target == "flatten"
    )
    return is_call and (node.args[1:] == (1,) or node.kwargs == {"start_dim": 1})


def _check_layer(name: str, target: nn.Module, mother: nn.Module) -> None:
    """The mother's layer must be of the target's kind, at least as wide, and have a bias where the target has one."""
    if isinstance(target, nn.Conv2d) != isinstance(mother, nn.Conv2d):
        raise ValueError(f"mother: {name} is a {type(mother).__name__}, the target's a {type(target).__name__}")
    if isinstance(target, nn.Conv2d):
        for setting in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
            wanted, given = getattr(target, setting), getattr(mother, setting)
            if wanted != given:
                raise ValueError(f"mother: {name} has {setting} {given}, the target's {wanted}")
        if target.groups != 1:
            raise ValueError(f"target: {name} has {target.groups} groups, planting knows 1")
    sizes = [tuple(m.weight.shape[:2]) for m in (target, mother)]
    if any(small > large for small, large in zip(*sizes, strict=True)):
        raise ValueError(f"target: {name} is wider than the mother's, {sizes[0]} outputs and inputs against {sizes[1]}")
    if target.bias is not None and mother.bias is None and bool(target.bias.detach().any()):
        raise ValueError(f"mother: {name} has no bias, the target's has one")


def _check_writable(name: str, layer: nn.Module, written: set[int]) -> None:
    """A mother's layer must have parameters that hold what is written to them, and be written to once."""
    if hasattr(layer, "weight_scores"):
        raise ValueError(f"mother: {name} chooses its parameters by scores, see pns_fast.nn.finalize")
    for leaf in ("weight", "bias"):
        parameter = getattr(layer, leaf)
        if parameter is None:
            continue
        if leaf not in layer._parameters:
            raise ValueError(f"mother: {name}.{leaf} is computed from others (parametrised, or pruned by torch)")
        if id(parameter) in written:
            raise ValueError(f"mother: {name}.{leaf} is used twice (a shared or tied layer), planting fills it once")
        written.add(id(parameter))
