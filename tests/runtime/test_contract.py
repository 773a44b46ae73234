"""What kvsup relies on in a llama-server, held against the real one and the stand-in alike."""

import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import msgspec
import pytest

from kvsup.errors import UpstreamError
from kvsup.llama.childmode import ENVIRONMENT, EXIT_LINE, parse_event
from kvsup.llama.health import Health, parse_health
from kvsup.llama.logscan import LoadFailure, scan
from kvsup.restart import ExitCause
from kvsup.runtime.binaries import probe
from kvsup.runtime.process import Child, spawn
from kvsup.runtime.upstream import Upstream
from tests.runtime.supervised import SCENARIO_S, environment, until
from tests.standin.script import LOAD, STANDIN, write_script

CHAT = msgspec.json.encode(
    {
        "messages": [{"role": "user", "content": "Count to five."}],
        "stream": True,
        "max_tokens": 4,
        "temperature": 0,
    }
)


@dataclass
class Server:
    """One of the two programs, and how it is started."""

    program: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    socket: str

    @asynccontextmanager
    async def start(self, *, child_mode: bool, extra: tuple[str, ...] = ()) -> AsyncIterator[Child]:
        """Run it; whatever is left of it at the end is killed."""
        mode = ENVIRONMENT if child_mode else {}
        argv = (self.program, *self.arguments, "--host", self.socket, *extra)
        child = await spawn(argv, environment=environment(**self.variables, **mode))
        try:
            with anyio.fail_after(SCENARIO_S):
                yield child
        finally:
            child.kill()
            await child.wait()
            await child.aclose()

    def has_socket(self) -> bool:
        """Say whether its socket file is there."""
        return Path(self.socket).exists()

    async def healthy(self) -> Upstream:
        """Return the way to it once ``/health`` says that it serves."""
        upstream = Upstream(self.socket)
        health = Health.LOADING
        while health is Health.LOADING:
            await until(self.has_socket)
            with suppress(UpstreamError):  # bound, but it does not listen yet
                status, _ = await upstream.fetch("GET", "/health")
                health = parse_health(status)
        assert health is Health.READY
        return upstream


async def idle(child: Child) -> None:
    """Wait until it has said that it is idle: b11434 loses an exit line that comes before."""
    async for line in child.stderr_lines():
        if b"all slots are idle" in line:
            return


@pytest.fixture(params=["real", "standin"])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, llama_server: Path, smollm2: Path
) -> Iterator[Server]:
    """Return the real llama-server, and the stand-in on a script of an ordinary load."""
    script = tmp_path / "script.json"
    write_script(script, starts=[LOAD])
    program = llama_server if request.param == "real" else STANDIN
    with TemporaryDirectory(prefix="kvsup-") as run_dir:
        yield Server(
            program=str(program),
            arguments=("--model", str(smollm2), "-t", "1", "-c", "256", "-np", "1", "-lv", "4"),
            variables={"KVSUP_STANDIN": str(script)},
            socket=f"{run_dir}/s.sock",
        )


async def test_probe_learns_the_same_kv_types_and_flags(server: Server, tmp_path: Path) -> None:
    """--help, --version and --list-devices are answered with exit code 0."""
    binary = probe(server.program, state=tmp_path, inherited=os.environ)

    assert binary.build == 11434
    assert set(binary.kv_types) == {
        "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1",
    }  # fmt: skip
    assert binary.flags >= {"--no-ui", "--offline", "--no-cache-idle-slots", "--fit"}


async def test_child_mode_load_sends_loading_events_then_ready(server: Server) -> None:
    """Events come on stdout, ``ready`` last, and only then does it serve."""
    async with server.start(child_mode=True) as child:
        states = []
        async for line in child.stdout_lines():
            event = parse_event(line)
            assert event is not None
            states.append(event.state)
            if event.state == "ready":
                break
        status, _ = await Upstream(server.socket).fetch("GET", "/health")

    assert set(states[:-1]) == {"loading"}
    assert states[-1] == "ready"
    assert status == 200


async def test_child_mode_exit_line_ends_it_with_code_zero(server: Server) -> None:
    """The polite word of child mode."""
    async with server.start(child_mode=True) as child:
        await idle(child)

        was_killed = await child.stop(farewell=EXIT_LINE, grace_s=20)

    assert (was_killed, child.returncode) == (False, 0)


async def test_child_mode_end_of_stdin_ends_it(server: Server) -> None:
    """The second net under a supervisor that was killed."""
    async with server.start(child_mode=True) as child:
        await server.healthy()

        assert child._process.stdin is not None
        await child._process.stdin.aclose()

        assert await child.wait() == 1


async def test_plain_mode_one_sigterm_ends_it_with_code_zero(server: Server) -> None:
    """The polite word of a build without events.

    Before its loop runs it is lost: ``/health`` says ok already (b11434).
    """
    async with server.start(child_mode=False) as child:
        await idle(child)

        was_killed = await child.stop(farewell=None, grace_s=20)

    assert (was_killed, child.returncode) == (False, 0)


async def test_sigterm_in_the_load_ends_it_by_the_signal(server: Server, tmp_path: Path) -> None:
    """Handlers are installed after the load, so a stop in it is no crash."""
    write_script(tmp_path / "script.json", starts=[[["listen"], ["stage", 0.0], ["hang"]]])
    async with server.start(child_mode=True) as child:
        await anext(child.stdout_lines())

        await child.stop(farewell=None, grace_s=20)

    assert child.returncode == -signal.SIGTERM


async def test_socket_file_that_exists_is_refused(server: Server) -> None:
    """It will not bind over a leftover, so kvsup unlinks before each spawn."""
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(server.socket)
    async with server.start(child_mode=True) as child:
        lines = [line async for line in child.stderr_lines()]
        code = await child.wait()

    assert code == 1
    assert any(b"couldn't bind HTTP server socket" in line for line in lines)


async def test_socket_file_stays_after_a_clean_exit(server: Server) -> None:
    """It leaves its socket behind, so kvsup unlinks after each reap."""
    async with server.start(child_mode=True) as child:
        await idle(child)

        await child.stop(farewell=EXIT_LINE, grace_s=20)

    assert server.has_socket()


async def test_unknown_flag_exits_at_once_with_a_line_that_names_it(server: Server) -> None:
    """A bad flag is known by its line, and is never tried again."""
    async with server.start(child_mode=True, extra=("--nope",)) as child:
        lines = [line async for line in child.stderr_lines()]
        code = await child.wait()

    assert code == 1
    assert LoadFailure(ExitCause.BAD_ARGUMENT, "error: invalid argument: --nope") in [
        scan(line.decode()) for line in lines
    ]


async def test_stream_is_chunked_events_with_done_last(server: Server) -> None:
    """A chat stream is server-sent events, whole, with ``[DONE]`` as the last."""
    async with server.start(child_mode=True):
        upstream = await server.healthy()
        async with upstream.stream("POST", "/v1/chat/completions", body=CHAT) as response:
            parts = []
            while part := await response.read():
                parts.append(part)

    events = b"".join(parts).split(b"\n\n")
    assert response.status == 200
    assert dict(response.headers)[b"content-type"] == b"text/event-stream"
    assert events[-2:] == [b"data: [DONE]", b""]
    contents = [
        msgspec.json.decode(event[6:])["choices"][0]["delta"].get("content")
        for event in events[:-2]
    ]
    assert any(contents)


async def test_exit_line_waits_for_the_client_that_holds_a_stream(
    server: Server, tmp_path: Path
) -> None:
    """Upstream connections are closed first, else it would outlive its grace."""
    write_script(tmp_path / "script.json", answers=[[["head"], ["token", "a"], ["stall"]]])
    body = CHAT.replace(b'"max_tokens":4', b'"max_tokens":200')
    async with server.start(child_mode=True) as child:
        upstream = await server.healthy()
        async with upstream.stream("POST", "/v1/chat/completions", body=body) as response:
            assert await response.read()

            upstream.close_all()
            was_killed = await child.stop(farewell=EXIT_LINE, grace_s=20)

    assert (was_killed, child.returncode) == (False, 0)
