"""Lines of progress on a terminal and in a log."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from kvsup.cli.progress import Line, _Bars, shown

LINES: list[Line] = [
    {"status": "pulling manifest"},
    {"status": "pulling 0a1b", "digest": "sha256:0a1b", "total": 100},
    {"status": "pulling 0a1b", "digest": "sha256:0a1b", "total": 100, "completed": 40},
    {"status": "pulling 0a1b", "digest": "sha256:0a1b", "total": 100, "completed": 100},
    {"status": "pulling 2c3d", "digest": "sha256:2c3d", "total": 5, "completed": 5},
    {"status": "success [sic]"},
]


def test_log_has_each_status_once(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr: what a command gives goes to stdout."""
    with shown() as show:
        for line in LINES:
            show(line)

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "pulling manifest",
        "pulling 0a1b",
        "pulling 2c3d",
        "success [sic]",
    ]


def test_terminal_has_a_bar_for_each_file() -> None:
    """It moves with the bytes; what has none is a line of its own, with its brackets."""
    written = io.StringIO()
    progress = Progress(TextColumn("{task.description}"), console=Console(file=written))
    bars = _Bars(progress)

    for line in LINES:
        bars.show(line)

    told = [(task.description, task.completed, task.total) for task in progress.tasks]
    assert told == [("pulling 0a1b", 100, 100), ("pulling 2c3d", 5, 5)]
    assert written.getvalue().split("\n") == ["pulling manifest", "success [sic]", ""]
