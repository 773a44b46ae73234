"""The answer of ``/v1/responses`` with everything that OpenAI's SDKs need of it.

llama-server's own (b10434, b11434: server-task.cpp, ``to_json_oaicompat_resp*``) has no sequence
numbers, no indexes, no ``.done`` event for arguments and for reasoning, no event about an item
that its parser finds only at the end, and says "completed" of what a limit cut off. It tells
thoughts as ``reasoning_text`` and leaves ``summary`` empty, and ends them after the message.

Ollama tells them only as the summary (openai/responses.go, 2026-08), and only that is a thought to
pydantic-ai 2 and @ai-sdk/openai 4, so here they are in both.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from kvsup.llama.sse import EventSplitter
from kvsup.llama.wire import error_message

Json = dict[str, Any]

_encode = msgspec.json.encode
_decode = msgspec.json.decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_DEFAULTS: Json = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "model": "",
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""What a response says of its request, where that said nothing."""


def echoed(body: bytes) -> Json:
    """Return the members of the request ``body`` that a response tells.

    Args:
        body: an object whose members have the right types.
    """
    return {key: _decode(raw) for key, raw in _members(body).items() if key in _DEFAULTS}


class Echo:
    """What a response tells of its request, and what only the request can tell of a response."""

    def __init__(self, members: Json, *, created_s: int, n_ctx_tokens: int) -> None:
        """Take what is needed of the request.

        Args:
            members: as ``echoed`` returns them.
            created_s: when the request came, in seconds since 1970.
            n_ctx_tokens: the context of one request in tokens.
        """
        self._members = _filled(_DEFAULTS, members)
        for key in ("reasoning", "text"):
            self._members[key] = _filled(_DEFAULTS[key], self._members[key])
        self._members["tools"] = [_echoed_tool(tool) for tool in self._members["tools"]]
        self._members["store"] = False  # nothing is kept here, whatever was asked
        self._created_s = created_s
        self._n_ctx_tokens = n_ctx_tokens

    def started(self, response_id: str) -> Json:
        """Return the response before its first token."""
        return self._object(id=response_id, status="in_progress", output=[], usage=None)

    def whole(self, response: Json) -> Json:
        """Return ``response``, llama-server's object, complete."""
        usage = response["usage"]
        is_cut = self._is_cut(usage)
        items = [_completed(item) for item in response["output"]]
        if is_cut and items:
            items[-1]["status"] = "incomplete"
        known = self._object(
            id=response["id"],
            status="incomplete" if is_cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            completed_at=None if is_cut else response["created_at"],
            output=items,
            usage={
                **usage,
                "input_tokens_details": {"cache_write_tokens": 0, **usage["input_tokens_details"]},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        )
        return {**response, **known}

    def _is_cut(self, usage: Json) -> bool:
        """Say whether a limit ended the answer; llama-server tells only by the counts."""
        limit_tokens = self._members["max_output_tokens"]
        is_at_limit = limit_tokens is not None and usage["output_tokens"] >= limit_tokens
        return bool(is_at_limit or usage["total_tokens"] >= self._n_ctx_tokens)

    def _object(self, **members: object) -> Json:
        return {
            "object": "response",
            "created_at": self._created_s,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            **self._members,
            **members,
        }


def _filled(defaults: Json, given: Json) -> Json:
    return {**defaults, **{key: value for key, value in given.items() if value is not None}}


def _echoed_tool(tool: Json) -> Json:
    """Return ``tool`` with what the schema of a function requires."""
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": True, **tool}


def _completed(item: Json) -> Json:
    if item["type"] != "reasoning":
        return {**item, "status": "completed"}
    summary = [_summary(part["text"]) for part in item["content"]]
    return {**item, "summary": summary, "status": "completed"}


def _summary(text: str) -> Json:
    return {"type": "summary_text", "text": text}


class _Delta(msgspec.Struct, frozen=True, gc=False):
    item_id: str
    delta: str = ""


_delta = msgspec.json.Decoder(_Delta).decode

_PARTS = {
    "message": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
    "reasoning": {"type": "reasoning_text", "text": ""},
}
"""The empty part that an item of a type begins with; a call of a function has none."""

_TEXTS = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
}
"""What the events about an item's text begin with."""

_SUMMARY = "response.reasoning_summary"
"""What the events about the summary of a thought begin with."""

_REPLACED = {
    "response.content_part.added",
    "response.content_part.done",
    "response.output_text.done",
    "response.output_item.done",
}
"""Events of llama-server that are made anew: some items have them, others do not."""


class _Item:
    """One item of the output."""

    def __init__(self, item: Json, index: int) -> None:
        self.added = item
        self.index = index
        self.id: str = item["id"]
        self.kind: str = item["type"]
        self.pieces: list[str] = []
        """A thought's text so far; of other items it is not needed."""
        self.is_closed = False

    @property
    def place(self) -> Json:
        """Return where the item's text stands."""
        place: Json = {"item_id": self.id, "output_index": self.index}
        return place if self.kind == "function_call" else {**place, "content_index": 0}

    @property
    def summary_place(self) -> Json:
        """Return where the summary of a thought stands."""
        return {"item_id": self.id, "output_index": self.index, "summary_index": 0}

    @property
    def thought(self) -> Json:
        """Return the whole item of a thought that is at its end."""
        part = {"type": "reasoning_text", "text": "".join(self.pieces)}
        return _completed({**self.added, "content": [part]})

    @property
    def logprobs(self) -> Json:
        """Return the member that only the events about a message's text have."""
        return {"logprobs": []} if self.kind == "message" else {}


class ResponseMend:
    """Mends one stream of ``/v1/responses``; an event about a token is spliced, not rebuilt."""

    def __init__(self, echo: Echo) -> None:
        self._echo = echo
        self._events = EventSplitter()
        self._items: dict[str, _Item] = {}
        self._thinking: _Item | None = None
        self._n_sent = 0
        self._is_created = False
        self._is_in_progress = False

    def feed(self, data: bytes) -> bytes:
        """Return the mended events that ``data`` completes.

        Raises:
            UpstreamError: an event is too long.
        """
        return b"".join(
            mended for event in self._events.feed(data) for mended in self._mended(event)
        )

    def finish(self) -> bytes:
        """Return what is left of an event that never ended."""
        return self._events.rest

    def _mended(self, event: bytes) -> Iterator[bytes]:
        name, _, payload = event.partition(b"\ndata: ")
        if name.endswith(b".delta"):
            yield from self._continued(name, payload)
        elif payload:
            yield from self._rebuilt(_decode(payload))
        elif event.startswith(b'data: {"error"'):
            yield self._error(event[6:])
        else:
            yield event + b"\n\n"

    def _continued(self, name: bytes, payload: bytes) -> Iterator[bytes]:
        """Yield an event about a token; a thought that goes on after its end is told no more."""
        delta = _delta(payload)
        item = self._items.get(delta.item_id)
        if item is None:
            event = _decode(payload)
            yield self._event(event["type"], event)
        elif item.kind != "reasoning":
            yield self._spliced(item, name, payload)
        elif not item.is_closed:
            item.pieces.append(delta.delta)
            yield self._spliced(item, name, payload)
            summary = {**item.summary_place, "delta": delta.delta}
            yield self._event(f"{_SUMMARY}_text.delta", summary)

    def _spliced(self, item: _Item, name: bytes, payload: bytes) -> bytes:
        """Return an event about a token with its place and number before the last brace."""
        content = b"" if item.kind == "function_call" else b',"content_index":0'
        logprobs = b',"logprobs":[]' if item.kind == "message" else b""
        return b'%b\ndata: %b,"output_index":%d%b%b,"sequence_number":%d}\n\n' % (
            name, payload[:-1], item.index, content, logprobs, self._next(),
        )  # fmt: skip

    def _rebuilt(self, event: Json) -> Iterator[bytes]:
        kind = event["type"]
        if kind in {"response.created", "response.in_progress"}:
            yield from self._started(event)
        elif kind == "response.output_item.added":
            yield from self._added(event["item"])
        elif kind == "response.completed":
            yield from self._ended(event)
        elif kind not in _REPLACED:
            yield self._event(kind, event)

    def _started(self, event: Json) -> Iterator[bytes]:
        """Tell once that there is a response; each batch of the prompt only where it is asked."""
        response = self._echo.started(event["response"]["id"])
        if not self._is_created:
            self._is_created = True
            yield self._event("response.created", {"response": response})
        is_news = not self._is_in_progress or "prompt_progress" in event
        if event["type"] == "response.in_progress" and is_news:
            self._is_in_progress = True
            yield self._event("response.in_progress", {**event, "response": response})

    def _added(self, added: Json) -> Iterator[bytes]:
        """Open an item; a thought ends where the next item begins."""
        if self._thinking is not None:
            yield from self._closed(self._thinking, self._thinking.thought)
        item = self._items[added["id"]] = _Item(added, len(self._items))
        yield self._event("response.output_item.added", {"output_index": item.index, "item": added})
        if item.kind in _PARTS:
            place = {**item.place, "part": _PARTS[item.kind]}
            yield self._event("response.content_part.added", place)
        if item.kind == "reasoning":
            self._thinking = item
            place = {**item.summary_place, "part": _summary("")}
            yield self._event(f"{_SUMMARY}_part.added", place)

    def _ended(self, event: Json) -> Iterator[bytes]:
        """Close every item, also one that is told only now, and then the response."""
        yield from self._started({"type": "response.in_progress", **_only_id(event)})
        response = self._echo.whole(event["response"])
        for done in response["output"]:
            if done["id"] not in self._items:
                yield from self._told_late(done)
            item = self._items[done["id"]]
            if not item.is_closed:
                yield from self._closed(item, done)
        response["output"].sort(key=lambda item: self._items[item["id"]].index)
        kind = "response." + response["status"]
        yield self._event(kind, {**event, "type": kind, "response": response})

    def _told_late(self, done: Json) -> Iterator[bytes]:
        yield from self._added({**done, **_emptied(done), "status": "in_progress"})
        item = self._items[done["id"]]
        delta = {**item.place, "delta": _text(done), **item.logprobs}
        yield self._event(f"{_TEXTS[item.kind]}.delta", delta)
        if item.kind == "reasoning":
            summary = {**item.summary_place, "delta": _text(done)}
            yield self._event(f"{_SUMMARY}_text.delta", summary)

    def _closed(self, item: _Item, done: Json) -> Iterator[bytes]:
        item.is_closed = True
        kind = f"{_TEXTS[item.kind]}.done"
        if item.kind == "function_call":
            arguments = {"name": done["name"], "arguments": done["arguments"]}
            yield self._event(kind, {**item.place, **arguments})
        else:
            yield self._event(kind, {**item.place, "text": _text(done), **item.logprobs})
            part = {**item.place, "part": done["content"][0]}
            yield self._event("response.content_part.done", part)
        if item.kind == "reasoning":
            self._thinking = None
            summary = {**item.summary_place, "text": _text(done)}
            yield self._event(f"{_SUMMARY}_text.done", summary)
            part = {**item.summary_place, "part": done["summary"][0]}
            yield self._event(f"{_SUMMARY}_part.done", part)
        closed = {"output_index": item.index, "item": done}
        yield self._event("response.output_item.done", closed)

    def _error(self, body: bytes) -> bytes:
        """Return an error in the event's own form and, for the SDKs to raise, as ``error``."""
        error = {"code": "server_error", "message": error_message(body), "param": None}
        return self._event("error", {**error, "error": {"type": "server_error", **error}})

    def _event(self, kind: str, members: Json) -> bytes:
        event = {"type": kind, **members, "sequence_number": self._next()}
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode(event))

    def _next(self) -> int:
        self._n_sent += 1
        return self._n_sent - 1


def _only_id(event: Json) -> Json:
    return {"response": {"id": event["response"]["id"]}}


def _text(item: Json) -> Any:
    return item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]


def _emptied(item: Json) -> Json:
    """Return what an item whose text is still to come has in place of it."""
    if item["type"] == "function_call":
        return {"arguments": ""}
    return {"content": []} | ({"summary": []} if item["type"] == "reasoning" else {})
