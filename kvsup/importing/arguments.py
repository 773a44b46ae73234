"""A llama-server's arguments as people wrote them: command lines, preset files, variables.

What an argument takes is known from the ``--help`` of the llama-server that will run it, so that a
switch is told from a flag with a value (``kvsup/llama/helptext.py``).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from kvsup.errors import Problem
from kvsup.importing.found import Setting
from kvsup.llama.argv import owned_key
from kvsup.llama.helptext import Argument

TRUE = frozenset({"on", "enabled", "true", "1"})
FALSE = frozenset({"off", "disabled", "false", "0"})
"""Words for a switch in a preset file or a variable (common/arg.cpp, b11434)."""

_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")
_SECRETS = re.compile(r"api-key$|token$")

LOAD_MODES = {"--mmap": "mmap", "--no-mmap": "none", "--mlock": "mlock", "--direct-io": "dio"}
"""Switches of builds before ``--load-mode``; b11434 lists them no more."""

_SHORT = {"-dio": "--direct-io"}

Pair = tuple[str, str, int | None]
"""A key of a preset file or a variable, its value, its line."""


def of_words(
    words: Sequence[str],
    arguments: Mapping[str, Argument],
    *,
    line_of: Callable[[str], int | None],
) -> Iterator[Setting | Problem]:
    """Yield the arguments of a command line, and what of it is none of this llama-server's.

    Args:
        words: those behind the program.
        arguments: what the llama-server takes.
        line_of: the line on which a word stands.
    """
    position = 0
    while position < len(words):
        written = words[position]
        flag, is_joined, joined = written.partition("=")
        position += 1
        line = line_of(written)
        if not _FLAG.fullmatch(flag):
            yield Problem("", line, written, "is no argument; dropped")
            continue
        name = _SHORT.get(flag, flag.replace("_", "-"))
        end = position
        while end < len(words) and not _FLAG.fullmatch(words[end].partition("=")[0]):
            end += 1
        argument = _known(name, arguments, has_value=end > position)
        if argument is not None:
            end = min(end, position + argument.n_values)
        values = (joined,) if is_joined else tuple(words[position:end])
        position = position if is_joined else end
        yield from _settings(name, argument, values, arguments, line=line, shown=(flag, *values))


def of_pairs(
    pairs: Sequence[Pair], arguments: Mapping[str, Argument]
) -> Iterator[Setting | Problem]:
    """Yield the arguments of a preset file's section, or of variables.

    A key is a flag without its dashes or the name of its variable; a switch takes a word for on or
    off, which a key that switches off turns around (common/preset.cpp, b11434).
    """
    for key, value, line in pairs:
        spelled = next((n for n in (f"--{key}", f"-{key}") if _known(n, arguments)), key)
        argument = _known(spelled, arguments)
        if argument is None or argument.n_values or argument.replacement:
            shown = (key, "=", value)
            yield from _settings(spelled, argument, (value,), arguments, line=line, shown=shown)
            continue
        word = value.lower()
        if word not in TRUE | FALSE:
            yield Problem("", line, key, f"{value!r} is neither on nor off; dropped")
            continue
        is_on = (word in TRUE) != (spelled in argument.off)
        spellings = argument.on if is_on else argument.off
        yield Setting(
            argument,
            is_on,
            values=(),
            line=line,
            shown=f"{key} = {value}",
            words=spellings[-1:],
        )


def variable_pairs(
    env: Mapping[str, str], arguments: Mapping[str, Argument], *, line: int | None
) -> list[Pair]:
    """Return those of the variables ``env`` that stand for arguments."""
    return [(name, value, line) for name, value in env.items() if name in arguments]


def _known(
    name: str, arguments: Mapping[str, Argument], *, has_value: bool = False
) -> Argument | None:
    if name in arguments:
        return arguments[name]
    if name in LOAD_MODES:
        return Argument((name,))
    return Argument((name,), hint="N" if has_value else "") if owned_key(name) is not None else None


def _settings(
    name: str,
    argument: Argument | None,
    values: tuple[str, ...],
    arguments: Mapping[str, Argument],
    *,
    line: int | None,
    shown: tuple[str, ...],
) -> Iterator[Setting | Problem]:
    text = " ".join(shown)
    if argument is not None and _SECRETS.search(argument.on[-1]):
        text = shown[0]
    if argument is None:
        yield Problem("", line, text, "is no argument of this llama-server; dropped")
        return
    if argument.replacement:
        newer = arguments.get(argument.replacement)
        message = f"is gone from llama-server; it is {argument.replacement} now"
        yield Problem("", line, text, message if newer else "is gone from llama-server; dropped")
        if newer is None:
            return
        name, argument = argument.replacement, newer
    flag = name if name.startswith("-") else argument.on[-1]
    yield Setting(
        argument,
        name not in argument.off,
        values=values,
        line=line,
        shown=text,
        words=(flag, *values),
    )
