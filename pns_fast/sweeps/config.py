"""The options of a sweep as a TOML file: one ``name = value`` a flag, lists for comma-separated ones."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping


def read_options(path: str | os.PathLike, known: Iterable[str]) -> dict[str, str]:
    """The options in a TOML file as the text that would follow each flag on the command line.

    Args:
        path: the file; names may be written with dashes or underscores.
        known: the names accepted, with dashes.

    Returns:
        Name (with dashes) -> text.

    Raises:
        ValueError: no TOML, an unknown name, a value that no flag takes, or Python 3.10, which reads no TOML.
        OSError: the file cannot be read.
    """
    try:
        import tomllib
    except ModuleNotFoundError:
        raise ValueError(f"config {path}: reading TOML needs Python 3.11 or newer; give the options as flags") from None
    with open(path, "rb") as file:
        try:
            content = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"config {path}: not TOML ({error})") from None
    known, options = list(known), {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ValueError(f"config {path}: unknown option {key}; {hint}")
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(v) in (str, int, float) for v in values):
            raise ValueError(f"config {path}: {key}: expected a string, a number or a list, got {value!r}")
        options[name] = ",".join(str(v) for v in values)
    return options


def write_options(options: Mapping[str, object]) -> str:
    """TOML that :func:`read_options` reads: tuples become lists, what is None is left out.

    Example:
        >>> print(write_options({"task": ("circle", "relu"), "lr": 0.001, "figure": None}), end="")
        task = ["circle", "relu"]
        lr = 0.001
    """
    lines = []
    for name, value in options.items():
        if value is not None:
            # a JSON string, number or list of them is a TOML one; in ASCII it would have surrogates, which TOML has not
            text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
            lines.append(f"{name} = {text}\n")
    return "".join(lines)
