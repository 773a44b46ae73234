"""The streaming client against servers that send exactly what a test says, and nothing else."""

import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kvsup.errors import EngineError, NotListening, UpstreamError
from kvsup.runtime.upstream import HIGH_WATER_BYTES, Response, Upstream
from tests.runtime.supervised import until

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
WHOLE = CHUNKED + b"5\r\nhello\r\n6\r\n there\r\n0\r\n\r\n"


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[Upstream]:
    """Serve each connection on a UNIX socket by ``serve``."""
    tasks: set[asyncio.Task[object]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                await serve(reader, writer)
        finally:
            writer.close()

    with TemporaryDirectory(prefix="kvsup-") as folder:
        socket = str(Path(folder) / "s.sock")
        server = await asyncio.start_unix_server(connected, socket)
        try:
            yield Upstream(socket)
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def sending(*pieces: bytes) -> Serve:
    """Return a server that sends ``pieces`` one by one and closes the connection."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return serve


def holding(*pieces: bytes) -> Serve:
    """Return a server that sends ``pieces`` and then waits for its client to leave."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(pieces))
        await reader.read()

    return serve


async def test_fetch_of_a_whole_answer_returns_status_and_body() -> None:
    """A chunked body comes without its framing."""
    async with serving(sending(WHOLE)) as upstream:
        assert await upstream.fetch("GET", "/") == (200, b"hello there")
        assert upstream.n_open == 0


def taking_into(got: list[bytes], *, is_full: bool = False) -> Callable[[bytes], bool]:
    """Return a sink that keeps what it is given, and says whether it can take more."""

    def take(data: bytes) -> bool:
        got.append(data)
        return not is_full

    return take


@pytest.mark.parametrize("cut", range(1, len(WHOLE), 7))
async def test_fetch_of_an_answer_split_anywhere_returns_the_same(cut: int) -> None:
    """Head and body may come in any pieces."""
    async with serving(sending(WHOLE[:cut], WHOLE[cut:])) as upstream:
        assert await upstream.fetch("GET", "/") == (200, b"hello there")


async def test_fetch_of_an_answer_byte_by_byte_returns_the_same() -> None:
    """One byte at a time is the hardest split."""
    async with serving(sending(*(bytes([byte]) for byte in WHOLE))) as upstream:
        assert await upstream.fetch("GET", "/") == (200, b"hello there")


async def test_stream_sends_the_request_as_given() -> None:
    """Method, target, headers and body arrive whole, with the length of the body."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readexactly(4))
        writer.write(WHOLE)

    async with serving(serve) as upstream:
        headers = ((b"content-type", b"application/json"),)
        async with upstream.stream("POST", "/v1/x?y", headers=headers, body=b"body") as response:
            assert dict(response.headers)[b"content-type"] == b"text/event-stream"
            assert await response.read_all() == b"hello there"

    assert received == [b"body"]


async def test_stream_to_nobody_raises_upstream_error() -> None:
    """A socket that nobody listens on is told as the upstream's fault, with its path."""
    with pytest.raises(UpstreamError, match=r"does not listen on /nonexistent/s\.sock"):
        await Upstream("/nonexistent/s.sock").fetch("GET", "/")


async def test_want_of_files_is_not_told_as_nobody_listening() -> None:
    """Who does not listen is ended; one that kvsup cannot reach for its own sake is not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(sending(WHOLE)) as upstream:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(UpstreamError, match="cannot connect") as error:
                await upstream.fetch("GET", "/")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        assert not isinstance(error.value, NotListening)
        assert (await upstream.fetch("GET", "/"))[0] == 200


@pytest.mark.parametrize("n_bytes", [0, 1, 20, len(CHUNKED) - 1])
async def test_stream_broken_before_its_head_is_complete_raises(n_bytes: int) -> None:
    """No head means that the request may be sent again: nothing was told yet."""
    async with serving(sending(CHUNKED[:n_bytes])) as upstream:
        with pytest.raises(UpstreamError, match="closed the connection"):
            await upstream.fetch("GET", "/")
        assert upstream.n_open == 0


@pytest.mark.parametrize("n_bytes", [len(CHUNKED), len(CHUNKED) + 3, len(WHOLE) - 5])
async def test_read_of_a_body_that_breaks_off_raises_after_what_came(n_bytes: int) -> None:
    """A broken stream never looks like one that ended: without its last chunk it is an error."""
    serve = sending(WHOLE[:n_bytes])
    async with serving(serve) as upstream, upstream.stream("GET", "/") as response:
        with pytest.raises(UpstreamError, match="mid-answer"):
            await response.read_all()


async def test_read_gives_what_came_before_it_broke_off() -> None:
    """Tokens that arrived are delivered before the error."""
    got = []

    async def read_to_the_end(response: Response) -> None:
        while True:
            got.append(await response.read())

    async with serving(sending(WHOLE[:-5])) as upstream, upstream.stream("GET", "/") as response:
        with pytest.raises(UpstreamError):
            await read_to_the_end(response)

    assert b"".join(got) == b"hello there"


@pytest.mark.parametrize(
    "garbage", [b"\x00\xff garbage\r\n\r\n", b"SMTP ready\r\n\r\n", CHUNKED + b"zz\r\n"]
)
async def test_stream_of_something_else_than_http_raises(garbage: bytes) -> None:
    """Whatever listens there and speaks no HTTP is an upstream error, never a foreign one."""
    async with serving(holding(garbage)) as upstream:
        with pytest.raises(UpstreamError, match="no HTTP"):
            await upstream.fetch("GET", "/")


async def test_slow_reader_makes_the_server_wait_and_loses_nothing() -> None:
    """Over the high-water mark reading pauses, so memory is bounded; it resumes with the reader."""
    piece = b"x" * (64 << 10)
    n_pieces = 400
    sent = 0

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(CHUNKED)
        for _ in range(n_pieces):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with serving(serve) as upstream, upstream.stream("GET", "/") as response:
        await until(lambda: response._is_paused)
        for _ in range(100):  # whatever the loop has to do, it does
            await checkpoint()
        kernel_bytes = 4 << 20
        assert response._unread_bytes < HIGH_WATER_BYTES + (1 << 20)
        assert sent * len(piece) < HIGH_WATER_BYTES + kernel_bytes

        body = await response.read_all()

    assert len(body) == n_pieces * len(piece)


async def test_close_all_ends_every_reader_with_an_error() -> None:
    """A stop closes the connections; whoever reads is told, nobody hangs."""
    ended: list[str] = []

    async def read(upstream: Upstream) -> None:
        try:
            async with upstream.stream("GET", "/") as response:
                await response.read_all()
        except UpstreamError as error:
            ended.append(str(error))

    async with serving(holding(CHUNKED)) as upstream:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(read, upstream)
            await until(lambda: upstream.n_open == 3)

            upstream.close_all()

        assert len(ended) == 3
        assert upstream.n_open == 0


@pytest.mark.parametrize("sent", [b"", CHUNKED[:10], CHUNKED, WHOLE[:-5]])
async def test_stream_that_is_cancelled_closes_the_connection(sent: bytes) -> None:
    """A client that leaves in any phase makes llama-server see a closed connection."""
    closed = anyio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await reader.read()
        closed.set()

    async def ask(upstream: Upstream) -> None:
        async with upstream.stream("GET", "/") as response:
            await response.read_all()

    async with serving(serve) as upstream:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, upstream)
            await until(lambda: upstream.n_open == 1)
            tasks.cancel_scope.cancel()

        assert upstream.n_open == 0
        await closed.wait()


async def test_answer_before_the_request_was_read_is_delivered() -> None:
    """llama-server may refuse a body early and close; its answer counts, not the broken pipe."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(refusal)
        await writer.drain()

    async with serving(serve) as upstream:
        assert await upstream.fetch("POST", "/", body=b"x" * 100) == (413, b"big")


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
async def test_process_that_ends_while_the_body_is_read_is_a_broken_connection() -> None:
    """A large one is read from disk: uvloop raises where a closed transport is written to."""

    async def body() -> bytes:
        upstream.close_all()
        await checkpoint()
        return b"{}"

    async with serving(sending(WHOLE)) as upstream:
        with pytest.raises(UpstreamError, match="closed the connection"):
            async with upstream.stream("POST", "/", body=body):
                pass
        assert upstream.n_open == 0


async def test_nothing_is_sent_to_the_successor_of_a_process() -> None:
    """It has the same socket and may be loading, so its 503 would be taken for an answer."""
    async with serving(sending(WHOLE)) as upstream:
        upstream.close_all()

        with pytest.raises(NotListening, match="has ended"):
            await upstream.fetch("GET", "/")


async def test_nothing_is_sent_to_a_successor_that_came_while_it_connected() -> None:
    """The process ends between the call and the connection."""
    async with serving(sending(WHOLE)) as upstream:

        async def ask() -> None:
            with pytest.raises(NotListening, match="has ended"):
                await upstream.fetch("GET", "/")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await checkpoint()
            upstream.close_all()


@pytest.mark.parametrize("n_bytes", [1, 5, 64, 10**6])
async def test_pour_gives_every_piece_in_order_and_returns_at_the_end(n_bytes: int) -> None:
    """Whether it came before or after, in the call that reads it."""
    got: list[bytes] = []
    pieces = [WHOLE[at : at + n_bytes] for at in range(0, len(WHOLE), n_bytes)]

    async with serving(sending(*pieces)) as upstream, upstream.stream("GET", "/") as response:
        assert not await response.pour(taking_into(got))

    assert b"".join(got) == b"hello there"


async def test_pour_stops_for_a_sink_that_takes_no_more_and_goes_on_where_it_was() -> None:
    """What comes meanwhile is kept."""
    got: list[bytes] = []
    n_pauses = 0

    async with (
        serving(sending(WHOLE[:-20], WHOLE[-20:-9], WHOLE[-9:])) as upstream,
        upstream.stream("GET", "/") as response,
    ):
        while await response.pour(taking_into(got, is_full=True)):
            n_pauses += 1
            await checkpoint()

    assert b"".join(got) == b"hello there"
    assert n_pauses == len(got) > 0


async def test_pour_into_a_sink_that_takes_no_more_pauses_reading() -> None:
    """A client that reads slowly makes llama-server wait, and no memory fill."""
    piece = b"%x\r\n%b\r\n" % (1 << 16, b"x" * (1 << 16))
    n_pieces = 100

    async with (
        serving(sending(CHUNKED, *[piece] * n_pieces, b"0\r\n\r\n")) as upstream,
        upstream.stream("GET", "/") as response,
    ):
        got: list[bytes] = []
        assert await response.pour(taking_into(got, is_full=True))
        await until(lambda: response._is_paused)
        assert response._unread_bytes < HIGH_WATER_BYTES + (1 << 20)

        assert not await response.pour(taking_into(got))

    assert sum(map(len, got)) == n_pieces << 16


async def test_pour_raises_what_the_sink_raised_and_calls_it_no_more() -> None:
    """As an answer does that cannot use what it is fed with."""
    n_calls = 0

    def fail(_data: bytes) -> bool:
        nonlocal n_calls
        n_calls += 1
        raise EngineError("no")

    async with (
        serving(sending(CHUNKED, b"5\r\nhello\r\n", b"0\r\n\r\n")) as upstream,
        upstream.stream("GET", "/") as response,
    ):
        with pytest.raises(EngineError):
            await response.pour(fail)
        assert await response.read_all() == b""

    assert n_calls == 1


async def test_pour_of_a_connection_that_breaks_gives_what_came_and_then_raises() -> None:
    """The client has it; how the answer goes on is for its caller."""
    got: list[bytes] = []

    async with serving(sending(WHOLE[:-1])) as upstream, upstream.stream("GET", "/") as response:
        with pytest.raises(UpstreamError, match="mid-answer"):
            await response.pour(taking_into(got))

    assert b"".join(got) == b"hello there"
