"""The README's example runs and prints what the README says of it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    scope = {}
    exec(example, scope)
    assert "accuracy of the ticket" in capsys.readouterr().out
    assert scope["task"].ticket(depth=5).kept_weights == 108
    assert scope["result"].metric[:, -1].median() > 0.9
    assert torch.equal(scope["masks"].kept(), torch.full((8,), 2091))  # ceil(0.1 * 20,904)
    assert 0.97 <= scope["ticket"].double().mean() <= 0.99


def test_the_shell_commands_parse():
    from pns_fast.cli import _parser, main

    text = README.read_text().replace("\\\n", " ")
    commands = [c.split("#")[0].split() for c in re.findall(r"^pns-fast (.*)$", text, re.MULTILINE)]
    assert len(commands) >= 10
    for command in commands:
        _parser().parse_args(command)
        if command[0] in ("sweep", "reproduce"):
            assert main([*command, "--dry-run"]) == 0
