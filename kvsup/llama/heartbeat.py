"""What of llama-server's output proves that its loop runs, and not only its HTTP threads.

A thread for each connection waits for the loop's results. While the loop stands still, those
threads answer some paths by themselves, send a ping into each waiting stream every 30 s
(``sse_ping_interval``) and log that a request has come (server-context.cpp and server-http.cpp,
b11434; the same in b10435).
"""

import re

PING = b":\n\n"
"""The piece of a stream that a thread sends while it waits."""

_BESIDE_THE_LOOP = frozenset(
    {
        "/health", "/v1/health", "/props", "/models", "/v1/models", "/lora-adapters",
        "/tokenize", "/detokenize", "/apply-template", "/v1/messages/count_tokens",
        "/chat/completions/input_tokens", "/v1/chat/completions/input_tokens",
        "/responses/input_tokens", "/v1/responses/input_tokens",
    }
)  # fmt: skip

_LOOP_LINE = re.compile(r"(?:[\d.]+ )?(?:[A-Z] )?slot +\S")


def is_of_the_loop(target: str) -> bool:
    """Say whether an answer to ``target``, a path with its query, comes of the loop."""
    return target.partition("?")[0] not in _BESIDE_THE_LOOP


def is_line_of_the_loop(line: str) -> bool:
    """Say whether a log line is one of a slot: launched, at its prompt, generating, released."""
    return _LOOP_LINE.match(line) is not None
