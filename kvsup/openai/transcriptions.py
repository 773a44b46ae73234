"""``/v1/audio/transcriptions`` as plain text.

llama-server knows only ``response_format=json`` (b11434: server-chat.cpp,
``convert_transcriptions_to_chatcmpl``; ran), Ollama also ``text`` (middleware/openai.go, 2026-08).
"""

from email.message import Message
from email.parser import BytesHeaderParser

import msgspec

from kvsup.errors import RequestError

_FIELD = "response_format"
_BLANK_LINE = b"\r\n\r\n"


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
    boundary = _boundary(content_type)
    if not boundary or _FIELD.encode() not in form:
        return None
    delimiter = b"\r\n--" + boundary
    parts = (b"\r\n" + form).split(delimiter)
    places = {_name(part): index for index, part in enumerate(parts)}
    if _FIELD not in places:
        return None
    place = places[_FIELD]
    head, _, value = parts[place].partition(_BLANK_LINE)
    if value == b"json":
        return None
    if value != b"text":
        wanted = value.decode("utf-8", "replace")
        raise RequestError(
            f"Invalid value for '{_FIELD}': '{wanted}'. Supported values are: 'json' and 'text'."
        )
    if "stream" in places and parts[places["stream"]].endswith(_BLANK_LINE + b"true"):
        raise RequestError(f"'{_FIELD}' must be 'json' where 'stream' is true.")
    parts[place] = head + _BLANK_LINE + b"json"
    return delimiter.join(parts).removeprefix(b"\r\n")


def _boundary(content_type: str) -> bytes:
    header = Message()
    header["content-type"] = content_type
    return (header.get_boundary() or "").encode("latin-1", "replace")


def _name(part: bytes) -> object:
    """Return the name of a part's field, None where it has none."""
    head = part[: part.find(_BLANK_LINE)].partition(b"\r\n")[2]
    return BytesHeaderParser().parsebytes(head).get_param("name", header="content-disposition")


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
