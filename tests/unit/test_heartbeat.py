"""Which output of llama-server proves that its loop runs."""

from pathlib import Path

import pytest

from kvsup.llama.heartbeat import is_line_of_the_loop, is_of_the_loop

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("log", ["requests_b11434.log", "requests_b10434.log"])
def test_lines_of_slots_in_real_logs_count_and_no_other_do(log: str) -> None:
    """Each request has some, with and without the time before the level."""
    lines = (GOLDEN / log).read_text().splitlines()

    counted = [line for line in lines if is_line_of_the_loop(line)]

    assert counted
    assert all(" id " in line and "| task " in line for line in counted)
    assert [line for line in lines if "| task " in line] == counted
    without_time = [line.split(" ", 1)[1] for line in counted]
    assert all(map(is_line_of_the_loop, without_time))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/completion", True),
        ("/v1/chat/completions", True),
        ("/slots/0?action=save", True),
        ("/health", False),
        ("/props?model=m", False),
        ("/tokenize", False),
        ("/v1/messages", True),
        ("/v1/messages/count_tokens", False),
    ],
)
def test_answers_of_http_threads_alone_do_not_count(target: str, *, expected: bool) -> None:
    """They come from a llama-server whose loop stands still as well."""
    assert is_of_the_loop(target) is expected
