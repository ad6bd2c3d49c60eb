"""Whole models: mask linear layers and convolutions, read and set masks by name, turn all back into plain layers.

A mask has the qualified name of its parameter, "encoder.0.weight", as in ``model.named_parameters()``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..networks.unwrap import copied, unwrap
from .fused_sequential import fuse, unfuse
from .masked_conv2d import MaskedConv2d, unsupported
from .masked_layer import MaskedLayer, become_masked, become_plain, check_mask
from .masked_linear import MaskedLinear
from .supermask_conv2d import SupermaskConv2d
from .supermask_layer import SupermaskLayer, become_supermask, check_keep, subnet_become_plain
from .supermask_linear import SupermaskLinear

NamedMasks = Mapping[str, Tensor]


def mask_model(model: nn.Module, masks: NamedMasks | None = None) -> nn.Module:
    """A copy of ``model`` in which every plain ``nn.Linear`` is a :class:`MaskedLinear`, every plain ``nn.Conv2d`` a
    :class:`MaskedConv2d`.

    Everything else stays as it is: norms, embeddings, other convolutions (with groups, padded with other than zeros);
    subclasses of the two and parametrised ones; layers whose weight is read by another module, which would not see
    the mask (inside nn.MultiheadAttention and nn.TransformerEncoderLayer, or tied to an embedding). Modules and
    parameters that are shared stay shared. Masked layers that ``model`` has already keep their masks. A plain
    ``nn.Sequential`` with layers that may run in one call, as a convolution and its ReLU, becomes a
    :class:`FusedSequential`, which does that.

    Args:
        model: any module; it is not changed. An optimiser must be made of the copy's parameters.
        masks: bool masks by parameter name, as :func:`pns_fast.prune_module` returns them; a parameter without one
            keeps everything.

    Returns:
        The copy.

    Raises:
        TypeError, ValueError: naming the mask; also a mask for a parameter of none of these layers.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> masked = mask_model(model, {"0.weight": torch.eye(3, 2, dtype=torch.bool)})
        >>> masked[0]
        MaskedLinear(in_features=2, out_features=3, bias=True, density=0.5556)
    """
    model = copied(unwrap(model))
    shared = {key: mask for _, key, mask in _masks(model, MaskedLayer)}
    for layer in _plain_layers(model):
        become_masked(layer, _MASKED[type(layer)])
        for name, mask in layer.masks().items():  # one parameter, one mask
            setattr(layer, f"{name}_mask", shared.setdefault(_key(layer, name), mask))
    fuse(model)
    if masks is not None:
        set_masks(model, masks)
    return model


def supermask_model(model: nn.Module, keep: float) -> nn.Module:
    """A copy of ``model`` in which every plain ``nn.Linear`` is a :class:`SupermaskLinear`, every plain ``nn.Conv2d`` a
    :class:`SupermaskConv2d`, with fixed parameters and fresh scores; :func:`pns_fast.edge_popup_module` trains them.

    Args:
        model: any module; it is not changed. What :func:`mask_model` leaves as it is stays as it is here. A parameter
            that layers share has one score, which they share as well.
        keep: density in [0, 1] of each layer's weights and of its biases; an attribute of each layer.

    Returns:
        The copy. Parameters outside these layers are still trainable.

    Raises:
        TypeError, ValueError: naming ``keep``.

    Example:
        >>> model = supermask_model(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)), keep=0.25)
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['0.weight_scores', '0.bias_scores', '1.weight', '1.bias']
    """
    check_keep(keep)
    model = copied(unwrap(model))
    shared: dict[Hashable, nn.Parameter] = {}
    for layer in _plain_layers(model):
        become_supermask(layer, _SUPERMASK[type(layer)], keep)
        for name, scores in layer._scores():  # one parameter, one mask
            setattr(layer, f"{name}_scores", shared.setdefault(_key(layer, name), scores))
    return model


_MASKED: dict[type, type[MaskedLayer]] = {cls.plain: cls for cls in (MaskedLinear, MaskedConv2d)}
_SUPERMASK: dict[type, type[SupermaskLayer]] = {cls.plain: cls for cls in (SupermaskLinear, SupermaskConv2d)}


def _plain_layers(model: nn.Module) -> list[nn.Module]:
    plain = [m for m in model.modules() if type(m) in _MASKED and set(m._parameters) == {"weight", "bias"}]
    plain = [m for m in plain if not (isinstance(m, nn.Conv2d) and unsupported(m))]
    readers = [m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    hidden = {id(child) for reader in readers for child in reader.children()}
    others = [m for m in model.modules() if type(m) not in (*_MASKED, *_MASKED.values())]
    elsewhere = {id(p) for m in others for p in m.parameters(recurse=False)}
    return [m for m in plain if id(m) not in hidden and not elsewhere & {id(p) for p in m.parameters()}]


def masked_layers(
    model: nn.Module, remove_duplicate: bool = True
) -> Iterator[tuple[str, MaskedLayer | SupermaskLayer]]:
    """Every masked or supermask layer with its name, each once, or once for each of its names."""
    for name, module in unwrap(model).named_modules(remove_duplicate=remove_duplicate):
        if isinstance(module, (MaskedLayer, SupermaskLayer)):
            yield name, module


def _masks(model: nn.Module, kind: type = object) -> Iterator[tuple[str, Hashable, Tensor]]:
    """Name, key and mask of every parameter of masked layers of a kind; of a shared one for each of its names."""
    for prefix, layer in masked_layers(model, remove_duplicate=False):
        for name, mask in layer.masks().items() if isinstance(layer, kind) else ():
            yield _join(prefix, name), _key(layer, name), mask


def _key(layer: nn.Module, name: str) -> Hashable:
    """Equal for a parameter that layers share. One that is computed (parametrised) is a new tensor each time."""
    parameter = layer._parameters.get(name)
    return (id(layer), name) if parameter is None else id(parameter)


def get_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks of all masked and supermask layers by parameter name; the buffers themselves, not copies.

    Args:
        model: any module; None of its layers need be masked.

    Returns:
        Parameter name -> bool mask, a shared parameter once.

    Example:
        >>> list(get_masks(torch.nn.Sequential(MaskedLinear(2, 3), torch.nn.Linear(3, 1))))
        ['0.weight', '0.bias']
    """
    masks, seen = {}, set()
    for name, key, mask in _masks(model):
        if key not in seen:
            masks[name] = mask
        seen.add(key)
    return masks


def set_masks(model: nn.Module, masks: NamedMasks) -> None:
    """Copies masks into the masked layers of ``model``, in place; layers without a mask stay as they are.

    Args:
        model: with masked layers, see :func:`mask_model`.
        masks: bool masks by parameter name, a shared parameter by any of its names.

    Raises:
        TypeError, ValueError: naming the mask; then nothing was changed.

    Example:
        >>> model = torch.nn.Sequential(MaskedLinear(2, 1))
        >>> set_masks(model, {"0.weight": torch.tensor([[True, False]])})
        >>> model[0].weight_mask
        tensor([[ True, False]])
    """
    model = unwrap(model)
    # All masks of a parameter: layers that share it share one, until a move to another device gives each its own.
    of_parameter: dict[Hashable, list[Tensor]] = {}
    targets: dict[str, list[Tensor]] = {}
    for name, key, mask in _masks(model, MaskedLayer):
        targets[name] = of_parameter.setdefault(key, [])
        targets[name].append(mask)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, mask in check_names("masks", masks).items():
        if name not in targets:
            kind = "a parameter of no masked layer" if name in names else "no parameter"
            raise ValueError(
                f"masks: {name!r} is {kind} of the model; other parameters are pruned by finalize(model, masks) "
                f"and keep_pruned(optimizer, model, masks)"
            )
        check_mask(f"masks[{name!r}]", mask, targets[name][0])
    _check_one_mask_each(masks, targets)
    for name, mask in masks.items():
        for target in targets[name]:
            target.copy_(mask)


def check_names(argument: str, masks: NamedMasks) -> NamedMasks:
    """``masks`` if it is a mapping with names as keys."""
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"{argument}: expected a dict, parameter name -> bool mask (of a population: masks.named(i)), "
            f"got {type(masks).__name__}"
        )
    for name in masks:
        if not isinstance(name, str):
            raise TypeError(f"{argument}: expected parameter names as keys, got {name!r}")
    return masks


def check_masks(model: nn.Module, masks: NamedMasks) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """First name -> (parameter, mask) of masks of any parameters of ``model``, by any of their names."""
    model = unwrap(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in check_names("masks", masks).items():
        if name not in parameters:
            raise ValueError(f"masks: expected names of the model's parameters, got {name!r}")
        check_mask(f"masks[{name!r}]", mask, parameters[name])
    _check_one_mask_each(masks, parameters)
    first_names = {id(p): name for name, p in model.named_parameters()}
    return {first_names[id(parameters[name])]: (parameters[name], mask) for name, mask in masks.items()}


def _check_one_mask_each(masks: NamedMasks, owners: Mapping[str, object]) -> None:
    """Refuses different masks for two names of one parameter; ``owners``: name -> what is the same for both."""
    first: dict[int, str] = {}
    for name, mask in masks.items():
        other = first.setdefault(id(owners[name]), name)
        if other != name and not torch.equal(mask, masks[other].to(mask.device)):
            raise ValueError(f"masks: {other!r} and {name!r} are one parameter, expected equal masks, got two")


def finalize(model: nn.Module, masks: NamedMasks | None = None) -> nn.Module:
    """A copy of ``model`` with plain layers and zeros where they were pruned; its outputs are the same.

    Args:
        model: with masked or supermask layers, or any module if ``masks`` are given; it is not changed.
        masks: bool masks of any parameters by name, embeddings for instance; written in as zeros as well.

    Returns:
        The copy: every masked and supermask layer is a trainable plain one.

    Raises:
        TypeError, ValueError: naming the mask.

    Example:
        >>> plain = finalize(torch.nn.Sequential(pns.nn.SupermaskLinear(20, 10, keep=0.1, bias=False)))
        >>> plain, int((plain[0].weight != 0).sum())
        (Sequential(
          (0): Linear(in_features=20, out_features=10, bias=False)
        ), 20)
    """
    model = copied(unwrap(model))
    for _, layer in list(masked_layers(model)):
        become_plain(layer) if isinstance(layer, MaskedLayer) else subnet_become_plain(layer)
    unfuse(model)
    if masks is not None:
        with torch.no_grad():
            for parameter, mask in check_masks(model, masks).values():
                parameter.masked_fill_(~mask.to(parameter.device), 0)
    return model


def masked_parameters(model: nn.Module, bias: bool = False) -> Iterator[tuple[Tensor, nn.Parameter]]:
    """The ``(mask, parameter)`` pairs that Synaptic-Flow's pruners loop over.

    The masks are the layers' bool buffers: a new mask is written by ``mask.copy_(...)``.

    Args:
        model: with masked layers.
        bias: biases too.

    Returns:
        An iterator, weights and biases in the order of the layers.

    Source: ``Utils/generator.py`` of https://github.com/ganguli-lab/Synaptic-Flow.

    Example:
        >>> model = torch.nn.Sequential(MaskedLinear(2, 3), torch.nn.ReLU(), MaskedLinear(3, 1))
        >>> [tuple(mask.shape) for mask, _ in masked_parameters(model, bias=True)]
        [(3, 2), (3,), (1, 3), (1,)]
    """
    for _, layer in masked_layers(model):
        if isinstance(layer, MaskedLayer):
            yield layer.weight_mask, layer.weight
            if bias and layer.bias is not None:
                yield layer.bias_mask, layer.bias


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
