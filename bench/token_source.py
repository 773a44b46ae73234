"""A stand-in for llama-server that streams prepared tokens at a fixed pace and hardly any CPU.

It takes llama-server's command line and speaks as much of b11434 as kvsup needs to run it: the
three informational flags, the child protocol, and ``POST /v1/chat/completions`` as a stream in the
form, with the headers and in the chunks of the real one; as there, ``created`` is the time of the
event. A stream's first token comes at once; then all streams get their next one in the same step,
as slots of one batch do. ``TOKENS_PER_S`` in the environment is the pace of each stream.

It imports nothing of kvsup. ``ollama_source.py`` is the same for Ollama.
"""

import asyncio
import json
import os
import signal
import sys
import time
from itertools import pairwise
from typing import Any, cast

import uvloop

HELP = """\
-h,    --help, --usage                  print usage and exit
--version                               show version and build info
--list-devices                          print list of available devices and exit
-ctk,  --cache-type-k TYPE              KV cache data type for K
                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1
                                        (default: f16)
-ctv,  --cache-type-v TYPE              KV cache data type for V
                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1
                                        (default: f16)
"""  # noqa: E501 - the lines of b11434
VERSION = "version: 0.6.0-dev (build 11434, commit stand-in)\n"
DEVICES = "Available devices:\n  (none)\n"

HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nAccess-Control-Allow-Origin: \r\n"
    b"X-Accel-Buffering: no\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
)
HEALTHY = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'
UNKNOWN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
EXIT_LINE = b"cmd_router_to_child:exit"
WORDS = (
    " the", " model", " a", " of", "\n\n", " KV", ",", " cache", ' "quoted"', " naïve", " token",
    "s", ".", " <b>", " attention", " is", " 1", "0", " über", " memory",
)  # fmt: skip


def _event(name: str, delta: dict[str, Any], **more: Any) -> bytes:
    """Return one event of a chat's stream, with the fields and their order of b11434."""
    finish_reason = more.pop("finish_reason", None)
    event = {
        "choices": [{"finish_reason": finish_reason, "index": 0, "delta": delta}],
        "created": int(time.time()),
        "id": "chatcmpl-nhiv3YIxyuxD8D7KbksANHGn44HVEY04",
        "model": name,
        "system_fingerprint": "b11434-unknown",
        "object": "chat.completion.chunk",
        **more,
    }
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def chunk(events: bytes) -> bytes:
    """Return a chunk of HTTP."""
    return b"%x\r\n%b\r\n" % (len(events), events)


class Script:
    """What every stream says, rendered once a second."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rendered_s = 0
        self.progress = b""
        self.tokens: list[bytes] = []
        self.first = b""
        self.renew()

    def renew(self) -> None:
        """Render it for the second that it is."""
        now_s, name = int(time.time()), self._name
        if now_s == self._rendered_s:
            return
        self._rendered_s = now_s
        role = _event(name, {"role": "assistant", "content": None})
        progress = {"total": 32, "cache": 0, "processed": 32, "time_ms": 230}
        self.progress = chunk(
            _event(name, {"role": "assistant", "content": None}, prompt_progress=progress)
        )
        self.tokens = [chunk(_event(name, {"content": word})) for word in WORDS]
        self.first = chunk(role + _event(name, {"content": WORDS[0]}))

    def end(self, n_tokens: int) -> bytes:
        """Return the last event with its timings, ``[DONE]`` and the last chunk."""
        timings = {
            "cache_n": 0, "prompt_n": 32, "prompt_ms": 230.934, "predicted_n": n_tokens,
            "predicted_ms": 18.169, "predicted_per_token_ms": 6.0563,
            "predicted_per_second": 165.1164,
        }  # fmt: skip
        last = _event(self._name, {}, finish_reason="length", timings=timings)
        return chunk(last) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Clock:
    """Gives all open streams their next token, ``tokens_per_s`` times a second."""

    def __init__(self, tokens_per_s: float) -> None:
        self._interval_s = 1 / tokens_per_s
        self._streams: set[Stream] = set()

    def add(self, stream: "Stream") -> None:
        """Take up a stream; the first one starts the clock."""
        self._streams.add(stream)
        if len(self._streams) == 1:
            loop = asyncio.get_running_loop()
            loop.call_later(self._interval_s, self._step, loop.time() + self._interval_s)

    def drop(self, stream: "Stream") -> None:
        """Forget a stream that has ended or was left."""
        self._streams.discard(stream)

    def _step(self, due_s: float) -> None:
        for stream in tuple(self._streams):
            stream.script.renew()
            stream.say()
        if self._streams:
            next_s = due_s + self._interval_s
            asyncio.get_running_loop().call_at(next_s, self._step, next_s)


class Stream(asyncio.Protocol):
    """One connection: one request, one answer, closed at its end as b11434 does."""

    closes = True

    def __init__(self, script: Script, clock: Clock) -> None:
        self.script = script
        self._clock = clock
        self._request = b""
        self._n_said = 0
        self._n_tokens = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole."""
        assert self._transport is not None
        self._request += data
        head, blank, body = self._request.partition(b"\r\n\r\n")
        if not blank or len(body) < _content_length(head):
            return
        if not self.is_stream(head):
            self._transport.write(self.plain(head))
            self._finish()
            return
        request = json.loads(body)
        self._n_tokens = self.wanted(request)
        self._transport.write(HEAD)
        if request.get("return_progress"):
            self._transport.write(self.script.progress)
        self.script.renew()
        self.say()
        if self._n_tokens > 1:
            self._clock.add(self)
        else:
            self.say()

    def is_stream(self, head: bytes) -> bool:
        """Say whether the request asks for tokens."""
        return head.startswith(b"POST /v1/chat/completions")

    def plain(self, head: bytes) -> bytes:
        """Return the answer to any other request."""
        return HEALTHY if head.startswith(b"GET /health") else UNKNOWN

    def wanted(self, request: dict[str, Any]) -> int:
        """Return how many tokens the request asks for."""
        return int(request.get("max_tokens") or request["n_predict"])

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Stop streaming to a client that left."""
        self._clock.drop(self)

    def say(self) -> None:
        """Send the next token, after the last one the end."""
        assert self._transport is not None
        if self._n_said == self._n_tokens:
            self._clock.drop(self)
            self._transport.write(self.script.end(self._n_tokens))
            self._finish()
            return
        tokens = self.script.tokens
        token = tokens[self._n_said % len(tokens)] if self._n_said else self.script.first
        self._n_said += 1
        self._transport.write(token)

    def _finish(self) -> None:
        """Close the connection, or wait for its next request."""
        assert self._transport is not None
        self._request, self._n_said = b"", 0
        if self.closes:
            self._transport.close()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line[15:])
    return 0


async def _serve(host: str, port: str, name: str) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    script = Script(name)
    clock = Clock(float(os.environ["TOKENS_PER_S"]))
    if host.endswith(".sock"):
        await loop.create_unix_server(lambda: Stream(script, clock), host, backlog=1024)
    else:
        await loop.create_server(lambda: Stream(script, clock), host, int(port), backlog=1024)

    def obey() -> None:
        line = sys.stdin.buffer.readline().strip()
        if line in {b"", EXIT_LINE}:
            ended.set()

    if "LLAMA_SERVER_ROUTER_PORT" in os.environ:
        loop.add_reader(sys.stdin.fileno(), obey)
    print('cmd_child_to_router:state:{"state":"ready"}', flush=True)
    await ended.wait()


def main(arguments: list[str]) -> None:
    """Act as llama-server would on ``arguments``."""
    texts = {"--help": HELP, "--version": VERSION, "--list-devices": DEVICES}
    if arguments and arguments[0] in texts:
        sys.stdout.write(texts[arguments[0]])
        return
    given = dict(pairwise(arguments))
    uvloop.run(_serve(given["--host"], given.get("--port", ""), given["--alias"]))


if __name__ == "__main__":
    main(sys.argv[1:])
