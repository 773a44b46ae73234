"""The requests of the soak: on each API, streamed and whole, and how the whole text is read."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

N_TOKENS = 32
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"type": "string"}, "sound": {"type": "string"}},
    "required": ["animal", "sound"],
}
TOPICS = ("a lighthouse", "a fox", "an old clock", "rain", "a violin", "the moon")


class LostError(Exception):
    """The client was told an error."""


class TruncatedError(Exception):
    """The answer ended as if it were whole, and was not."""


@dataclass(frozen=True, eq=False)
class Job:
    """One request whose text is known once it has been asked in peace."""

    name: str
    model: str
    path: str
    body: Mapping[str, Any]
    text: Callable[[Mapping[str, Any]], str]
    """Of an event, or of a whole answer."""
    is_end: Callable[[Mapping[str, Any]], bool]
    """Whether an event, or an answer, says that the whole was said."""

    async def ask(self, client: httpx.AsyncClient) -> str:
        """Return the whole text.

        Raises:
            LostError: an error was told, before or in the stream.
            TruncatedError: it ended without its end.
            httpx.TimeoutException: nothing came for the client's time-out.
        """
        texts, is_whole = [], False
        try:
            async for event in self._events(client):
                if event.get("error") or event.get("type") == "error":
                    raise LostError(json.dumps(event)[:300])
                texts.append(self.text(event))
                is_whole |= self.is_end(event)
        except httpx.TimeoutException:
            raise
        except httpx.TransportError as error:
            raise LostError(f"the connection broke: {error!r}") from error
        if not is_whole:
            raise TruncatedError(f"after {len(texts)} events")
        return "".join(texts)

    async def _events(self, client: httpx.AsyncClient) -> AsyncIterator[Mapping[str, Any]]:
        async with client.stream("POST", self.path, json=self.body) as response:
            if response.status_code != 200:
                raise LostError(f"{response.status_code}: {(await response.aread())[:300]!r}")
            if not self.body.get("stream", True):
                yield json.loads(await response.aread())
                return
            async for line in response.aiter_lines():
                if line.startswith(("{", "data: {")):
                    yield json.loads(line.removeprefix("data: "))


def jobs(models: Sequence[str], topics: Sequence[str] = TOPICS) -> list[Job]:
    """Return a job for each model, API, way of answering and topic."""
    return [
        make(model, f"Tell me about {topic}.", stream=stream)
        for topic in topics
        for model in models
        for make in (_chat, _schema, _generate, _completions, _chat_completions, _messages)
        for stream in (True, False)
    ]


def _options() -> dict[str, Any]:
    return {"temperature": 0, "num_predict": N_TOKENS}


def _named(kind: str, topic: str, *, stream: bool) -> str:
    return f"{kind}, {'streamed' if stream else 'whole'}: {topic}"


def _chat(model: str, text: str, *, stream: bool, **more: Any) -> Job:
    return Job(
        _named("/api/chat" + (" with a schema" if more else ""), text, stream=stream),
        model,
        "/api/chat",
        {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "stream": stream,
            "options": _options(),
            **more,
        },
        lambda event: event["message"]["content"],
        lambda event: bool(event.get("done")),
    )


def _schema(model: str, text: str, *, stream: bool) -> Job:
    return _chat(model, text, stream=stream, format=SCHEMA)


def _generate(model: str, text: str, *, stream: bool) -> Job:
    return Job(
        _named("/api/generate", text, stream=stream),
        model,
        "/api/generate",
        {"model": model, "prompt": text, "raw": True, "stream": stream, "options": _options()},
        lambda event: event["response"],
        lambda event: bool(event.get("done")),
    )


def _completions(model: str, text: str, *, stream: bool) -> Job:
    return _openai("/v1/completions", {"prompt": text}, model, text, stream=stream)


def _chat_completions(model: str, text: str, *, stream: bool) -> Job:
    messages = [{"role": "user", "content": text}]
    return _openai("/v1/chat/completions", {"messages": messages}, model, text, stream=stream)


def _openai(path: str, asked: dict[str, Any], model: str, text: str, *, stream: bool) -> Job:
    body = {"model": model, "stream": stream, "temperature": 0, "max_tokens": N_TOKENS, **asked}
    return Job(_named(path, text, stream=stream), model, path, body, _openai_text, _is_openai_end)


def _openai_text(event: Mapping[str, Any]) -> str:
    choice = event["choices"][0]
    said = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
    return said.get("content") or ""


def _is_openai_end(event: Mapping[str, Any]) -> bool:
    return event["choices"][0]["finish_reason"] is not None


def _messages(model: str, text: str, *, stream: bool) -> Job:
    return Job(
        _named("/v1/messages", text, stream=stream),
        model,
        "/v1/messages",
        {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "stream": stream,
            "temperature": 0,
            "max_tokens": N_TOKENS,
        },
        _anthropic_text,
        lambda event: event["type"] == "message_stop" or bool(event.get("stop_reason")),
    )


def _anthropic_text(event: Mapping[str, Any]) -> str:
    if event["type"] == "content_block_delta":
        return str(event["delta"].get("text", ""))
    return "".join(block.get("text", "") for block in event.get("content", ()))
