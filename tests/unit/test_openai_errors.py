"""Errors in OpenAI's shape, as its SDKs read them."""

import json

import pytest

from kvsup.mending import Fault
from kvsup.openai import errors


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, "invalid_request_error", None),
        (401, "authentication_error", "invalid_api_key"),
        (403, "permission_error", "insufficient_permissions"),
        (404, "not_found_error", None),
        (413, "invalid_request_error", None),
        (429, "rate_limit_error", None),
        (500, "api_error", None),
        (503, "unavailable_error", None),
    ],
)
def test_error_type_follows_the_status(status: int, kind: str, code: str | None) -> None:
    """The SDKs choose their class by the status, people read the type."""
    body = json.loads(errors.error_body("no", status))

    assert body == {"error": {"message": "no", "type": kind, "param": None, "code": code}}


@pytest.mark.parametrize(
    ("error", "param", "code"),
    [
        (errors.missing("messages"), "messages", "missing_required_parameter"),
        (errors.empty("messages"), "messages", "invalid_value"),
        (errors.wrong(Fault("tools[0].type", "a string", "null")), "tools[0].type", "invalid_type"),
        (errors.wrong(Fault("n", "Integer is too large")), "n", "invalid_value"),
        (errors.wrong(Fault("", "an object", "an array")), None, None),
    ],
)
def test_error_about_a_parameter_names_it(
    error: Exception, param: str | None, code: str | None
) -> None:
    """``error.param`` and ``error.code`` of the SDKs are told by the text."""
    body = json.loads(errors.error_body(str(error), 400))["error"]

    assert (body["param"], body["code"]) == (param, code)


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (404, "model 'x' not found", "model_not_found"),
        (404, "page not found", None),
        (503, "model 'x' does not fit", None),
    ],
)
def test_error_about_a_missing_model_has_openais_code(
    status: int, message: str, code: str | None
) -> None:
    """Clients that fall back to another model look for the code."""
    body = json.loads(errors.error_body(message, status))["error"]

    assert body["code"] == code


def test_error_of_the_engine_has_no_number_as_code() -> None:
    """The status decides the type, also where llama-server's own says otherwise."""
    engine = b'{"error":{"code":500,"message":"no role","type":"server_error"}}'

    body = json.loads(errors.from_engine(engine, 400))

    assert body == {
        "error": {
            "message": "no role",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }


def test_error_of_a_prompt_that_is_too_long_has_openais_code_and_the_counts() -> None:
    """Agents shorten the conversation when they see ``context_length_exceeded``."""
    engine = (
        b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error",'
        b'"n_prompt_tokens":1030,"n_ctx":512}}'
    )

    body = json.loads(errors.from_engine(engine, 400))["error"]

    assert body["code"] == "context_length_exceeded"
    assert (body["n_prompt_tokens"], body["n_ctx"]) == (1030, 512)


@pytest.mark.parametrize("text", [b"Internal Server Error", b"[]", b'"x"', b"\xff"])
def test_error_of_the_engine_that_is_no_object_becomes_the_message(text: bytes) -> None:
    """Whatever came is told, in the right shape."""
    body = json.loads(errors.from_engine(text, 502))["error"]

    assert body["type"] == "api_error"
    assert body["message"]


def test_last_event_is_one_event_with_the_error() -> None:
    """The SDKs raise at an event that has ``error``."""
    body = errors.error_body("gone", 500)

    assert errors.last_event(body) == b"data: " + body + b"\n\n"
