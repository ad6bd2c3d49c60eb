"""Mask files: safetensors with one bit a parameter.

A tensor a mask, named as its parameter: uint8 ``[ceil(n / 8)]``, entry i of the flattened mask in bit ``i % 8`` of
byte ``i // 8``, unused bits 0. The file's metadata says ``format``, ``version`` and, as JSON, the ``shapes``.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor, nn

from .model import NamedMasks, check_names, get_masks

FORMAT, VERSION = "pns_fast masks", "1"
_METADATA = "__metadata__"  # beside the tensors in the header of a safetensors file


def save_masks(model_or_masks: nn.Module | NamedMasks, path: str | os.PathLike) -> None:
    """Writes masks to a file of one bit a parameter; the file appears whole or not at all.

    Args:
        model_or_masks: a model with masked or supermask layers, or a dict, parameter name -> bool mask.
        path: of the file, ending in ".safetensors" by custom; an old one is replaced.

    Raises:
        TypeError, ValueError: naming the mask, or a model without masked layers.
        OSError: the file cannot be written.

    Example:
        >>> save_masks({"fc.weight": torch.tensor([[True, False]])}, "masks.safetensors")
        >>> load_masks("masks.safetensors")
        {'fc.weight': tensor([[ True, False]])}
    """
    if isinstance(model_or_masks, nn.Module):
        masks = get_masks(model_or_masks)
        if not masks:
            raise ValueError("model_or_masks: expected a model with masked layers, got one without; see mask_model")
    else:
        masks = check_names("model_or_masks", model_or_masks)
    path = _check_path(path)
    if _METADATA in masks:
        raise ValueError(f"model_or_masks: {_METADATA!r} is no name for a mask, the file's metadata has it")
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"model_or_masks[{name!r}]: expected a bool tensor, got {got}")
    packed = {n: np.packbits(m.detach().cpu().numpy().ravel(), bitorder="little") for n, m in masks.items()}
    shapes = json.dumps({name: list(mask.shape) for name, mask in masks.items()})
    content = safetensors.numpy.save(packed, {"format": FORMAT, "version": VERSION, "shapes": shapes})
    _write_whole(path, content)


def _check_path(path: str | os.PathLike) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a str or an os.PathLike, got {type(path).__name__}")
    return Path(path)


def _write_whole(path: Path, content: bytes) -> None:
    if path.exists() and not path.is_file():  # a device, which must not be replaced
        raise ValueError(f"path: expected the name of a file, {path} is something else")
    # in the same folder: os.replace is atomic within one file system only
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_masks(path: str | os.PathLike) -> dict[str, Tensor]:
    """Reads what :func:`save_masks` wrote; :func:`mask_model` and :func:`set_masks` put it into a model.

    Args:
        path: of the file.

    Returns:
        Parameter name -> bool mask, on the CPU.

    Raises:
        ValueError: not a mask file, one of a later version, or a damaged one.
        OSError: the file cannot be read.

    Example:
        >>> save_masks(torch.nn.Sequential(pns.nn.MaskedLinear(2, 1)), "masks.safetensors")
        >>> load_masks("masks.safetensors")
        {'0.weight': tensor([[True, True]]), '0.bias': tensor([True])}
    """
    path = _check_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path: expected a mask file, {path} is a directory")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(f"path: expected a mask file, {path} is no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"path: expected a mask file, {path} is a safetensors file of another kind")
    if metadata.get("version") != VERSION:
        raise ValueError(f"path: expected a mask file of version {VERSION}, {path} has {metadata.get('version')!r}")
    shapes = json.loads(metadata.get("shapes", "{}"))
    if set(shapes) != set(packed):
        raise ValueError(f"path: {path} is damaged, the names of its masks and of its shapes differ")
    return {name: _unpack(f"{path} is damaged, {name}", packed[name], shape) for name, shape in shapes.items()}


def _unpack(name: str, bits: np.ndarray, shape: list[int]) -> Tensor:
    n = math.prod(shape)
    if min(shape, default=0) < 0 or bits.dtype != np.uint8 or bits.shape != ((n + 7) // 8,):
        raise ValueError(f"path: {name}: {bits.dtype} of shape {bits.shape} does not hold the bits of {shape}")
    flat = np.unpackbits(bits, count=n, bitorder="little").astype(bool)
    return torch.from_numpy(flat).reshape(shape)
