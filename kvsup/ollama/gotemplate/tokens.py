"""Template text as tokens (text/template/parse/lex.go of Go 1.26)."""

import re
from typing import NamedTuple

from kvsup.errors import RequestError
from kvsup.ollama.gotemplate.literals import from_bytes, quote, to_bytes

KEYWORDS = frozenset(
    (
        "block",
        "break",
        "continue",
        "define",
        "else",
        "end",
        "if",
        "nil",
        "range",
        "template",
        "with",
    )
)

_SPACES = " \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]+")
_WORD = re.compile(r"\w+")
_LEFT_MARKER = re.compile(r"-[ \t\r\n]")
_TRIMMED_CLOSE = re.compile(r"[ \t\r\n]-\}\}")
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?"
    r"|(?:0[oO][0-7_]*|0[bB][01_]*|[0-9_]*)(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?"
)
_LITERALS = {
    '"': ("string", re.compile(r'"(?:[^"\\\n]|\\[^\n])*"'), "unterminated quoted string"),
    "'": ("char", re.compile(r"'(?:[^'\\\n]|\\[^\n])*'"), "unterminated character constant"),
    "`": ("string", re.compile(r"`[^`]*`"), "unterminated raw quoted string"),
}
_SIGNS = "=|()"
_SHOWN_BYTES = 10


class TemplateError(RequestError):
    """A template that cannot be parsed or executed; the text is Go's, or close to it."""


class Token(NamedTuple):
    """One token; ``kind`` is a keyword or a sign itself, or the name of a class of tokens."""

    kind: str
    text: str
    position: int
    """Characters from the start of the template."""
    line: int

    def __str__(self) -> str:
        if self.kind in ("error", "EOF"):
            return self.text
        if self.kind in KEYWORDS or self.kind == ".":
            return f"<{self.text}>"
        data = to_bytes(self.text)
        if len(data) > _SHOWN_BYTES:
            return quote(from_bytes(data)[:_SHOWN_BYTES]) + "..."
        return quote(self.text)


class _BadToken(Exception):  # noqa: N818 - it ends the scan, and becomes a token
    """Where the text stops making sense, and why."""

    def __init__(self, position: int, text: str) -> None:
        self.position = position
        super().__init__(text)


def tokenize(source: str) -> list[Token]:
    """Return the tokens of a template; the last one is of kind ``EOF`` or ``error``."""
    return _Scanner(source).scan()


class _Scanner:
    def __init__(self, source: str) -> None:
        self._source = source
        self._tokens: list[Token] = []
        self._counted = 0
        self._line = 1

    def scan(self) -> list[Token]:
        source = self._source
        position = 0
        try:
            while (start := source.find("{{", position)) >= 0:
                text = source[position:start]
                if _LEFT_MARKER.match(source, start + 2):
                    text = text.rstrip(_SPACES)
                if text:
                    self._emit("text", text, position)
                position = self._action(start)
        except _BadToken as bad:
            self._emit("error", str(bad), bad.position)
            return self._tokens
        if position < len(source):
            self._emit("text", source[position:], position)
        self._emit("EOF", "EOF", len(source))
        return self._tokens

    def _emit(self, kind: str, text: str, position: int) -> None:
        self._line += self._source.count("\n", self._counted, position)
        self._counted = position
        self._tokens.append(Token(kind, text, position, self._line))

    def _action(self, start: int) -> int:
        """Scan one action or comment from its ``{{``; return the position behind it."""
        source = self._source
        position = start + 2
        inner = position + 2 if _LEFT_MARKER.match(source, position) else position
        if source.startswith("/*", inner):
            return self._comment(inner)
        self._emit("{{", "{{", start)
        position = inner
        depth = 0
        while not (is_trimmed := bool(_TRIMMED_CLOSE.match(source, position))) and (
            not source.startswith("}}", position)
        ):
            sign = source[position : position + 1]
            depth += (sign == "(") - (sign == ")")
            if depth < 0:
                raise _BadToken(position, "unexpected right paren")
            position = self._token(position)
        if depth:
            raise _BadToken(position, "unclosed left paren")
        return self._close(position, is_trimmed=is_trimmed)

    def _comment(self, position: int) -> int:
        end = self._source.find("*/", position + 2)
        if end < 0:
            raise _BadToken(position, "unclosed comment")
        is_trimmed = bool(_TRIMMED_CLOSE.match(self._source, end + 2))
        if not is_trimmed and not self._source.startswith("}}", end + 2):
            raise _BadToken(position, "comment ends before closing delimiter")
        return self._after(end + 2, is_trimmed=is_trimmed)

    def _close(self, position: int, *, is_trimmed: bool) -> int:
        self._emit("}}", "}}", position + 2 if is_trimmed else position)
        return self._after(position, is_trimmed=is_trimmed)

    def _after(self, position: int, *, is_trimmed: bool) -> int:
        """Return where the text goes on behind a closing delimiter."""
        if not is_trimmed:
            return position + 2
        end = position + 4
        space = _SPACE.match(self._source, end)
        return space.end() if space else end

    def _token(self, position: int) -> int:
        """Emit the token at ``position`` in an action; return the position behind it."""
        source = self._source
        if position >= len(source):
            raise _BadToken(position, "unclosed action")
        first = source[position]
        following = source[position + 1 : position + 2]
        if space := _SPACE.match(source, position):
            # the space that begins a trimming delimiter stays
            is_closing = _TRIMMED_CLOSE.match(source, space.end() - 1)
            kind, end = "space", space.end() - bool(is_closing)
        elif first in _LITERALS:
            kind, end = self._literal(position)
        elif first == ":":
            if following != "=":
                raise _BadToken(position, "expected :=")
            kind, end = ":=", position + 2
        elif first == "$" or (first == "." and following and not "0" <= following <= "9"):
            kind, end = self._name(position)
        elif first in "+-." or "0" <= first <= "9":
            kind, end = "number", self._number(position)
        elif _WORD.match(first):
            kind, end = self._word(position)
        elif " " < first <= "~":
            kind, end = first if first in _SIGNS else "sign", position + 1
        else:
            raise _BadToken(position, f"unrecognized character in action: {_code_point(first)}")
        self._emit(kind, source[position:end], position)
        return end

    def _literal(self, start: int) -> tuple[str, int]:
        kind, pattern, fault = _LITERALS[self._source[start]]
        literal = pattern.match(self._source, start)
        if not literal:
            raise _BadToken(start, fault)
        return kind, literal.end()

    def _name(self, start: int) -> tuple[str, int]:
        """Return the kind and the end of a field, a variable or a lone dot."""
        word = _WORD.match(self._source, start + 1)
        end = word.end() if word else start + 1
        self._check_terminator(start, end)
        if self._source[start] == "$":
            return "variable", end
        return "field" if word else ".", end

    def _word(self, start: int) -> tuple[str, int]:
        word = _WORD.match(self._source, start)
        end = word.end() if word else start
        self._check_terminator(start, end)
        text = self._source[start:end]
        if text in KEYWORDS:
            return text, end
        return "bool" if text in ("true", "false") else "identifier", end

    def _number(self, start: int) -> int:
        source = self._source
        match = _NUMBER.match(source, start)
        end = match.end() if match else start
        if source[end : end + 1] in ("+", "-"):  # a complex number, of which no prompt has need
            match = _NUMBER.match(source, end)
            end = match.end() if match else end
            raise _BadToken(start, f"bad number syntax: {quote(source[start:end])}")
        if _WORD.match(source, end):
            raise _BadToken(start, f"bad number syntax: {quote(source[start : end + 1])}")
        return end

    def _check_terminator(self, start: int, end: int) -> None:
        following = self._source[end : end + 1]
        if (
            following
            and following not in " \t\r\n.,|:)("
            and not self._source.startswith("}}", end)
        ):
            raise _BadToken(start, f"bad character {_code_point(following)}")


def _code_point(character: str) -> str:
    shown = f" '{character}'" if character.isprintable() else ""
    return f"U+{ord(character):04X}{shown}"
