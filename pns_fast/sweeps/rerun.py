"""The command line that a run of a store came from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

_NO_OPTIONS = ("cells", "pending", "executor")  # noted by the driver


def command(asked: Mapping[str, object]) -> list[str] | None:
    """The arguments of ``pns-fast`` that ask for the same once more.

    Args:
        asked: what the store notes about a run, see :func:`pns_fast.sweeps.runs`.

    Returns:
        Every option with its value, defaults included: they may change. The workers of a Dask cluster were not asked
        for. None for a run from Python, which has no command line.

    Example:
        >>> command({"cells": 8, "mode": "multishot", "task": ["circle", "relu"], "lr": 0.01, "csv": None})
        ['sweep', 'multishot', '--task=circle,relu', '--lr=0.01']
    """
    options = {name: value for name, value in asked.items() if name not in _NO_OPTIONS}
    if asked.get("executor") != "local":
        options.pop("workers", None)
    if shard := options.get("shard"):
        options["shard"] = "{}/{}".format(*shard)
    if "reproduce" in options:
        start = ["reproduce", str(options.pop("reproduce"))]
    elif "mode" in options:
        start = ["sweep", str(options.pop("mode"))]
    else:
        return None
    return [*start, *(_option(name, value) for name, value in options.items() if value not in (None, False))]


def _option(name: str, value: object) -> str:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return flag
    return f"{flag}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"


def shell(arguments: Sequence[str], width: int = 100) -> str:
    """``pns-fast`` and its arguments for a shell, on lines of about ``width`` characters.

    Example:
        >>> print(shell(["plot", "my store.db", "--figure=f.png"], width=24))
        pns-fast plot \\
          'my store.db' \\
          --figure=f.png
    """
    lines = ["pns-fast"]
    for argument in map(shlex.quote, arguments):
        if len(lines[-1]) + len(argument) < width:
            lines[-1] += f" {argument}"
        else:
            lines.append(f"  {argument}")
    return " \\\n".join(lines)
