"""Output that comes faster than it can be read."""

import sys
from collections.abc import AsyncIterator

import anyio
import psutil
import pytest

from kvsup.runtime.flood import BURST_BYTES, PACE_BYTES, Pace, paced
from kvsup.runtime.process import spawn
from tests.runtime.supervised import environment

FLOOD = """
import os
block = b"".join(b"%06d %b\\n" % (n, b"x" * 92) for n in range(640))
for n in range({blocks}):
    os.write(2, block)
os.write(2, b"assertion failed: the last line\\n")
"""
BLOCK_BYTES = 64_000


async def _parts(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def _paced(*parts: bytes, kept: bytes | None = None) -> list[tuple[int, bytes]]:
    """Return what is left of parts that all come at one moment."""
    return [item async for item in paced(_parts(*parts), kept=kept, clock=lambda: 0.0)]


def test_pace_is_full_at_first_and_fills_with_time() -> None:
    """At most to what it was."""
    pace = Pace(0.0)

    assert pace.admits(BURST_BYTES, 0.0)
    assert not pace.admits(1, 0.0)
    assert pace.admits(PACE_BYTES, 1.0)
    assert not pace.admits(1, 1.0)
    assert pace.admits(BURST_BYTES, 1e6)
    assert not pace.admits(1, 1e6)


async def test_output_at_any_pace_below_is_whole() -> None:
    """Every part, in order, with nothing dropped."""
    parts = [b"a\n" * 100, b"b", b"c\n"]

    assert await _paced(*parts) == [(0, part) for part in parts]


async def test_flood_keeps_its_start_its_end_and_the_count_between() -> None:
    """The last part says why a child died."""
    full = b"\n" * BURST_BYTES

    assert await _paced(full, b"a\n", b"b\nc\n", b"d\n") == [(0, full), (3, b"d\n")]
    assert await _paced(full, b"a\n") == [(0, full), (0, b"a\n")]
    assert await _paced(full, b"a\n", b"b", b"", b"", b"c") == [(0, full), (1, b"b"), (0, b"c")]


async def test_part_with_an_event_is_never_dropped() -> None:
    """A child that floods its stdout still becomes ready."""
    full = b"\n" * BURST_BYTES

    assert await _paced(full, b"a\n", b"b\n", b"event", b"c", kept=b"event") == [
        (0, full), (1, b"b\n"), (0, b"event"), (0, b"c"),
    ]  # fmt: skip


async def test_child_that_floods_its_log_is_not_held_up_and_takes_no_memory() -> None:
    """400 MB: what is yielded is bounded, the loop goes on meanwhile, the last line is there."""
    n_blocks = 6400
    child = await spawn(
        [sys.executable, "-c", FLOOD.format(blocks=n_blocks)], environment=environment()
    )
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    n_ticks, n_bytes, last, n_notices = 0, 0, b"", 0

    async def tick() -> None:
        nonlocal n_ticks
        while True:
            await anyio.sleep(0.005)
            n_ticks += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        async for line in child.stderr_lines():
            n_bytes, last = n_bytes + len(line), line
            n_notices += line.startswith(b"kvsup: ")
        await child.wait()
        tasks.cancel_scope.cancel()
    await child.aclose()

    assert child.returncode == 0
    assert last == b"assertion failed: the last line"
    assert n_notices >= 1
    assert n_bytes < n_blocks * BLOCK_BYTES // 4
    assert n_ticks > 10
    assert process.memory_info().rss - before_bytes < 24 << 20


@pytest.mark.parametrize("n_lines", [1000])
async def test_log_of_a_load_is_read_in_full(n_lines: int) -> None:
    """However fast it comes."""
    program = f"import os; os.write(2, b''.join(b'%d\\n' % n for n in range({n_lines})))"
    child = await spawn([sys.executable, "-c", program], environment=environment())

    lines = [line async for line in child.stderr_lines()]
    await child.wait()
    await child.aclose()

    assert lines == [b"%d" % n for n in range(n_lines)]
