"""The head of a request, judged as a whole before anything reads it.

A head that two readers could take for two requests is refused, and so is one that leaves a doubt
about the host that it is for: smuggling and DNS rebinding live on such doubts (RFC 9112, sections
2.2, 3.2, 5.1, 6.1 and 6.3). llhttp, below httptools 0.9, finds most of them by itself; here stands
what it lets pass (two Host fields, another host in the target, a coding before ``chunked``,
HTTP/0.9 and 2.0, a line feed alone) and what it cannot say in words.
"""

import re
from dataclasses import dataclass

MAX_HEAD_BYTES = 64 << 10
"""A longer head is refused; browsers send every cookie of localhost, whatever its port."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELD_TEXT = _TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*"
_LINE = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/1\.([01])" % _TOKEN)
_FIELDS = re.compile(rb"(?:\r\n%b)*" % _FIELD_TEXT)
_FIELD = re.compile(_FIELD_TEXT)
_DECIDING = re.compile(
    rb"\r\n(host|content-length|transfer-encoding):[ \t]*([^\r]*)", re.IGNORECASE
)
"""The fields that say where a request ends and for whom it is."""

_ABSOLUTE = re.compile(rb"https?://([^/?]*)(?=/)", re.IGNORECASE)
_VERSION = re.compile(rb"[^\r\n]* HTTP/(\d+(?:\.\d+)?)")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"\d{1,18}")


@dataclass(frozen=True, slots=True)
class Head:
    """What the server must know of a head to read on."""

    path: str
    """As it was sent."""
    body_bytes: int | None
    """How long the body is; None where it comes in chunks that say so."""


class BadHead(Exception):  # noqa: N818 - it says what is
    """A head that is refused; its text says why."""

    def __init__(self, text: str, *, status: int = 400, path: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.path = path
        """As it was sent; empty where it cannot be told."""


def read_head(head: bytes) -> Head:
    """Return what ``head`` says, given without the empty line behind it.

    Raises:
        BadHead: it is malformed, or says two things at once.
    """
    line = _LINE.match(head)
    if line is None or not _FIELDS.fullmatch(head, line.end()):
        raise _explained(head)
    method, target, minor_version = line.groups()
    decisive: dict[bytes, list[bytes]] = {}
    for name, value in _DECIDING.findall(head):
        decisive.setdefault(name.lower(), []).append(value.rstrip())
    for name, values in decisive.items():
        if len(values) > 1:
            raise BadHead(f"it has {len(values)} fields {name.decode()}", path=_path_of(target))
    path = _checked_target(method, target, host=decisive.get(b"host", [None])[0])
    if minor_version == b"1" and b"host" not in decisive:
        raise BadHead("it has no field host", path=path)
    try:
        return Head(path, _body_bytes(decisive, may_be_chunked=minor_version == b"1"))
    except BadHead as error:
        error.path = path
        raise


def has_bare_line_feed(head: bytes, *, start: int = 0) -> bool:
    """Say whether a head, or the part of one, has half a line end from ``start`` on."""
    return _BARE_LINE_FEED.search(head, start) is not None


def _checked_target(method: bytes, target: bytes, *, host: bytes | None) -> str:
    """Return the path of a request's target, which must leave no doubt for whom it is."""
    if method == b"CONNECT":
        raise BadHead("it asks for a tunnel; kvsup is no proxy", path=_path_of(target))
    if b"#" in target:
        raise BadHead("its target has a fragment", path=_path_of(target))
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return _path_of(target)
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        raise BadHead(f"its target {target[:100].decode()!r} is no path; kvsup is no proxy")
    if host is None or absolute[1].lower() != host.lower():
        raise BadHead("its target names another host than its field host; kvsup is no proxy")
    return _path_of(target[absolute.end() :])


def _path_of(target: bytes) -> str:
    return target.partition(b"?")[0].decode("ascii")


def _body_bytes(decisive: dict[bytes, list[bytes]], *, may_be_chunked: bool) -> int | None:
    coding, length = decisive.get(b"transfer-encoding"), decisive.get(b"content-length")
    if coding is None:
        if length is None:
            return 0
        if not _LENGTH.fullmatch(length[0]):
            raise BadHead("its content-length is no length")
        return int(length[0])
    if length is not None:
        raise BadHead("it has a content-length and a transfer-encoding")
    if coding[0].lower() != b"chunked":
        raise BadHead("its transfer-encoding is not chunked; compress with content-encoding")
    if not may_be_chunked:
        raise BadHead("HTTP/1.0 has no transfer-encoding")
    return None


def _explained(head: bytes) -> BadHead:
    """Return what is wrong with a head that is no head."""
    if has_bare_line_feed(head) or head.count(b"\r") != head.count(b"\r\n"):
        return BadHead("a line does not end in CR LF")
    first, *fields = head.split(b"\r\n")
    version = _VERSION.fullmatch(first)
    if version and not version[1].startswith(b"1."):
        return BadHead(f"HTTP/{version[1].decode()} is not spoken here", status=505)
    line = _LINE.fullmatch(first)
    if line is None:
        return BadHead("its first line is not METHOD TARGET HTTP/1.1")
    field = next(field for field in fields if not _FIELD.fullmatch(field))
    if field[:1] in {b" ", b"\t"}:
        text = "a field goes on in a second line"
    elif re.match(rb"%b[ \t]+:" % _TOKEN, field):
        text = "there is a blank before the colon of a field"
    elif re.match(rb"%b:" % _TOKEN, field):
        text = "a field has a control character"
    else:
        text = "a field has no name"
    return BadHead(text, path=_path_of(line[2]))
