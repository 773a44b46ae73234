"""llama-server's error bodies."""

import pytest

from kvsup.llama.wire import error_message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"code":400,"message":"too long","type":"x"}}', "too long"),
        (b'{"error":"plain"}', "plain"),
        (b'{"error":{"code":500}}', '{"error":{"code":500}}'),
        (b" File Not Found\n", "File Not Found"),
        (b"[1]", "[1]"),
        (b"\xff", "\ufffd"),
        (b"", "llama-server gave no reason"),
    ],
)
def test_error_message_any_body_gives_its_text(body: bytes, message: str) -> None:
    """The message is unwrapped where there is one; else the whole body is the message."""
    assert error_message(body) == message
