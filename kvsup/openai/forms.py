"""Bodies of type ``multipart/form-data``: where their fields stand, found without copying them.

They are read as llama-server does (b11434: vendor/cpp-httplib/httplib.cpp, ``FormDataParser``), so
that what is read here is what is served: lines end in CRLF, nothing stands behind a boundary, a
quote is not escaped. What it refuses ends the reading, and is left to it to refuse. So do bounds
that no client's form comes near: nothing but boundaries and headers may not hold up others.
"""

import re

_MAX_PARTS = 128
_MAX_HEAD_BYTES = 8 * 1024

_LINE_END = b"\r\n"
_BLANK_LINE = b"\r\n\r\n"
_DISPOSITION = re.compile(r"\r\ncontent-disposition:[ \t]*form-data(;[^\r\n]*)", re.IGNORECASE)
_PARAMETER = re.compile(r""";\s*([^\s=;"]+)\s*=\s*((?:"[^"]*"|[^";])*)""")


def is_form(content_type: str) -> bool:
    """Say whether a body of this type is a form; case does not count (RFC 9110, 8.3.1)."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def text_fields(form: bytes, content_type: str) -> dict[str, slice]:
    """Return where in ``form`` the content of each text field stands, by the field's name.

    Files are left out, and of several fields with one name all but the first. A form that is
    malformed has the fields in front of its fault; reading takes one pass over its bytes.

    Args:
        form: the body.
        content_type: the header's value, with the boundary.
    """
    fields: dict[str, slice] = {}
    boundary = _parameters(content_type).get("boundary", "").encode("latin-1", "replace")
    first = form.find(b"--" + boundary + _LINE_END)
    if not boundary or first < 0:
        return fields
    delimiter = b"\r\n--" + boundary
    at = first + len(b"--" + boundary)
    for _ in range(_MAX_PARTS):
        head_end = form.find(_BLANK_LINE, at, at + _MAX_HEAD_BYTES)
        if head_end < 0 or not form.startswith(_LINE_END, at):
            break
        start = head_end + len(_BLANK_LINE)
        end = form.find(delimiter, start)
        if end < 0:
            break
        name = _text_name(form[at:head_end].decode("utf-8", "replace"))
        if name is not None:
            fields.setdefault(name, slice(start, end))
        at = end + len(delimiter)
    return fields


def _text_name(head: str) -> str | None:
    """Return the name of the field that a part's headers announce; None for a file's."""
    disposition = _DISPOSITION.search(head)
    given = _parameters(disposition[1]) if disposition else {}
    is_file = given.get("filename") or given.get("filename*")
    return None if is_file else given.get("name")


def _parameters(header: str) -> dict[str, str]:
    """Return the parameters behind the first semicolon of a header, without their quotes."""
    return {
        name.lower(): value.strip().removeprefix('"').removesuffix('"')
        for name, value in _PARAMETER.findall(header)
    }
