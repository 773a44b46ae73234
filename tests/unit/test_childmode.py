"""The events of a supervised llama-server, as b10434 and b11434 print them."""

import pytest

from kvsup.llama.childmode import ChildEvent, parse_event

STATE = b"cmd_child_to_router:state:"


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        (
            b'{"state":"loading","payload":{"stages":["a"],"current":"text_model","value":0.5}}',
            ChildEvent("loading", "text_model", 0.5),
        ),
        (
            b'{"state":"loading","payload":{"stage":"mmproj_model"}}',
            ChildEvent("loading", "mmproj_model", 0.0),
        ),
        (b'{"state":"ready","payload":{"id":"m","aliases":["m"],"tags":[]}}', ChildEvent("ready")),
        (b'{"state":"ready","payload":null}', ChildEvent("ready")),
        (b'{"state":"sleeping","payload":null}', ChildEvent("sleeping")),
        (b'{"state":"ready"}', ChildEvent("ready")),
    ],
)
def test_parse_event_of_a_state_line(payload: bytes, event: ChildEvent) -> None:
    """Captured lines; ``ready`` comes with and without a payload."""
    assert parse_event(STATE + payload) == event


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"I srv  llama_server: model loaded",
        STATE,
        STATE + b"{",
        STATE + b"[]",
        STATE + b'{"state":5}',
        STATE + b'{"state":"loading","payload":null}',
        b" " + STATE + b'{"state":"ready"}',
        b"cmd_router_to_child:exit",
    ],
)
def test_parse_event_of_any_other_line_is_none(line: bytes) -> None:
    """What is no event is a line of the log, never an error."""
    assert parse_event(line) is None
