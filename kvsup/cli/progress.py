"""Show the lines of a pull, a push or a creation: as bars on a terminal, else one by one."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Line = dict[str, str | int]


@contextmanager
def shown() -> Iterator[Callable[[Line], None]]:
    """Give what shows a line; a bar stays where its line was."""
    if not sys.stderr.isatty():
        yield _Plain().show
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with progress:
        yield _Bars(progress).show


class _Plain:
    """Lines for a log: each status once."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, line: Line) -> None:
        """Print a line that is not just more of the last one."""
        status = str(line.get("status", ""))
        if status != self._last:
            typer.echo(status, err=True)
        self._last = status


class _Bars:
    """A bar for each status that has bytes, a line for each other."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def show(self, line: Line) -> None:
        """Move a bar, or print a line."""
        status, total = str(line.get("status", "")), line.get("total")
        if not isinstance(total, int):
            self._progress.console.print(status, markup=False, highlight=False)
            return
        if status not in self._bars:
            self._bars[status] = self._progress.add_task(status, total=total)
        self._progress.update(self._bars[status], completed=float(line.get("completed", 0)))
