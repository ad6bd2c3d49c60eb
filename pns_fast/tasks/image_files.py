"""Readers of the files that image data sets come in: IDX (MNIST), and CIFAR's binary and Python versions.

Each gives ``images`` uint8 [n, C, H, W] and ``labels`` int64 [n], and trusts nothing it reads: sizes, header fields and
labels are checked, and of a pickle only plain arrays, numbers, strings and containers are made.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SIDE, _CHANNELS = 32, 3  # of a CIFAR image
_PIXELS = _CHANNELS * _SIDE * _SIDE

# MD5 of the files as distributed, the sums that torchvision checks too. Of the files of CIFAR's binary version and of
# unpacked IDX files none is widely known: of those the number of images is checked.
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR100_MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}


class DataError(ValueError):
    """A file of a data set that is not what it should be; the message begins with its path."""


@dataclass(frozen=True)
class Split:
    """Images and their labels, as a file has them."""

    images: np.ndarray  # uint8 [n, C, H, W]
    labels: np.ndarray  # int64 [n]


@dataclass(frozen=True)
class CifarFormat:
    """What tells CIFAR-10 and CIFAR-100 apart."""

    n_classes: int
    train: dict[str, int]  # file of the Python version -> images in it
    test: dict[str, int]
    md5: dict[str, str]
    python_labels: str  # key of the labels in the Python version
    n_label_bytes: int  # of the binary version; the last one counts
    folders: tuple[str, ...]  # names the archives unpack to


CIFAR10 = CifarFormat(
    10,
    {f"data_batch_{i}": 10_000 for i in range(1, 6)},
    {"test_batch": 10_000},
    CIFAR10_MD5,
    "labels",
    1,
    ("cifar-10-batches-bin", "cifar-10-batches-py"),
)
CIFAR100 = CifarFormat(
    100,
    {"train": 50_000},
    {"test": 10_000},
    CIFAR100_MD5,
    "fine_labels",
    2,
    ("cifar-100-binary", "cifar-100-python"),
)


def read_mnist(folder: Path, md5: dict[str, str], verify: bool) -> tuple[Split, Split]:
    """Training and test split of MNIST or Fashion-MNIST: four IDX files, each packed (.gz) or not.

    Args:
        folder: that holds the files.
        md5: of the packed files.
        verify: whether the files must be the official ones; False takes any number of images, and any checksum.
    """
    splits = []
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        images = _read_idx(folder, f"{part}-images-idx3-ubyte", 3, md5, verify)
        labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", 1, md5, verify)
        path = folder / f"{part}-labels-idx1-ubyte"
        if len(images) != len(labels):
            raise DataError(f"{path}: has {len(labels)} labels for {len(images)} images")
        if verify and images.shape != (n, 28, 28):
            raise DataError(f"{path}: expected {n} images of 28 x 28, got {images.shape}")
        splits.append(Split(images[:, None], _labels(path, labels, 10)))
    return splits[0], splits[1]


def _read_idx(folder: Path, name: str, n_dimensions: int, md5: dict[str, str], verify: bool) -> np.ndarray:
    """An IDX file of bytes: 0, 0, type 8 (uint8), the number of dimensions, their sizes (big-endian), the values."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise DataError(f"{folder}: expected the file {name} or {name}.gz, found neither")
    content = path.read_bytes()
    if verify and path.name in md5:
        _check_md5(path, content, md5[path.name])
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cannot be unpacked ({error})") from error
    magic, n_header = bytes([0, 0, 8, n_dimensions]), 4 + 4 * n_dimensions
    if content[:4] != magic or len(content) < n_header:
        raise DataError(f"{path}: expected an IDX file that begins with {magic.hex()}, got {content[:4].hex()}")
    shape = np.frombuffer(content, ">u4", n_dimensions, offset=4).astype(int).tolist()
    expected = n_header + int(np.prod(shape))
    if len(content) != expected:
        raise DataError(f"{path}: its header says {shape}, {expected} bytes in all, got {len(content)}")
    return np.frombuffer(content, np.uint8, offset=n_header).reshape(shape)


def read_cifar(folder: Path, form: CifarFormat, verify: bool) -> tuple[Split, Split]:
    """Training and test split of CIFAR, in its binary version if that is there, else in its Python version.

    Args:
        folder: that holds the files.
        form: CIFAR10 or CIFAR100.
        verify: whether the files must be the official ones; False takes any number of images, and any checksum.
    """
    first = next(iter(form.train))
    is_binary = (folder / f"{first}.bin").is_file()
    if not is_binary and not (folder / first).is_file():
        raise DataError(f"{folder}: expected the file {first}.bin (binary version) or {first} (Python), found neither")
    read = _read_binary if is_binary else _read_python
    splits = []
    for files in (form.train, form.test):
        parts = []
        for name, n in files.items():
            path = folder / (f"{name}.bin" if is_binary else name)
            if not path.is_file():
                raise DataError(f"{path}: no such file")
            part = read(path, form, verify)
            if verify and len(part.labels) != n:
                raise DataError(f"{path}: expected {n} images, got {len(part.labels)}")
            parts.append(part)
        splits.append(Split(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("images", "labels"))))
    return splits[0], splits[1]


def _read_binary(path: Path, form: CifarFormat, verify: bool) -> Split:
    """Records of label bytes and 3,072 pixel bytes: red, green, blue, each row by row."""
    content, n_record = path.read_bytes(), form.n_label_bytes + _PIXELS
    if not content or len(content) % n_record:
        raise DataError(f"{path}: expected records of {n_record} bytes, got {len(content)} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, n_record)
    images = records[:, form.n_label_bytes :].reshape(-1, _CHANNELS, _SIDE, _SIDE)
    return Split(images, _labels(path, records[:, form.n_label_bytes - 1], form.n_classes))


def _read_python(path: Path, form: CifarFormat, verify: bool) -> Split:
    """A pickled dictionary with ``data`` uint8 [n, 3072] and a list of labels."""
    content = path.read_bytes()
    if verify:
        _check_md5(path, content, form.md5[path.name])
    try:
        batch = _PlainUnpickler(content).load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{path}: not a pickle of CIFAR's Python version ({error})") from error
    data, labels = (batch.get(k) if isinstance(batch, dict) else None for k in ("data", form.python_labels))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise DataError(f"{path}: expected 'data', an array uint8 [n, {_PIXELS}]")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(y) is int for y in labels):
        raise DataError(f"{path}: expected {form.python_labels!r}, a list of {len(data)} ints")
    return Split(data.reshape(-1, _CHANNELS, _SIDE, _SIDE), _labels(path, np.array(labels), form.n_classes))


class _PlainUnpickler(pickle.Unpickler):
    """Makes NumPy arrays and built-in containers; any other class or function in the file is an error, not a call."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")

    def find_class(self, module: str, name: str):
        # numpy.core became numpy._core in NumPy 2; files are of either time
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in the old protocols
            return codecs.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")


def _labels(path: Path, labels: np.ndarray, n_classes: int) -> np.ndarray:
    if len(labels) == 0:
        raise DataError(f"{path}: has no images")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(f"{path}: expected labels from 0 to {n_classes - 1}, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)


def _check_md5(path: Path, content: bytes, expected: str) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: expected the official file (MD5 {expected}), got another or a damaged one ({found}); "
            "verify=False reads any file of this format"
        )
