"""What a running sweep shows: a bar on a terminal, else a plain line every few seconds. Both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .runner import Report

_LINE_EVERY = 5.0  # seconds


@contextmanager
def shown(title: str, quiet: bool) -> Iterator[Callable[[Report], None]]:
    """A callback for :func:`pns_fast.sweeps.run` that shows how far it got."""
    if quiet or sys.stderr is None:  # None: closed, as by 2>&-
        yield lambda report: None
    elif sys.stderr.isatty():
        with _bar() as bar:
            yield _bar_callback(bar, title)
    else:
        yield _line_callback(title)


def _bar():
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("cells{task.fields[failed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        expand=True,
    )


def _bar_callback(bar, title: str) -> Callable[[Report], None]:
    task = bar.add_task(title, total=None, failed="")

    def update(report: Report) -> None:
        done = report.n_ok + report.n_failed
        failed = f" [red]{report.n_failed} failed[/]" if report.n_failed else ""
        bar.update(task, total=done + report.n_left, completed=done, failed=failed)

    return update


def _line_callback(title: str) -> Callable[[Report], None]:
    begin = time.monotonic()
    last = begin - _LINE_EVERY

    def update(report: Report) -> None:
        nonlocal last
        now, done = time.monotonic(), report.n_ok + report.n_failed
        if done + report.n_left == 0 or (now - last < _LINE_EVERY and report.n_left):
            return
        last = now
        line = f"{title}: {done} of {done + report.n_left} cells, {report.n_failed} failed, {now - begin:.0f} s"
        if done and report.n_left:
            line += f", about {(now - begin) / done * report.n_left:.0f} s left"
        print(line, file=sys.stderr, flush=True)

    return update
