"""docs/theory.md shows what its command prints (its python examples: test_docs.py)."""

import re
import shlex
from pathlib import Path

from pns_fast.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "theory.md"


def test_the_page_shows_what_its_command_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "108")
    command, printed = re.findall(r"^```(?:sh|text)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert main(shlex.split(command)[1:]) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert shown == [*filter(None, printed.splitlines()), "figure  theory.png"]
    assert (tmp_path / "theory.png").stat().st_size > 10_000
