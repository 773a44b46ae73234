"""``/v1/audio/transcriptions`` as plain text.

llama-server knows only ``response_format=json`` (b11434: server-chat.cpp,
``convert_transcriptions_to_chatcmpl``; ran), Ollama also ``text`` (middleware/openai.go, 2026-08).
"""

import msgspec

from kvsup.errors import RequestError
from kvsup.openai.forms import text_fields

_FIELD = "response_format"


class _Transcript(msgspec.Struct, frozen=True):
    text: str


_transcript = msgspec.json.Decoder(_Transcript).decode


def asked_as_json(form: bytes, content_type: str) -> bytes | None:
    """Return ``form`` with JSON asked for in place of text, or None where it asks for no text.

    Args:
        form: a body of type ``multipart/form-data``.
        content_type: the header's value, with the boundary.

    Raises:
        RequestError: the form asks for a format that nothing here can make, or for text in pieces.
    """
    fields = text_fields(form, content_type)
    if _FIELD not in fields:
        return None
    place = fields[_FIELD]
    value = form[place]
    if value == b"json":
        return None
    if value != b"text":
        wanted = value.decode("utf-8", "replace")
        raise RequestError(
            f"Invalid value for '{_FIELD}': '{wanted}'. Supported values are: 'json' and 'text'."
        )
    if form[fields.get("stream", slice(0))] == b"true":
        raise RequestError(f"'{_FIELD}' must be 'json' where 'stream' is true.")
    view = memoryview(form)  # so that a sound of many MiB is copied once
    return b"".join((view[: place.start], b"json", view[place.stop :]))


class TextAnswer:
    """Makes plain text of an answer that is one JSON object; what is none passes as it came."""

    content_type = b"text/plain; charset=utf-8"

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """Keep ``data``; return nothing."""
        self._pieces.append(data)
        return b""

    def finish(self) -> bytes:
        """Return the text of the whole."""
        answer = b"".join(self._pieces)
        try:
            return _transcript(answer).text.encode()
        except msgspec.DecodeError:
            return answer
