"""The token source as Ollama's runner: what Ollama v0.17.4 asks of it, with the same tokens.

Ollama starts it as ``ollama runner --model PATH --port N`` and asks ``/health``, ``/load`` and, for
tokens, ``/completion`` (``llm/server.go``, ``runner/llamarunner/runner.go``). On the same port it
answers ``/v1/chat/completions`` as the token source does: the way past Ollama.
"""

import asyncio
import json
import os
import signal
import sys
from itertools import pairwise
from typing import Any

import uvloop

from bench.token_source import UNKNOWN, WORDS, Clock, Script, Stream, chunk


def _reply(document: object) -> bytes:
    body = json.dumps(document).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


REPLIES = {
    b"GET /health": _reply({"status": 0, "progress": 1}),
    b"POST /load": _reply({"Success": True}),
    b"GET /info": _reply([]),
}


def _line(content: str, **more: Any) -> bytes:
    """Return a line with the fields of ``CompletionResponse``."""
    line = {
        "content": content,
        "done_reason": 0,
        "done": False,
        "prompt_eval_count": 0,
        "prompt_eval_duration": 0,
        "eval_count": 0,
        "eval_duration": 0,
        **more,
    }
    text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    return chunk(text.encode() + b"\n")


class RunnerScript(Script):
    """What every stream of ``/completion`` says."""

    def renew(self) -> None:
        """Render it once: no line tells the time."""
        if self.tokens:
            return
        self.tokens = [_line(word) for word in WORDS]
        self.first = self.tokens[0]

    def end(self, n_tokens: int) -> bytes:
        """Return the last line with its counts, and the last chunk."""
        counts = {"prompt_eval_count": 32, "prompt_eval_duration": 230_934_000}
        counts |= {"eval_count": n_tokens, "eval_duration": 18_169_000}
        return _line("", done=True, done_reason=1, **counts) + b"0\r\n\r\n"


class RunnerStream(Stream):
    """A connection of Ollama's, or one past it; as with a real runner, it stays open."""

    closes = False

    def is_stream(self, head: bytes) -> bool:
        """Say whether the request asks for tokens; choose their form."""
        if head.startswith(b"POST /completion"):
            self.script = RUNNER_SCRIPT
            return True
        return super().is_stream(head)

    def plain(self, head: bytes) -> bytes:
        """Return what Ollama expects of its runner."""
        return next((said for asked, said in REPLIES.items() if head.startswith(asked)), UNKNOWN)

    def wanted(self, request: dict[str, Any]) -> int:
        """Return how many tokens the request asks for, in either dialect."""
        options = request.get("Options")
        return int(options["num_predict"]) if options else super().wanted(request)


RUNNER_SCRIPT = RunnerScript("runner")


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    script, clock = Script("runner"), Clock(float(os.environ["TOKENS_PER_S"]))
    await loop.create_server(lambda: RunnerStream(script, clock), "127.0.0.1", port, backlog=1024)
    await ended.wait()


if __name__ == "__main__":
    given = dict(pairwise(sys.argv[1:]))
    uvloop.run(_serve(int(given["--port"])))
