"""Steer requests of ``/v1/*`` so that llama-server notices soon when the client has left.

llama-server looks for the client only when its own request has a result, or when no request of the
process had one for a second (``server_response::recv_with_timeout``, b11434). So whoever leaves
while the prompt is read, or while the answer is not streamed, holds a slot for as long as another
slot streams. With ``stream`` and ``return_progress`` each batch of the prompt and each token is a
result. The answer is then mended to what the client asked for.

What goes in place of ``/v1/messages``, which takes no ``return_progress``, is streamed already.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from kvsup.llama.fold import ChatFold, CompletionFold, ResponseFold
from kvsup.llama.progress import ProgressFilter

_STREAMED = b'"return_progress":true}'
_FOLDED = b'"stream":true,"stream_options":{"include_usage":true},' + _STREAMED


class PassAnswer(Protocol):
    """Mends the bytes of one answer with status 200; one object an attempt."""

    @property
    def content_type(self) -> bytes | None:
        """The type of the mended answer, None for the one that llama-server gave."""

    def feed(self, data: bytes) -> bytes:
        """Return what to send for ``data``, empty if nothing yet."""

    def finish(self) -> bytes:
        """Return what to send at the end."""


@dataclass(frozen=True, slots=True)
class Steered:
    """A request as llama-server gets it, and what makes its answer the client's."""

    body: bytes
    make_answer: Callable[[], PassAnswer]


class _Message(msgspec.Struct, frozen=True):
    role: str | None = None


class _Request(msgspec.Struct, frozen=True):
    """The fields that decide; where a name comes twice the last one counts, as in llama-server."""

    stream: bool | None = None
    return_progress: bool | None = None
    n: int | None = None
    n_cmpl: int | None = None
    prompt: msgspec.Raw = msgspec.Raw(b'""')
    messages: list[_Message] = []
    continue_final_message: Any = None
    logprobs: Any = None
    n_probs: Any = None
    stop: Any = None
    verbose: Any = None

    @property
    def has_one_answer(self) -> bool:
        """Say whether there is one prompt and one answer to it."""
        return (self.n_cmpl or self.n or 1) == 1 and self.has_one_prompt

    @property
    def has_one_prompt(self) -> bool:
        """Say whether ``prompt`` is a text, a list of one, or a list of tokens."""
        prompt = bytes(self.prompt)
        if not prompt.startswith(b"["):
            return prompt.startswith(b'"')
        items = msgspec.json.decode(prompt, type=list[msgspec.Raw])
        return len(items) == 1 or all(bytes(item).isdigit() for item in items)

    @property
    def has_logprobs(self) -> bool:
        """Say whether the answer is to tell the probabilities of its tokens."""
        return bool(self.logprobs or self.n_probs)

    @property
    def is_continuation(self) -> bool:
        """Say whether the answer goes on with the last message; only a stream leaves that out."""
        last_role = self.messages[-1].role if self.messages else None
        return last_role == "assistant" or bool(self.continue_final_message)


_request = msgspec.json.Decoder(_Request).decode


def steer(path: str, body: bytes) -> Steered | None:
    """Return the request to send in place of ``body``, or None where it goes as it came.

    Members are appended before the object's last brace; llama-server takes the last of members
    that have the same name (nlohmann::json). None is returned for other paths, for bodies that
    are none, for streams whose client wants the progress itself, and for answers that cannot be
    folded to what llama-server answers without ``stream``.

    Args:
        path: of the URL, such as ``/v1/chat/completions``.
        body: the request's JSON.
    """
    if path not in _PATHS:
        return None
    try:
        request = _request(body)
        make_answer = _PATHS[path](request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if make_answer is None:
        return None
    opened = body.rstrip()[:-1].rstrip()
    comma = b"" if opened.endswith(b"{") else b","
    members = _STREAMED if request.stream else _FOLDED
    return Steered(opened + comma + members, make_answer)


def _chat(request: _Request) -> Callable[[], PassAnswer] | None:
    """A chat's stream has no logprobs for tokens without text, such as the last one."""
    if request.stream:
        return _filter(request)
    if request.verbose or request.has_logprobs or request.is_continuation:
        return None
    return ChatFold


def _completion(request: _Request) -> Callable[[], PassAnswer] | None:
    """The tokens of a stop word have logprobs in a stream, but not without."""
    if request.stream:
        return _filter(request)
    if request.verbose or not request.has_one_prompt or (request.has_logprobs and request.stop):
        return None
    return CompletionFold


def _response(request: _Request) -> Callable[[], PassAnswer] | None:
    """With several answers the streams of events cannot be told apart."""
    if request.return_progress or request.has_logprobs or not request.has_one_answer:
        return None
    return (lambda: ProgressFilter(keeps_first=True)) if request.stream else ResponseFold


def _filter(request: _Request) -> Callable[[], PassAnswer] | None:
    if request.return_progress:
        return None
    is_single = request.has_one_answer
    return lambda: ProgressFilter(is_single=is_single)


_PATHS: dict[str, Callable[[_Request], Callable[[], PassAnswer] | None]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
}
