"""Modelfiles: Ollama's grammar by cases (parser/parser.go, v0.17.4), and round trips."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsup.ollama.creation import DEAD, request_body, typed_parameters
from kvsup.ollama.modelfiles import (
    COMMANDS,
    ROLES,
    Modelfile,
    ModelfileError,
    lines,
    parse_modelfile,
)

WHOLE = """
# what it is built on
FROM llama3.2
  from ./mmproj.gguf
ADAPTER ./a.gguf
PARAMETER temperature 0.5
parameter stop "<|end|>"
Parameter   stop\t<stop>\t
TEMPLATE \"\"\"{{ if .System }}{{ .System }}
{{ end }}{{ .Prompt }}\"\"\"
SYSTEM You are "Mario".
LICENSE \"\"\"
one
\"\"\"
LICENSE two
MESSAGE user Hi # there
MESSAGE assistant \"Hi
back\"
RENDERER qwen3
PARSER qwen3
REQUIRES v0.14.0
DRAFT ./draft.gguf
"""


def test_every_command_is_read() -> None:
    """Case, edge blanks and comments do not matter; what may repeat is gathered."""
    assert parse_modelfile(WHOLE.encode()) == Modelfile(
        models=["llama3.2", "./mmproj.gguf"],
        adapters=["./a.gguf"],
        draft="./draft.gguf",
        template="{{ if .System }}{{ .System }}\n{{ end }}{{ .Prompt }}",
        system='You are "Mario".',
        renderer="qwen3",
        parser="qwen3",
        requires="v0.14.0",
        licenses=["\none\n", "two"],
        parameters=[("temperature", "0.5"), ("stop", "<|end|>"), ("stop", "<stop>")],
        messages=[("user", "Hi # there"), ("assistant", "Hi\nback")],
    )


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ("SYSTEM x", "x"),
        ("SYSTEM   x  y  ", "x  y"),
        ('SYSTEM "x"', "x"),
        ('SYSTEM " x "', " x "),
        ('SYSTEM ""', ""),
        ("SYSTEM ", ""),
        ('SYSTEM "a" b"', 'a" b'),
        ('SYSTEM a "b"', 'a "b"'),
        ('SYSTEM """a"""', "a"),
        ('SYSTEM """a""" b"""', 'a""" b'),
        ('SYSTEM """a\n\n# no comment\nSYSTEM b"""', "a\n\n# no comment\nSYSTEM b"),
        ('SYSTEM "a\nb"', "a\nb"),
        ("SYSTEM a\r\n", "a"),
        ('SYSTEM """a\r\nb"""\r\n', "a\r\nb"),
        ("SYSTEM a\u200db\u00a0c", "abc"),
        ("SYSTEM a\tb", "a\tb"),
        ("SYSTEM 日本語 🦙", "日本語 🦙"),
    ],
)
@pytest.mark.parametrize("end", ["", "\nFROM m", "\n\n\n# x\n FROM m\n"])
def test_argument_ends_with_its_line_or_its_quotes(text: str, system: str, end: str) -> None:
    """There are no escapes, and a quote inside of a line is a sign as any other."""
    before = "" if "FROM" in end else "FROM m\n"

    assert parse_modelfile(f"{before}{text}{end}".encode()).system == system


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FROM line"),
        ("# FROM m\n", "no FROM line"),
        ("PARAMETER a b\n", "no FROM line"),
        ("FROM m\nFRM x\n", "(line 2): command must be one of {commands}"),
        ("FROM m\n\n\nx\n", "(line 5): command must be one of {commands}"),
        ("FROM\n", "(line 2): command must be one of {commands}"),
        ("FROM:m\n", "(line 1): command must be one of {commands}"),
        ("FROM", "unexpected EOF"),
        ('FROM m\nSYSTEM "a', "unexpected EOF"),
        ('FROM m\nSYSTEM """a"', "unexpected EOF"),
        ("FROM m\nPARAMETER num_ctx\n", "unexpected EOF: num_ctx"),
        ("FROM m\nPARAMETER num-ctx 1\n", "unexpected EOF: num"),
        ("FROM m\nMESSAGE user\n", "unexpected EOF: user"),
        ("FROM m\nMESSAGE tool x\n", "(line 2): message role must be one of {roles}"),
        ("FROM m\nMESSAGE User x\n", "(line 2): message role must be one of {roles}"),
        ("FROM m\r\nMESSAGE tool x\n", "(line 3): message role must be one of {roles}"),
    ],
)
def test_wrong_file_is_told_in_ollamas_words(text: str, message: str) -> None:
    """With the line where there is one; CR and LF each end one."""
    commands = ", ".join(f'"{name}"' for name in COMMANDS[:-1]) + f', or "{COMMANDS[-1]}"'
    roles = '"system", "user", or "assistant"'

    with pytest.raises(ModelfileError) as told:
        parse_modelfile(text.encode())

    assert str(told.value) == message.format(commands=commands, roles=roles)


@pytest.mark.parametrize(
    "encoded",
    [
        b"\xef\xbb\xbfFROM m\n",
        codecs.BOM_UTF16_LE + "FROM m\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "FROM m\n".encode("utf-16-be"),
    ],
)
def test_file_may_be_utf_16(encoded: bytes) -> None:
    """As editors of Windows write it."""
    assert parse_modelfile(encoded).models == ["m"]


TEXTS = st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" \n\t"))


@given(system=TEXTS, license_text=TEXTS, message=TEXTS, role=st.sampled_from(ROLES))
def test_what_is_written_is_read_again(
    system: str, license_text: str, message: str, role: str
) -> None:
    """Whatever a text holds, but three quotes in a row, which no Modelfile can say at its end."""
    texts = [text.replace('"""', "''") for text in (system, license_text, message)]
    texts = [text.rstrip('"') for text in texts]
    written = (
        "\n".join(lines([("from", "m"), ("system", texts[0]), ("license", texts[1])]))
        + "\n"
        + next(lines([(f"message {role}", texts[2])])).replace(
            "MESSAGE " + role.upper(), f"MESSAGE {role}"
        )
    )

    file = parse_modelfile(written.encode())

    printable = ["".join(c for c in t if c in "\n\t" or c.isprintable()) for t in texts]
    assert file.system == printable[0]
    assert file.licenses == [printable[1]]
    assert file.messages == [(role, printable[2])]


def test_parameters_get_the_types_of_their_options() -> None:
    """Of several ``stop`` there is a list; what Ollama once had is named, and does nothing."""
    found, dead = typed_parameters(
        [
            ("temperature", "0.5"),
            ("num_ctx", "4096"),
            ("use_mmap", "F"),
            ("stop", "a"),
            ("stop", "b"),
            ("mirostat", "1"),
            ("kv_cache_type", "q8_0:q4_0"),
        ]
    )

    assert found == {
        "temperature": 0.5,
        "num_ctx": 4096,
        "use_mmap": False,
        "stop": ["a", "b"],
        "kv_cache_type": "q8_0:q4_0",
    }
    assert dead == ["mirostat"]
    assert "mirostat" in DEAD


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("num_ctx", "auto")], {"num_ctx_auto": True}),
        ([("num_ctx", "4096"), ("num_ctx", "auto")], {"num_ctx_auto": True}),
        ([("num_ctx", "auto"), ("num_ctx", "4096")], {"num_ctx": 4096}),
        ([("kv_cache_type", "auto")], {"kv_cache_type": "auto"}),
        ([("kv_cache_type", "q8_0")], {"kv_cache_type": "q8_0"}),
    ],
)
def test_parameters_of_kvsup_go_beside_ollamas(
    pairs: list[tuple[str, str]], expected: dict[str, object]
) -> None:
    """``num_ctx auto`` by a name that Ollama passes over; the last one wins."""
    assert typed_parameters(pairs)[0] == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("nonsense", "1", "unknown parameter 'nonsense'"),
        ("Temperature", "1", "unknown parameter 'Temperature'"),
        ("num_ctx", "4k", "invalid int value [4k]"),
        ("top_p", "high", "invalid float value [high]"),
        ("use_mmap", "yes", "invalid bool value [yes]"),
        ("kv_cache_type", "q8_0:q4_0:f16", "PARAMETER kv_cache_type q8_0:q4_0:f16: "),
    ],
)
def test_parameter_of_a_wrong_type_is_told(name: str, value: str, message: str) -> None:
    """In Ollama's words."""
    with pytest.raises(ModelfileError) as told:
        typed_parameters([(name, value)])

    assert str(told.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "version"), [("0.14.0", "0.14.0"), ("v1.2", "1.2"), ("1.0.0-rc1", "1.0.0-rc1")]
)
def test_requirement_is_a_version(text: str, version: str) -> None:
    """Its ``v`` goes; anything else is told."""
    file = Modelfile(models=["m"], requires=text)

    body, _ = request_body("x", file, base="m", files={}, adapters={}, drafts={})
    wrong = Modelfile(models=["m"], requires="new")

    assert body == {"model": "x", "from": "m", "requires": version}
    with pytest.raises(ModelfileError, match="valid semver"):
        request_body("x", wrong, base="m", files={}, adapters={}, drafts={})
