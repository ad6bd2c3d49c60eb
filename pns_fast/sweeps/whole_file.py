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
    is_file = path.is_file() or not path.exists()
    part = Path(f"{path}.part") if is_file else path
    try:
        yield part
        if is_file:
            os.replace(part, path)
    except OSError as error:
        # a full disk has no name, and .part is not the user's; what has no number says by itself what it is
        if error.errno is not None and (error.filename is None or Path(error.filename) == part):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if is_file:
            part.unlink(missing_ok=True)
