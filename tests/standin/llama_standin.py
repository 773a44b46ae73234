#!/usr/bin/env python3
"""A llama-server that fails on demand, driven by a JSON script.

The file that ``KVSUP_STANDIN`` names holds lists of steps: ``{"starts": [[step, …], …],
"answers": [[step, …], …]}`` and, for a build without events, ``"is_old": true``. The k-th start of
the program runs the k-th of ``starts``, the k-th POST over all starts the k-th of ``answers``; the
last of either repeats. A step is a list: the name of a public method of ``Start`` (in ``answers``:
of ``Answer``, else of ``Start``) and its arguments. What the program does beside its script it does
as b11434 does; contract tests hold it to that.
"""

import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

HELP = """----- common params -----

-ctk,  --cache-type-k TYPE              KV cache data type for K
                                        allowed values: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, \
q5_0, q5_1
                                        (default: f16)
-ctv,  --cache-type-v TYPE              KV cache data type for V
--no-ui --offline --no-cache-idle-slots --no-log-timestamps --fit [on|off]
"""
VERSION = "version: 0.6.0-dev (build 11434, commit standin)"
EXIT_LINE = b"cmd_router_to_child:exit"
IS_CHILD = "LLAMA_SERVER_ROUTER_PORT" in os.environ

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: close\r\n\r\n"
)
ANSWER = [["head"], ["token", "Hello"], ["token", " there"], ["done"]]


class Start:
    """One run of the program: the steps of its load, then its service until it is ended."""

    def __init__(self, path: Path, socket_path: str) -> None:
        script = json.loads(path.read_text())
        self._path = path
        self._socket_path = socket_path
        self._answers = script.get("answers", [ANSWER])
        self._is_old = script.get("is_old", False)
        self._steps = pick(script["starts"], count(path, "starts"))
        self._ignored: list[str] = []
        self._is_ready = False
        self._has_lost_exit_line = False
        self._in_flight = 0
        self._is_deaf = False
        self._changed = threading.Condition()

    def run(self) -> None:
        """Take every step, then serve."""
        for verb, *arguments in self._steps:
            getattr(self, verb)(*arguments)
        threading.Event().wait()

    # The steps of a load.

    def log(self, *lines: str) -> None:
        """Print lines on stderr."""
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()

    def write(self, channel: str, text: str, times: int = 1) -> None:
        """Write ``text`` so many times on stdout or stderr, in Latin-1 and without a newline."""
        stream = sys.stdout if channel == "stdout" else sys.stderr
        for _ in range(times):
            stream.buffer.write(text.encode("latin-1"))
        stream.buffer.flush()

    def stage(self, value: float) -> None:
        """Report how far the load is."""
        payload = {"stages": ["text_model"], "current": "text_model", "value": value}
        self._event({"state": "loading", "payload": payload})

    def listen(self) -> None:
        """Bind the socket, which answers 503 until ``ready``."""
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(self._socket_path)
        except OSError:
            self.log(
                f"E srv         start: couldn't bind HTTP server socket, hostname: "
                f"{self._socket_path}, port: 8080",
                "E srv  llama_server: exiting due to HTTP server error",
            )
            self.exit(1)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def ready(self) -> None:
        """Serve, and say so; from here on SIGTERM, the exit line and the end of stdin are heard."""
        self._is_ready = True
        if "SIGTERM" not in self._ignored:
            signal.signal(signal.SIGTERM, self._on_sigterm)
        if IS_CHILD and not self._is_old:
            threading.Thread(target=self._read_stdin, daemon=True).start()
        self._event({"state": "ready", "payload": {"id": "standin"}})
        self.log("I srv  update_slots: all slots are idle")

    def wait(self, fifo: str) -> None:
        """Wait until someone has opened the named pipe for writing and closed it."""
        Path(fifo).read_bytes()

    def touch(self, path: str) -> None:
        """Make a file, for a test that waits to see this step reached."""
        Path(path).touch()

    def hang(self) -> None:
        """Go no further; signals act as they did."""
        threading.Event().wait()

    def ignore(self, what: str) -> None:
        """Become deaf to ``SIGTERM`` or to ``exit line``.

        b11434 loses an exit line that it reads before it is idle for the first time (its
        ``start_loop`` undoes it); from then on one SIGTERM ends it.
        """
        self._ignored.append(what)
        if what == "SIGTERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def deafen(self) -> None:
        """Take no more connections; the kernel still does, up to its backlog."""
        self._is_deaf = True

    def grandchild(self) -> None:
        """Leave a process in the same session that holds the pipes and notices nothing."""
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                signal.pause()

    def exit(self, code: int) -> None:
        """End with an exit code."""
        os._exit(code)

    def die(self, name: str) -> None:
        """End by a signal."""
        number = signal.Signals[name]
        is_handled = signal.getsignal(number) not in {signal.SIG_DFL, None}
        if is_handled:  # within an answer, in a thread, none of those can be taken back
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        threading.Event().wait()

    # What goes on beside the steps.

    def _event(self, event: dict[str, object]) -> None:
        if IS_CHILD and not self._is_old:
            sys.stdout.write(f"cmd_child_to_router:state:{json.dumps(event)}\n")
            sys.stdout.flush()

    def _on_sigterm(self, _number: int, _frame: object) -> None:
        if not IS_CHILD or self._is_old or self._has_lost_exit_line:
            threading.Thread(target=self._leave, daemon=True).start()

    def _read_stdin(self) -> None:
        for line in sys.stdin.buffer:
            if line.strip() != EXIT_LINE:
                continue
            self._has_lost_exit_line = "exit line" in self._ignored
            if not self._has_lost_exit_line:
                self._leave()
        if "exit line" not in self._ignored:
            os._exit(1)

    def _leave(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._in_flight)
        os._exit(0)

    def _accept(self) -> None:
        while not self._is_deaf:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._changed:
            self._in_flight += 1
        try:
            Answer(self, connection).serve()
        except OSError:
            pass  # the client has left
        finally:
            connection.close()
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    @property
    def is_ready(self) -> bool:
        """Say whether ``ready`` was reached."""
        return self._is_ready

    def next_answer(self) -> list[list[str]]:
        """Return the steps of the next POST."""
        steps: list[list[str]] = pick(self._answers, count(self._path, "answers"))
        return steps


class Answer:
    """One connection with one request."""

    def __init__(self, start: Start, connection: socket.socket) -> None:
        self._start = start
        self._connection = connection
        self._body = b""

    def serve(self) -> None:
        """Read the request and answer it."""
        request = self._read()
        if not request:
            return
        if not self._start.is_ready:
            error = {"error": {"code": 503, "message": "Loading model"}}
            self._plain("503 Service Unavailable", error)
        elif request.startswith(b"GET /health"):
            self._plain("200 OK", {"status": "ok"})
        elif request.startswith(b"POST"):
            for verb, *arguments in self._start.next_answer():
                step = getattr(self, verb, None) or getattr(self._start, verb)
                step(*arguments)
        else:
            self._plain("200 OK", [])

    # The steps of an answer.

    def digest(self) -> None:
        """Send a token that tells length and SHA-256 of the request's body."""
        self.token(f"{len(self._body)} {hashlib.sha256(self._body).hexdigest()}")

    def head(self) -> None:
        """Send the head of a stream."""
        self._connection.sendall(HEAD)

    def send(self, text: str, times: int = 1) -> None:
        """Send one chunk so many times."""
        data = text.encode()
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        for _ in range(times):
            self._connection.sendall(chunk)

    def token(self, text: str) -> None:
        """Send one token of a chat."""
        self.send(f"data: {json.dumps(chat_chunk({'content': text}))}\n\n")

    def done(self) -> None:
        """End the stream as a chat that is complete."""
        last = chat_chunk({}, finish_reason="stop")
        last["timings"] = {
            "cache_n": 0, "prompt_n": 3, "prompt_ms": 1.0, "predicted_n": 2, "predicted_ms": 1.0,
        }  # fmt: skip
        self.send(f"data: {json.dumps(last)}\n\n")
        if b'"include_usage":true' in self._body:
            counts = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            usage = {**chat_chunk({}), "choices": [], "usage": counts}
            self.send(f"data: {json.dumps(usage)}\n\n")
        self.send("data: [DONE]\n\n")
        self._connection.sendall(b"0\r\n\r\n")

    def raw(self, text: str) -> None:
        """Send bytes that need not be HTTP."""
        self._connection.sendall(text.encode("latin-1"))

    def stall(self) -> None:
        """Send nothing more until the client leaves."""
        while self._connection.recv(1):
            pass

    def spin(self) -> None:
        """Compute for ever, without a word."""
        while True:
            pass

    def ping(self) -> None:
        """Send what the HTTP thread of a stream sends while it waits for the loop, for ever."""
        while True:
            self.send(":\n\n")
            time.sleep(0.1)

    def hang_up(self) -> None:
        """Close the connection."""
        self._connection.shutdown(socket.SHUT_RDWR)

    def _plain(self, status: str, value: object) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        length = f"Content-Length: {len(body)}\r\n\r\n"
        self._connection.sendall(head.encode() + length.encode() + body)

    def _read(self) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := self._connection.recv(1 << 16)):
                return b""
            data += more
        head, body = data.split(b"\r\n\r\n", 1)
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-l")]
        n_bytes = int(lengths[0].split(b":")[1]) if lengths else 0
        whole = bytearray(body)
        while len(whole) < n_bytes and (more := self._connection.recv(1 << 16)):
            whole += more
        self._body = bytes(whole)
        return head


def chat_chunk(delta: dict[str, str], *, finish_reason: str | None = None) -> dict[str, object]:
    """Return one event of a chat stream, as b11434 sends it."""
    choice = {"finish_reason": finish_reason, "index": 0, "delta": delta}
    return {
        "choices": [choice], "created": 1, "id": "chatcmpl-standin", "model": "standin",
        "object": "chat.completion.chunk",
    }  # fmt: skip


def count(path: Path, what: str) -> int:
    """Return how often this was asked before, over all starts on one script."""
    with path.with_suffix(f".{what}").open("ab") as file:
        file.write(b".")
        return file.tell() - 1


def pick(rows: list[list[list[str]]], index: int) -> list[list[str]]:
    """Return the row at ``index``; the last one repeats."""
    return rows[min(index, len(rows) - 1)]


def main(arguments: list[str]) -> None:
    """Answer an informational flag, or run the script."""
    if "--help" in arguments:
        sys.stdout.write(HELP)
    elif "--version" in arguments:
        sys.stderr.write(f"{VERSION}\n")
    elif "--list-devices" in arguments:
        sys.stdout.write("Available devices:\n  (none)\n")
    elif "--nope" in arguments:
        sys.stderr.write("error: invalid argument: --nope\n")
        sys.exit(1)
    else:
        socket_path = arguments[arguments.index("--host") + 1]
        Start(Path(os.environ["KVSUP_STANDIN"]), socket_path).run()


if __name__ == "__main__":
    main(sys.argv[1:])
