"""Every docstring example of the package runs, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import torch

import pns_fast as pns


def modules():
    yield pns
    for info in pkgutil.walk_packages(pns.__path__, "pns_fast."):
        leaf = info.name.rpartition(".")[2]
        if leaf != "__main__" and leaf not in ("_cpu", "_cuda"):  # running it is importing it; compiled
            yield importlib.import_module(info.name)


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in modules():
        for test in finder.find(module, module.__name__):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("test", list(examples()))
def test_docstring_example(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test.globs = {**test.globs, "torch": torch, "pns": pns}
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def public_functions():
    for name in ("ops", "networks", "tasks", "planting", "pruners", "training", "nn", "theory"):
        package = getattr(pns, name)
        for exported in package.__all__:
            value = getattr(package, exported)
            if inspect.isfunction(value):
                yield pytest.param(value, id=f"{name}.{exported}")


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_function_is_documented(function):
    text = inspect.getdoc(function) or ""
    assert ">>>" in text, "no runnable example"
    arguments = inspect.signature(function).parameters
    if len(arguments) > 2:
        described = text.partition("Args:")[2].partition("Returns:")[0]
        missing = [a for a in arguments if not re.search(rf"\b{a}\b", described)]
        assert not missing, missing


def test_there_are_examples():
    assert len(list(examples())) >= 20
