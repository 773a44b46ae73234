"""Modelfiles, as Ollama reads and writes them (parser/parser.go, v0.17.4).

``COMMAND ARGUMENTS`` a line; arguments in quotes, one or three, may have several lines.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kvsup.errors import RequestError

COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter",
    "message", "requires",
)  # fmt: skip
ROLES = ("system", "user", "assistant")

_THREE = '"""'
_WORD = re.compile(r"[A-Za-z]+", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_END = re.compile(r"[\r\n]")
_BLANKS = " \t"


class ModelfileError(RequestError):
    """A Modelfile is wrong."""


@dataclass(slots=True)
class Modelfile:
    """What a Modelfile says; where a command may come several times and one counts, the last."""

    models: list[str] = field(default_factory=list)
    """Of ``FROM``: names of models, or paths."""
    adapters: list[str] = field(default_factory=list)
    draft: str = ""
    template: str = ""
    system: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    licenses: list[str] = field(default_factory=list)
    parameters: list[tuple[str, str]] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    """Role and text."""


def parse_modelfile(data: bytes) -> Modelfile:
    """Return what a Modelfile says.

    Raises:
        ModelfileError: it is wrong; the message has the line where there is one.
    """
    file = Modelfile()
    for name, argument in _Reading(_text(data)).commands():
        match name:
            case "from":
                file.models.append(argument)
            case "adapter":
                file.adapters.append(argument)
            case "license":
                file.licenses.append(argument)
            case "message":
                role, _, text = argument.partition(" ")
                file.messages.append((role, text))
            case "parameter":
                key, _, value = argument.partition(" ")
                file.parameters.append((key, value))
            case _:
                setattr(file, name, argument)
    if not file.models:
        raise ModelfileError("no FROM line")
    return file


def written(value: str) -> str:
    """Return an argument as a Modelfile has it: in quotes where it would be read otherwise."""
    is_plain = value == value.strip() and not value.startswith('"')
    if is_plain and not _END.search(value):
        return value
    return f"{_THREE}{value}{_THREE}" if '"' in value else f'"{value}"'


def lines(commands: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of a Modelfile with these commands and arguments."""
    for name, argument in commands:
        yield f"{name.upper()} {written(argument)}"


def _text(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")


class _Reading:
    """One pass over the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield each command in lower case with its argument; raises ``ModelfileError``."""
        while self._skip_to_command():
            name = self._word().lower()
            if not self._peek():
                raise ModelfileError("unexpected EOF")
            if name not in COMMANDS or self._peek() not in _BLANKS:
                raise self._error(f"command must be one of {_listed(COMMANDS)}")
            head = self._head(name) if name in {"parameter", "message"} else ""
            argument = _printable(self._argument())
            yield name, f"{head} {argument}" if head else argument

    def _skip_to_command(self) -> bool:
        """Step over blanks, blank lines and comments; say whether something is left."""
        while self._at < len(self._text):
            sign = self._peek()
            if sign == "#":
                self._line()
            elif sign.isspace() or not _printable(sign):
                self._at += 1
            else:
                return True
        return False

    def _word(self) -> str:
        match = _WORD.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match[0] if match else ""

    def _head(self, command: str) -> str:
        """Return the name of a parameter, or the role of a message, behind which a value stands."""
        self._skip(_BLANKS)
        if command == "message":
            head = self._word()
        else:
            match = _KEY.match(self._text, self._at)
            head = match[0] if match else ""
            self._at += len(head)
        if self._peek() not in {" ", "\t"}:
            raise ModelfileError(f"unexpected EOF: {head}")
        if command == "message" and head not in ROLES:
            raise self._error(f"message role must be one of {_listed(ROLES)}")
        return head

    def _argument(self) -> str:
        """Return the rest of the line, or of as many as it takes until its quotes are closed."""
        begin = self._at
        while True:
            self._line()
            found = _unquoted(self._text[begin : self._at].strip())
            if found is not None:
                return found
            if self._at >= len(self._text):
                raise ModelfileError("unexpected EOF")

    def _line(self) -> None:
        """Step behind the end of the line, which CR and LF are alike."""
        match = _END.search(self._text, self._at)
        self._at = match.end() if match else len(self._text)

    def _skip(self, signs: str) -> None:
        while (sign := self._peek()) and sign in signs:
            self._at += 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _error(self, message: str) -> ModelfileError:
        before = self._text[: self._at + 1]
        number = 1 + before.count("\n") + before.count("\r")
        return ModelfileError(f"(line {number}): {message}")


def _unquoted(text: str) -> str | None:
    """Return an argument without its quotes; None where they are not closed yet."""
    for mark in (_THREE, '"'):
        if text.startswith(mark):
            is_closed = len(text) >= 2 * len(mark) and text.endswith(mark)
            return text[len(mark) : -len(mark)] if is_closed else None
    return text


def _printable(text: str) -> str:
    """Return ``text`` without what Go calls unprintable, but for tabs and ends of lines."""
    return "".join(sign for sign in text if sign in "\t\n\r" or sign.isprintable())


def _listed(words: tuple[str, ...]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"{', '.join(quoted[:-1])}, or {quoted[-1]}"
