"""The arguments of a llama-server, as its ``--help`` lists them: spellings, values, variables.

An entry begins at the start of a line with its spellings, those that switch off last, then a hint
for its value where it takes one; two blanks or the end of the line part that from the text. The
text ends with ``(env: NAME)`` where a variable says the same (common/arg.cpp, b11434).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_ENTRY = re.compile(r"^(--?[a-zA-Z][\w.-]*(?:, +--?[a-zA-Z][\w.-]*)*)(| \S.*)$")
_TWO = re.compile(r"[A-Z]+ [A-Z]+")
_TEXT_COLUMN = re.compile(r" {2,}")
_VARIABLE = re.compile(r"\(env: ([A-Z][A-Z0-9_]*)\)")
_REMOVED = re.compile(
    r"the argument has been removed\. use (?:the respective )?(--[\w-]+)(?=[\s(]|$)"
)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument, under all its spellings."""

    on: tuple[str, ...]
    """The spellings that set it."""
    off: tuple[str, ...] = ()
    """Those that switch it off: ``--no-mmproj-offload``."""
    hint: str = ""
    """How its value is called: ``N``, ``FNAME``; empty for a switch."""
    variable: str = ""
    replacement: str = ""
    """What to use instead of an argument that is only listed to say that it is gone."""

    @property
    def n_values(self) -> int:
        """How many values follow it: ``START END`` are two."""
        return 2 if _TWO.fullmatch(self.hint) else int(bool(self.hint))


def parse_arguments(help_text: str) -> Mapping[str, Argument]:
    """Return each argument by each of its spellings and by its variable."""
    found: dict[str, Argument] = {}
    for head, text in _entries(help_text):
        match = _ENTRY.match(_TEXT_COLUMN.split(_narrowed(head), maxsplit=1)[0])
        if match is None:
            continue
        on, off = _parted(tuple(re.split(r", +", match[1])))
        variable, gone = _VARIABLE.search(text), _REMOVED.search(text)
        argument = Argument(
            on=on,
            off=off,
            hint=match[2].strip(),
            variable=variable[1] if variable else "",
            replacement=gone[1] if gone else "",
        )
        found |= dict.fromkeys((*on, *off), argument)
        if argument.variable and not gone:
            found[argument.variable] = argument
    return found


def _entries(help_text: str) -> list[tuple[str, str]]:
    """Return the first line of each entry, and all its lines as one text."""
    entries: list[tuple[str, list[str]]] = []
    for line in help_text.splitlines():
        if line.startswith("-") and not line.startswith("-----"):
            entries.append((line, [line]))
        elif entries:
            entries[-1][1].append(line)
    return [(head, " ".join(" ".join(lines).split())) for head, lines in entries]


def _narrowed(head: str) -> str:
    """Return ``head`` with one blank behind each comma: short spellings are padded."""
    return re.sub(r", +(?=-)", ", ", head)


def _parted(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the spellings that switch on, and those that switch off."""
    last = max(
        (at for at, name in enumerate(names) if re.match(r"--(?!no-)", name)),
        default=len(names) - 1,
    )
    off = names[last + 1 :]
    return (names[: last + 1], off) if any(n.startswith("--no-") for n in off) else (names, ())
