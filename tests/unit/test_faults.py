"""Errors of llama-server with status 500 that are about the request."""

import pytest

from kvsup.llama.faults import is_callers_fault

JINJA = (
    "\n------------\nWhile executing CallExpression at line 85, column 32 in source:\n"
    "...first %}↵            {{- raise_exception('System message must be at the beginnin...\n"
    "                                           ^\n"
    "Error: Jinja Exception: System message must be at the beginning."
)

UNSUPPORTED = (
    "input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
)
TOO_LARGE = (
    "input (121 tokens) is too large to process. "
    "increase the physical batch size (current batch size: 64)"
)


@pytest.mark.parametrize(
    "message",
    [
        'Failed to parse messages: Missing \'role\' in message: {"content":"hi"}',
        "Failed to parse messages: [json.exception.out_of_range.403] key 'text' not found",
        'Failed to parse tools: Unsupported tool type: {"type":"x"}; tools = []',
        "Failed to parse tool call arguments as JSON: [json.exception.parse_error.101] parse error",
        "Unknown reasoning format: blah",
        "error: cannot make GET request: Could not establish connection",
        "vector::_M_range_check: __n (which is 18446744073709551615) >= this->size()",
        "vector::_M_default_append",
        "Cannot use both json_schema and grammar",
        f"image {UNSUPPORTED}",
        f"audio {UNSUPPORTED}",
        f"video {UNSUPPORTED}",
        "Multimodal data provided, but model does not support multimodal requests.",
        "'messages' is required",
        '"prompt" must not be empty',
        "[json.exception.type_error.302] type must be string, but is null",
        TOO_LARGE,
        "tools param requires --jinja flag",
        JINJA,
    ],
)
def test_error_about_the_request_is_the_callers(message: str) -> None:
    """Each was got with status 500 from a real llama-server, b10434 or b11434."""
    assert is_callers_fault(message)


@pytest.mark.parametrize(
    "message",
    [
        "Context size has been exceeded.",
        "The model produced output that does not match the expected peg-native format",
        "[json.exception.type_error.316] invalid UTF-8 byte at index 0: 0xFF",
        "Invalid input batch.",
        "Server tokens state is too large",
        "unknown error",
        "",
    ],
)
def test_error_about_the_server_is_not_the_callers(message: str) -> None:
    """The same request can succeed another time: clients try it again."""
    assert not is_callers_fault(message)
