"""Errors in Anthropic's shape, as its SDKs read them."""

import json

import pytest

from kvsup.anthropic.errors import error_body, from_engine, last_event


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_error_type_follows_the_status(status: int, kind: str) -> None:
    """Ollama's table, with the id that the SDKs show in their messages."""
    body = json.loads(error_body("no", status, request_id="req_1"))

    assert body == {
        "type": "error",
        "error": {"type": kind, "message": "no"},
        "request_id": "req_1",
    }


def test_error_without_an_id_has_none() -> None:
    """Inside a stream the id is not known."""
    assert "request_id" not in json.loads(error_body("no", 500))


def test_error_of_the_engine_changes_its_shape() -> None:
    """llama-server answers in OpenAI's, whatever the route."""
    engine = b'{"error":{"code":500,"message":"no role","type":"server_error"}}'

    body = json.loads(from_engine(engine, 400, request_id="req_1"))

    assert body["error"] == {"type": "invalid_request_error", "message": "no role"}
    assert body["request_id"] == "req_1"


def test_error_of_a_prompt_that_is_too_long_has_anthropics_text() -> None:
    """Claude Code compacts the conversation when it reads ``prompt is too long``."""
    engine = (
        b'{"error":{"code":400,"message":"request (1030 tokens) exceeds the available context '
        b'size (512 tokens), try increasing it","type":"exceed_context_size_error",'
        b'"n_prompt_tokens":1030,"n_ctx":512}}'
    )

    message = json.loads(from_engine(engine, 400))["error"]["message"]

    assert message == "prompt is too long: 1030 tokens > 512 maximum"


def test_error_of_the_engine_that_is_no_json_becomes_the_message() -> None:
    """Whatever came is told, in the right shape."""
    assert json.loads(from_engine(b"\xff", 502))["error"]["type"] == "api_error"


def test_last_event_is_named_error() -> None:
    """The SDKs raise at the name of the event."""
    body = error_body("gone", 500)

    assert last_event(body) == b"event: error\ndata: " + body + b"\n\n"
