"""Every python example of the documentation runs, a page from top to bottom; every command in it parses.

```python file=NAME is written to a file instead, and the commands of ```sh run are run.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from pns_fast.cli import main
from pns_fast.pruners import registry

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))


def blocks(page):
    """(line, what, code) of each block that starts with ```python or ```sh run."""
    text = page.read_text()
    for found in re.finditer(r"^```(python[^\n]*|sh run)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start(2)), found.group(1), found.group(2)


def test_there_are_pages():
    assert {ROOT / "docs" / "interoperability.md", ROOT / "docs" / "adding-a-pruner.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)  # the README's example: test_readme.py
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("_PRUNERS", "_REVIVING"):  # what a page registers goes with it
        monkeypatch.setattr(registry, name, getattr(registry, name).copy())
    scope = {}
    for line, what, code in blocks(page):
        if "file=" in what:
            Path(what.partition("file=")[2]).write_text(code)
            continue
        if what == "sh run":
            for command in code.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(command, comments=True)
                assert (program, main(arguments)) == ("pns-fast", 0), command
            continue
        exec(compile("\n" * line + code, str(page), "exec"), scope)  # so that a traceback has the page's lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_parse(page, monkeypatch):
    from pns_fast.cli import _parser

    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    commands = re.findall(r"^pns-fast (.*)$", page.read_text().replace("\\\n", " "), re.MULTILINE)
    assert len(commands) >= {"clusters.md": 10}.get(page.name, 0)
    for command in commands:
        args = _parser().parse_args(shlex.split(os.path.expandvars(command), comments=True))
        assert callable(args.run)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_and_files_named_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:python_tests|csrc|pns_fast|bench|docs)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
