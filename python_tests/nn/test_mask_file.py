"""Mask files: round trips, the format, and files that are not theirs."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from pns_fast.nn import SupermaskLinear, get_masks, load_masks, mask_model, save_masks, set_masks
from pns_fast.nn.mask_file import FORMAT


def random_masks():
    generator = torch.Generator().manual_seed(0)
    shapes = {"z.weight": (3, 5), "a.weight": (4, 2, 3, 3), "a.bias": (4,), "scalar": (), "none": (0, 3), "one": (1,)}
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in shapes.items()}


def test_round_trip_of_any_shapes_in_their_order(tmp_path):
    masks = random_masks()
    save_masks(masks, tmp_path / "masks.safetensors")
    loaded = load_masks(str(tmp_path / "masks.safetensors"))
    assert list(loaded) == list(masks)
    assert all(torch.equal(loaded[name], masks[name]) and loaded[name].dtype == torch.bool for name in masks)
    save_masks({}, tmp_path / "empty.safetensors")
    assert load_masks(tmp_path / "empty.safetensors") == {}


def test_round_trip_of_a_model(tmp_path):
    model = mask_model(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)))
    for mask in get_masks(model).values():
        mask.copy_(torch.rand(mask.shape) < 0.5)
    save_masks(model, tmp_path / "masks")
    other = mask_model(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), load_masks(tmp_path / "masks"))
    assert all(torch.equal(a, b) for a, b in zip(get_masks(model).values(), get_masks(other).values(), strict=True))
    save_masks(nn.Sequential(SupermaskLinear(5, 4, 0.5)), tmp_path / "masks")
    assert load_masks(tmp_path / "masks")["0.weight"].sum() == 10


def test_the_format_is_what_the_file_says(tmp_path):
    mask = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    save_masks({"w": mask.T}, tmp_path / "m")  # a view that is not contiguous
    content = (tmp_path / "m").read_bytes()
    stored = safetensors.numpy.load(content)["w"]
    flat = mask.T.flatten().tolist()
    assert stored.dtype == np.uint8
    assert [bool(stored[i // 8] >> (i % 8) & 1) for i in range(9)] == flat
    assert stored[1] >> 1 == 0
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "pns_fast masks", "version": "1", "shapes": '{"w": [3, 3]}'}


def test_one_bit_a_parameter(tmp_path):
    save_masks({"w": torch.ones(1000, 1000, dtype=torch.bool)}, tmp_path / "m")
    assert os.path.getsize(tmp_path / "m") < 125_000 + 500


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(step, tmp_path, monkeypatch):
    path = tmp_path / "m"
    save_masks({"w": torch.ones(3, dtype=torch.bool)}, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space"):
        save_masks({"w": torch.zeros(9, dtype=torch.bool)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def packed(path, tensors, metadata):
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


BITS = {"w": np.array([1], dtype=np.uint8)}
FILES = [
    (lambda p: p.write_text("not masks"), "no safetensors file"),
    (lambda p: packed(p, BITS, None), "another kind"),
    (lambda p: packed(p, BITS, {"format": "pt"}), "another kind"),
    (lambda p: packed(p, BITS, {"format": FORMAT, "version": "2", "shapes": '{"w": [3]}'}), "has '2'"),
    (lambda p: packed(p, BITS, {"format": FORMAT, "version": "1", "shapes": '{"v": [3]}'}), "damaged"),
    (lambda p: packed(p, BITS, {"format": FORMAT, "version": "1"}), "damaged"),
    (lambda p: packed(p, BITS, {"format": FORMAT, "version": "1", "shapes": '{"w": [9]}'}), "damaged"),
    (lambda p: packed(p, BITS, {"format": FORMAT, "version": "1", "shapes": '{"w": [-2, -2]}'}), "damaged"),
    (lambda p: packed(p, {"w": np.ones(1)}, {"format": FORMAT, "version": "1", "shapes": '{"w": [1]}'}), "damaged"),
]


@pytest.mark.parametrize(("write", "message"), FILES)
def test_other_files_are_refused(write, message, tmp_path):
    write(tmp_path / "m")
    with pytest.raises(ValueError, match=message) as caught:
        load_masks(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    save_masks(random_masks(), tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="no safetensors file"):
        load_masks(tmp_path / "m")


def test_wrong_calls(tmp_path):
    with pytest.raises(ValueError, match="model_or_masks: expected a model with masked layers"):
        save_masks(nn.Linear(2, 2), tmp_path / "m")
    with pytest.raises(TypeError, match=r"model_or_masks\['w'\]: expected a bool tensor, got torch.float32"):
        save_masks({"w": torch.ones(2)}, tmp_path / "m")
    with pytest.raises(TypeError, match="model_or_masks: expected a dict"):
        save_masks([torch.ones(2, dtype=torch.bool)], tmp_path / "m")
    with pytest.raises(OSError):
        save_masks({"w": torch.ones(2, dtype=torch.bool)}, tmp_path / "missing" / "m")
    with pytest.raises(OSError):
        load_masks(tmp_path / "missing")
    with pytest.raises(IsADirectoryError, match=r"path: expected a mask file, .* is a directory"):
        load_masks(tmp_path)
    for wrong in (None, 5, b"m"):
        with pytest.raises(TypeError, match=r"path: expected a str or an os\.PathLike"):
            load_masks(wrong)
        with pytest.raises(TypeError, match=r"path: expected a str or an os\.PathLike"):
            save_masks({"w": torch.ones(2, dtype=torch.bool)}, wrong)
    with pytest.raises(ValueError, match="model_or_masks: '__metadata__' is no name for a mask"):
        save_masks({"__metadata__": torch.ones(2, dtype=torch.bool)}, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_masks_of_another_model_are_refused(tmp_path):
    save_masks(mask_model(nn.Sequential(nn.Linear(5, 4))), tmp_path / "m")
    with pytest.raises(ValueError, match=r"masks\['0.weight'\]: expected shape \[4, 6\], got \[4, 5\]"):
        set_masks(mask_model(nn.Sequential(nn.Linear(6, 4))), load_masks(tmp_path / "m"))
    with pytest.raises(ValueError, match=r"'0.weight' is no parameter"):
        set_masks(mask_model(nn.Linear(5, 4)), load_masks(tmp_path / "m"))
