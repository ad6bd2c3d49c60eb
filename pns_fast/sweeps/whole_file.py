"""A file that is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Where to write what ``path`` is to be: beside it, so that a file that is there stays until the new one is whole.

    A pipe or a device, /dev/stdout, is written to itself: a file in its place would not be what it is.

    Raises:
        OSError: ``path`` is a directory or cannot be written.

    Example:
        >>> with whole_file("table.csv") as part:
        ...     _ = part.write_text("a,b")
        >>> Path("table.csv").read_text(), part.exists()
        ('a,b', False)
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory, expected a file")
    if path.exists() and not path.is_file():
        yield path
        return
    part = Path(f"{path}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
