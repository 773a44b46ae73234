"""llama-server's supervised-child protocol: state events on its stdout, one command on its stdin.

With ``LLAMA_SERVER_ROUTER_PORT`` in its environment a llama-server with a model prints
``cmd_child_to_router:state:{…}`` lines on stdout and reads stdin once it is ready; the end of stdin
ends it, even if its parent died without a word (tools/server/server-models.cpp, tried on b10434 and
b11434). SIGTERM alone never ends it then: the thread that reads stdin is joined.
"""

from dataclasses import dataclass

import msgspec

ENVIRONMENT = {"LLAMA_SERVER_ROUTER_PORT": "1"}
"""What switches the protocol on; the value is not used by a child. Older builds ignore it."""

EXIT_LINE = b"cmd_router_to_child:exit\n"
"""Ends a ready child with code 0 in some 20 ms, if no connection is open (b11434)."""

EVENT_MARK = b"cmd_child_to_router:state:"
"""Begins each line that is an event."""


@dataclass(frozen=True, slots=True)
class ChildEvent:
    """One state event: ``loading`` with a stage and how far it is, ``ready``, or ``sleeping``."""

    state: str
    stage: str = ""
    progress: float = 0.0
    """From 0 to 1; only for ``loading``."""


class _Payload(msgspec.Struct):
    current: str = ""
    stage: str = ""
    value: float = 0.0


class _Event(msgspec.Struct):
    state: str
    payload: msgspec.Raw = msgspec.Raw(b"null")


def parse_event(line: bytes) -> ChildEvent | None:
    """Return the event of a stdout line, or None for any other line."""
    if not line.startswith(EVENT_MARK):
        return None
    try:
        event = msgspec.json.decode(line[len(EVENT_MARK) :], type=_Event)
        if event.state != "loading":
            return ChildEvent(event.state)
        payload = msgspec.json.decode(event.payload, type=_Payload)
    except msgspec.DecodeError:
        return None
    return ChildEvent("loading", payload.current or payload.stage, payload.value)
