"""Pruners of your own in a sweep: the files and modules that register them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path


def load_plugins(names: Iterable[str]) -> list[str]:
    """Imports what registers pruners (``@pns_fast.pruners.register``), each once a process.

    Args:
        names: paths of Python files, which end in .py, or names of modules that can be imported.

    Returns:
        The same with absolute paths: what another process needs, in whatever folder it works.

    Raises:
        OSError: no such file.
        ValueError: naming the plugin, if importing it raises.

    >>> with open("my_pruner.py", "w") as file:
    ...     n = file.write("import pns_fast as pns\\npns.pruners.register('mine')(lambda problem: problem.parameters)")
    >>> paths = load_plugins(["my_pruner.py"])
    >>> "mine" in pns.pruners.names(), load_plugins(paths) == paths
    (True, True)
    >>> pns.pruners.registry.unregister("mine")
    """
    return [_load(name) for name in names]


def _load(name: str) -> str:
    if name.endswith(".py"):
        path = Path(name).resolve(strict=True)
        name, module = str(path), f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    else:
        path, module = None, name
    try:
        if module not in sys.modules:
            _import(module, path)
    except Exception as error:  # whatever a user's file raises
        raise ValueError(f"plugin {name}: {type(error).__name__}: {error}") from error
    return name


def _import(module: str, path: Path | None) -> None:
    if path is None:
        importlib.import_module(module)
        return
    spec = importlib.util.spec_from_file_location(module, path)
    sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[module]
        raise
