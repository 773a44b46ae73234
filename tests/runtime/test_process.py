"""Real children: their session, their lines, their end, and what a killed parent leaves."""

import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from kvsup.runtime.process import MAX_LINE_BYTES, Child, spawn
from tests.running import eventually
from tests.runtime.supervised import environment, is_alive, processes_with, until


async def python(program: str, *arguments: str) -> Child:
    """Start a Python program as a child."""
    return await spawn([sys.executable, "-c", program, *arguments], environment=environment())


async def lines_of(child: Child) -> list[bytes]:
    """Return every line of stdout and end the child."""
    lines = [line async for line in child.stdout_lines()]
    await child.wait()
    await child.aclose()
    return lines


async def test_spawn_program_that_is_missing_raises_before_a_process_exists() -> None:
    """A path that cannot be executed is an OSError with its name, not a child that exits 127."""
    with pytest.raises(FileNotFoundError, match="no such program"):
        await spawn(["/nonexistent/llama-server"], environment={})


async def test_child_runs_in_a_session_of_its_own_with_only_the_given_environment() -> None:
    """Ctrl-C at kvsup's terminal must not reach the child, nor kvsup's variables."""
    program = "import os; print(os.getsid(0) == os.getpid()); print(os.environ.get('HOME'))"

    lines = await lines_of(await python(program))

    assert lines == [b"True", b"None"]


@pytest.mark.parametrize(
    ("output", "lines"),
    [
        ("b'a\\nb\\n'", [b"a", b"b"]),
        ("b'\\n\\nlast'", [b"", b"", b"last"]),
        ("b''", []),
        ("bytes(range(256)).replace(b'\\n', b'')", [bytes(range(256)).replace(b"\n", b"")]),
    ],
)
async def test_lines_of_any_bytes_come_whole(output: str, lines: list[bytes]) -> None:
    """Lines are split at newlines alone; a last one without a newline counts."""
    child = await python(f"import sys; sys.stdout.buffer.write({output})")

    assert await lines_of(child) == lines


@pytest.mark.parametrize("n_bytes", [MAX_LINE_BYTES, MAX_LINE_BYTES + 1, 1 << 20])
async def test_lines_longer_than_the_bound_are_cut_once_and_the_next_is_whole(n_bytes: int) -> None:
    """A line of a megabyte costs 64 KiB, yields one line, and does not spoil what follows."""
    child = await python(f"import sys; sys.stdout.write('x' * {n_bytes} + '\\nnext\\n')")

    lines = await lines_of(child)

    assert lines == [b"x" * min(n_bytes, MAX_LINE_BYTES), b"next"]


async def test_stop_by_farewell_lets_the_child_end_by_itself() -> None:
    """The farewell goes to stdin, and no signal with it."""
    child = await python("import sys; sys.exit(7 if input() == 'bye' else 1)")

    was_killed = await child.stop(farewell=b"bye\n", grace_s=30)
    await child.aclose()

    assert (was_killed, child.returncode) == (False, 7)


async def test_stop_without_farewell_sends_sigterm() -> None:
    """Without a line to say, the polite word is SIGTERM, and the child has its grace to end."""
    program = (
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'term\\n'), os._exit(5)))\n"
        "print('ready', flush=True); signal.pause()"
    )
    child = await python(program)
    stdout = child.stdout_lines()
    assert await anext(stdout) == b"ready"

    was_killed = await child.stop(farewell=None, grace_s=30)
    rest = [line async for line in stdout]
    await child.aclose()

    assert (was_killed, child.returncode, rest) == (False, 5, [b"term"])


async def test_stop_of_a_child_that_ignores_sigterm_kills_it_after_the_grace() -> None:
    """The escalation is not optional: a wedged llama-server ignores SIGTERM."""
    child = await python(
        "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    )
    assert await anext(child.stdout_lines()) == b"up"

    was_killed = await child.stop(farewell=None, grace_s=0.05)
    await child.aclose()

    assert (was_killed, child.returncode) == (True, -signal.SIGKILL)


async def test_stop_of_a_child_that_has_ended_reaps_it_and_its_broken_pipe_is_no_error() -> None:
    """A child that died meanwhile is no failure of its stop."""
    child = await python("pass")
    assert [line async for line in child.stdout_lines()] == []

    was_killed = await child.stop(farewell=b"bye\n", grace_s=30)
    await child.aclose()

    assert (was_killed, child.returncode) == (False, 0)


async def test_stop_takes_grandchildren_that_hold_the_pipes() -> None:
    """The whole session ends with the child, so its pipes end too."""
    program = (
        "import os, signal\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    signal.signal(15, signal.SIG_IGN)\n    signal.pause()\n"
        "print(pid, flush=True); signal.pause()"
    )
    child = await python(program)
    stdout = child.stdout_lines()
    grandchild = int(await anext(stdout))

    await child.stop(farewell=None, grace_s=30)
    rest = [line async for line in stdout]
    await child.aclose()

    assert rest == []
    await until(lambda: not is_alive(grandchild))


async def test_wait_returns_although_a_grandchild_holds_the_pipes() -> None:
    """The exit of the child itself is what counts, not the end of its pipes."""
    program = "import os, signal\nif os.fork() == 0:\n    signal.pause()\nos._exit(3)"
    child = await python(program)

    code = await child.wait()
    child.kill()
    await lines_of(child)

    assert code == 3


async def test_stop_that_is_cancelled_still_reaps() -> None:
    """A cancel in the middle of a stop must not leave a process."""
    child = await python("import signal; print(1, flush=True); signal.pause()")
    assert await anext(child.stdout_lines()) == b"1"

    with anyio.CancelScope() as scope:
        scope.cancel()
        await child.stop(farewell=None, grace_s=30)
    await child.aclose()

    assert child.returncode == -signal.SIGTERM


async def test_spawn_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    """A cancel between fork and return would lose the pid."""
    mark = str(tmp_path / "mark")
    spawned: list[Child] = []

    with anyio.CancelScope() as scope:
        scope.cancel()
        spawned.append(
            await spawn([sys.executable, "-c", "input()", mark], environment=environment())
        )
        await spawned[0].stop(farewell=None, grace_s=30)
        await spawned[0].aclose()

    assert processes_with(mark) == []


def test_parent_killed_by_sigkill_leaves_no_child_although_stdin_is_not_read(
    tmp_path: Path,
) -> None:
    """The kernel kills the child with its parent: in a load nobody reads stdin."""
    mark = str(tmp_path / "mark")
    program = (
        "import anyio, sys\n"
        "from kvsup.runtime.process import spawn\n"
        "async def main():\n"
        "    deaf = 'import signal; print(1, flush=True); signal.pause()'\n"
        "    child = await spawn([sys.executable, '-c', deaf, sys.argv[1]], environment={})\n"
        "    await anext(child.stdout_lines())\n"
        "    print(child.pid, flush=True)\n"
        "    await anyio.sleep_forever()\n"
        "anyio.run(main, backend_options={'use_uvloop': True})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, mark], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)

        parent.kill()

    eventually(lambda: not is_alive(pid), timeout_s=2)
