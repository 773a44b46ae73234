"""Where the fields of a form stand."""

import tracemalloc

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.openai.forms import text_fields

FORM = "multipart/form-data; boundary=b"
HEAD = b'content-disposition: form-data; name="x"'


def _read(form: bytes, content_type: str = FORM) -> dict[str, bytes]:
    return {name: form[place] for name, place in text_fields(form, content_type).items()}


def _part(head: bytes, content: bytes = b"1") -> bytes:
    """Return a whole form of one part."""
    return b"--b\r\n" + head + b"\r\n\r\n" + content + b"\r\n--b--\r\n"


def test_fields_of_a_clients_form_are_found_and_its_file_is_not() -> None:
    """The sound may hold anything."""
    sound = b'RIFF\r\n\r\n--other\r\nContent-Disposition: form-data; name="model"\r\n\r\nno\r\n'
    request = httpx.Request(
        "POST",
        "http://x",
        data={"model": "ear", "language": "", "prompt": "gr\u00fc\u00df\r\n\r\nGott"},
        files={"file": ("model", sound, "audio/wav")},
    )

    fields = _read(request.read(), request.headers["content-type"])

    assert fields == {
        "model": b"ear",
        "language": b"",
        "prompt": "gr\u00fc\u00df\r\n\r\nGott".encode(),
    }


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Disposition: form-data; name=x",
        b'CONTENT-DISPOSITION:FORM-DATA;NAME="x"',
        b'content-disposition: form-data;\t name = "x" ; other="; name=y"',
        b'content-disposition: form-data; other="; name=y"; name="x"',
        b'content-disposition: form-data; filename=""; name="x"',
        b'Content-Type: text/plain; name="y"\r\n' + HEAD,
        HEAD + b"\r\nContent-Type: text/plain; charset=utf-8",
        b"X-Other: gr\xf6\xdfe\r\n" + HEAD,
    ],
)
def test_name_is_read_however_it_is_written(head: bytes) -> None:
    """Case, blanks, quotes, order and other headers do not count."""
    assert _read(_part(head)) == {"x": b"1"}


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b'; filename="a.wav"',
        HEAD + b"; filename*=UTF-8''gr%C3%BC%C3%9Fe.wav",
        b'content-disposition: form-data; filename="a.wav; name=x"; name="x"',
        b'content-disposition: form-data; filename="x"',
        b'content-disposition: attachment; name="x"',
        b'content-disposition: form-data; filename*="name=x"',
        b'x-content-disposition: form-data; name="x"',
        b"content-disposition: form-data",
        b"Content-Type: text/plain",
        b"",
    ],
)
def test_part_that_is_a_file_or_has_no_name_is_no_text_field(head: bytes) -> None:
    """As llama-server sorts them: what has the name of a file is a file."""
    form = b"--b\r\n" + head + b"\r\n\r\n1\r\n" + _part(HEAD.replace(b"x", b"z"), b"2")

    assert _read(form) == {"z": b"2"}


@pytest.mark.parametrize(
    ("boundary", "content_type"),
    [
        (b"b", 'multipart/form-data; boundary="b"'),
        (b"b", "multipart/form-data; charset=utf-8;BOUNDARY=b ; x=y"),
        (b"a:b; c=d", 'multipart/form-data; boundary="a:b; c=d"'),
        (b"--b", "multipart/form-data; boundary=--b"),
        (b"\xe9", "multipart/form-data; boundary=\xe9"),
    ],
)
def test_boundary_is_read_however_it_is_written(boundary: bytes, content_type: str) -> None:
    """Also in quotes, where it may hold the header's own signs."""
    form = _part(HEAD).replace(b"--b", b"--" + boundary)

    assert _read(form, content_type) == {"x": b"1"}


@pytest.mark.parametrize("preamble", [b"\r\n", b"To whom it may concern\r\n", b"--c\r\n--b--\r\n"])
def test_text_around_the_parts_is_nothing(preamble: bytes) -> None:
    """What precedes the first boundary and what follows the last one."""
    epilogue = b"--b\r\n" + HEAD.replace(b"x", b"y") + b"\r\n\r\n2\r\n--b--\r\n"

    assert _read(preamble + _part(HEAD) + epilogue) == {"x": b"1"}


def test_first_of_several_fields_with_a_name_is_taken() -> None:
    """As Go's ``FormValue`` does, and so Ollama."""
    form = b"--b\r\n" + HEAD + b"\r\n\r\n1\r\n" + _part(HEAD, b"2")

    assert _read(form) == {"x": b"1"}


WHOLE = b"--b\r\n" + HEAD + b"\r\n\r\n1\r\n"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (WHOLE, {}),
        (WHOLE + b"--b", {"x": b"1"}),
        (WHOLE + b"--b\r\n" + HEAD.replace(b"x", b"y") + b"\r\n\r\n2", {"x": b"1"}),
        (WHOLE + b"--bye\r\n" + HEAD.replace(b"x", b"y") + b"\r\n\r\n2\r\n--b--", {"x": b"1"}),
        (WHOLE + b"--b \r\n" + HEAD.replace(b"x", b"y") + b"\r\n\r\n2\r\n--b--", {"x": b"1"}),
        (b"--b\r\n" + HEAD, {}),
        (_part(HEAD).replace(b"\r\n", b"\n"), {}),
        (_part(HEAD).replace(b"\r\n", b"\r"), {}),
        (b"--b\r\nx-filler: " + bytes(20_000) + b"\r\n" + WHOLE.removeprefix(b"--b\r\n"), {}),
        (b"--b", {}),
        (b"", {}),
    ],
)
def test_malformed_form_has_the_fields_in_front_of_its_fault(
    form: bytes, expected: dict[str, bytes]
) -> None:
    """llama-server refuses each of these (b11434), and says so."""
    assert _read(form) == expected


@pytest.mark.parametrize("content_type", ["", "multipart/form-data", FORM[:-1], f'{FORM[:-1]}"'])
def test_form_without_a_boundary_has_no_fields(content_type: str) -> None:
    """None could be told from its content."""
    assert _read(_part(HEAD), content_type) == {}
    assert _read(_part(HEAD).replace(b"--b", b"--"), content_type) == {}


def test_number_of_parts_is_bounded() -> None:
    """A request may not be made of nothing but boundaries."""
    fields = b"".join(
        b'--b\r\ncontent-disposition: form-data; name="%d"\r\n\r\n\r\n' % i for i in range(200)
    )

    assert list(_read(fields + b"--b--\r\n")) == [str(i) for i in range(128)]


def test_large_file_is_not_copied() -> None:
    """The parts are found where they are: an audio file has tens of MiB."""
    file = HEAD.replace(b'"x"', b'"file"; filename="a.wav"')
    form = b"--b\r\n" + file + b"\r\n\r\n" + bytes(8 << 20) + b"\r\n" + _part(HEAD)

    tracemalloc.start()
    try:
        fields = text_fields(form, FORM)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert form[fields["x"]] == b"1"
    assert peak_bytes < 1 << 20


@given(
    st.lists(st.sampled_from([b"--b", b"\r\n", b"--", HEAD, b"\r\n\r\n", b'"', b";", b"\xff"])),
    st.text(max_size=20),
)
def test_no_form_makes_it_fail(pieces: list[bytes], boundary: str) -> None:
    """What was found lies within the form."""
    form = b"".join(pieces)

    for content_type in (FORM, FORM[:-1] + boundary):
        for place in text_fields(form, content_type).values():
            assert 0 <= place.start <= place.stop <= len(form)
