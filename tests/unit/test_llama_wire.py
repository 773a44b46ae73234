"""What is read of llama-server's bytes without a decoder: errors, and the frame of an event."""

import pytest

from kvsup.llama.wire import Frame, error_message


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


EVENT = b'{"choices":[{"delta":{"content":"Hi"}}],"created":1}'


def _framed(*texts: bytes) -> bytes:
    events = [b"data: " + EVENT.replace(b"Hi", text) + b"\n\n" for text in texts]
    return b"".join(events)


def _frame() -> Frame:
    frame = Frame.around(EVENT, b"content", b'"Hi"')
    assert frame is not None
    return frame


@pytest.mark.parametrize("text", [b"a", b" \xc3\xa9<&", b"\\n", b'\\"', b"\\\\", b"\\u001b\\/"])
def test_frame_event_like_the_last_gives_its_text(text: bytes) -> None:
    """Texts are given as they came, escapes and all, however many events come together."""
    assert _frame().texts(_framed(text)) == [text]
    assert _frame().texts(_framed(text, b"x", text)) == [text, b"x", text]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'"',
        b"\\",
        b"\\q",
        b"\\u001g",
        b"\\ud800",
        b"\n",
        b"\x01",
        b'a","x":"b',
        b"a\n\ndata: b",
    ],
)
def test_frame_text_that_is_no_json_gives_nothing(text: bytes) -> None:
    """Whatever is not one string between its quotes is left to the decoder, as is no text."""
    assert _frame().texts(_framed(text)) is None
    assert _frame().texts(_framed(b"x", text)) is None
    assert _frame().texts(_framed(text, b"x")) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        _framed(b"x")[:-1],
        _framed(b"x")[1:],
        b": ping\n\n" + _framed(b"x"),
        _framed(b"x") + b"data: [DONE]\n\n",
        _framed(b"x").replace(b'"created":1', b'"created":2'),
        _framed(b"x").replace(b"content", b"reasoning_content"),
        _framed(b"x").replace(b'"delta"', b'"finish_reason":"stop","delta"'),
        _framed(b"").replace(b'""', b'"'),
    ],
)
def test_frame_other_bytes_give_nothing(data: bytes) -> None:
    """One byte of difference is enough."""
    assert _frame().texts(data) is None


@pytest.mark.parametrize(
    "payload",
    [
        EVENT.replace(b'"Hi"', b'"Ho"'),
        EVENT.replace(b'"Hi"', b' "Hi"'),
        EVENT.replace(b'"created"', b'"content"'),
        EVENT.replace(b'"choices"', b'"content":"Hi","choices"'),
        EVENT.replace(b",", b",\n"),
    ],
)
def test_frame_of_an_unclear_event_is_none(payload: bytes) -> None:
    """The text must stand where it was read, and nowhere else; the event must be of one line."""
    assert Frame.around(payload, b"content", b'"Hi"') is None
