"""Every python example of the documentation runs, a page from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))


def blocks(page):
    """(line, code) of each block that starts with ```python."""
    text = page.read_text()
    for found in re.finditer(r"^```python[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start(1)), found.group(1)


def test_there_are_pages():
    assert ROOT / "docs" / "interoperability.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)  # the README's example: test_readme.py
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), scope)  # so that a traceback has the page's lines


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_and_files_named_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:python_tests|csrc|pns_fast|bench|docs)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
