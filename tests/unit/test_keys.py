"""API keys: what a key file may hold, and which key a token is."""

import hashlib
import textwrap

import pytest
import tomli

from kvsup.decode import Source
from kvsup.keys import (
    MIN_KEY_CHARACTERS,
    KeyRing,
    Scope,
    decode_keys,
    is_sendable,
    plain_manage_key,
)

LAPTOP = "laptop-0123456789abcdef"
ADMIN = "admin-0123456789abcdef"
GOOD = f"""\
[laptop]
key = "{LAPTOP}"

[admin]
sha256 = "{hashlib.sha256(ADMIN.encode()).hexdigest().upper()}"
scope = "manage"
priority = -2
"""
MEND = 'write key = "…" with the output of: openssl rand -hex 24'


def _source(text: str) -> Source:
    text = textwrap.dedent(text)
    return Source("keys.toml", tomli.loads(text), text)


def _ring(text: str) -> KeyRing:
    ring, problems = decode_keys(_source(text))
    assert problems == []
    return ring


def _problems(text: str) -> list[str]:
    return [str(problem) for problem in decode_keys(_source(text))[1]]


@pytest.mark.parametrize(
    ("token", "scope"),
    [
        (LAPTOP, Scope.INFER),
        (ADMIN, Scope.MANAGE),
        (LAPTOP.upper(), None),
        (LAPTOP[:-1], None),
        (f"{LAPTOP} ", None),
        ("laptop", None),
        ("schlüssel", None),
        ("", None),
    ],
)
def test_scope_of_a_token_is_that_of_the_whole_key(token: str, scope: Scope | None) -> None:
    """A key is known by every one of its characters, whether the file has it or its SHA-256."""
    key = _ring(GOOD).key_of(token)

    assert (key and key.scope) is scope


def test_priority_of_a_key_is_what_its_table_says() -> None:
    """Without one it is that of a request without a key."""
    assert [key.priority for key in _ring(GOOD).keys] == [0, -2]


def test_scope_of_a_token_on_an_empty_ring_is_none() -> None:
    """No keys let nobody in."""
    assert KeyRing().key_of(LAPTOP) is None


def test_scope_manage_includes_infer() -> None:
    """A request that needs one scope takes a key of a greater one."""
    assert Scope.INFER < Scope.MANAGE


def test_key_ring_shown_in_full_gives_no_key_away() -> None:
    """What is logged or raised by accident holds names and scopes only."""
    ring = _ring(GOOD)

    shown = f"{ring!r} {ring}"

    assert "laptop" in shown
    for secret in (LAPTOP, ADMIN):
        digest = hashlib.sha256(secret.encode())
        assert secret not in shown
        assert digest.hexdigest() not in shown
        assert repr(digest.digest()) not in shown


def test_decode_of_a_wrong_file_reports_every_problem_with_its_line() -> None:
    """Nobody has to mend a file one error at a time, and nothing that may be a key is told."""
    text = f"""\
        loose-secret-0123456789 = "x"

        [short]
        key = "shorter-than-16"
        scope = "admin-secret-0123456789"

        [both]
        key = "{LAPTOP}"
        sha256 = "{"0" * 64}"

        [none]
        scope = "infer"

        [blank]
        key = "with a blank in the middle"

        [number]
        key = 1234567890123456789

        [digest]
        sha256 = "not-a-digest-secret-0123456789"
        kee = "secret-0123456789"

        [first]
        key = "{ADMIN}"
        priority = true
    """

    problems = _problems(text)

    assert problems == [
        f"keys.toml:1: is no table; write [NAME], and in it {MEND}",
        f"keys.toml:4: short.key: is shorter than {MIN_KEY_CHARACTERS} characters; {MEND}",
        "keys.toml:5: short.scope: is no scope; write infer or manage",
        "keys.toml:7: both: has a key and a sha256; drop one of them",
        f"keys.toml:11: none: has no key; {MEND}",
        f"keys.toml:15: blank.key: is no text of visible ASCII characters without blanks; {MEND}",
        f"keys.toml:18: number.key: is no text of visible ASCII characters without blanks; {MEND}",
        "keys.toml:22: digest.kee: unknown key; known keys: key, sha256, scope, priority",
        "keys.toml:21: digest.sha256: is no SHA-256; write its 64 hexadecimal digits",
        "keys.toml:26: first.priority: is no priority; write a whole number from -10 to 10",
    ]
    assert "secret" not in "".join(problems)


@pytest.mark.parametrize(
    "second", [f'key = "{LAPTOP}"', f'sha256 = "{hashlib.sha256(LAPTOP.encode()).hexdigest()}"']
)
def test_decode_of_the_same_key_twice_is_a_problem(second: str) -> None:
    """Which scope it has would be a matter of luck."""
    problems = _problems(f'[one]\nkey = "{LAPTOP}"\n[two]\n{second}\nscope = "manage"\n')

    assert problems == ["keys.toml:3: two: has the same key as one; write another"]


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_decode_of_an_empty_file_is_a_problem(text: str) -> None:
    """It would let nobody in, which nobody means."""
    assert _problems(text) == [f"keys.toml: holds no key; write [NAME], and in it {MEND}"]


def test_plain_manage_key_is_the_first_that_is_written_out() -> None:
    """A key of scope infer or a SHA-256 is none that the command line could send."""
    second = f'{GOOD}[second]\nkey = "second-0123456789"\nscope = "manage"\n'

    assert plain_manage_key(_source(GOOD)) is None
    assert plain_manage_key(_source(second)) == "second-0123456789"


def test_plain_manage_key_of_a_wrong_file_is_one_that_is_right() -> None:
    """Who reloads a file with a slip in it gets in, and is told of the slip."""
    wrong = 'loose = 1\n[a]\nkey = 5\nscope = "manage"\n[b]\nkey = "ä"\nscope = "manage"\n'

    assert plain_manage_key(_source(wrong)) is None
    assert plain_manage_key(_source(f'{wrong}[c]\nkey = "{ADMIN}"\nscope = "manage"\n')) == ADMIN


@pytest.mark.parametrize(
    ("key", "sendable"), [("!~Az09", True), ("a b", False), ("a\n", False), ("ä", False)]
)
def test_sendable_key_is_visible_ascii(key: str, sendable: bool) -> None:  # noqa: FBT001
    """Nothing else survives in a header."""
    assert is_sendable(key) is sendable
