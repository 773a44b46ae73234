"""A Go template of Ollama's as a Jinja one that writes the same prompts, for chats without tools.

Nothing is translated: the Go template is executed on a few conversations, and what stands between
their texts is what the Jinja template says there. Longer ones show whether that is all of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from kvsup.ollama.gotemplate import TemplateError
from kvsup.ollama.prompt import PromptTemplate
from kvsup.ollama.requests import Message

_TODAY, _LATER = date(2020, 2, 3), date(2021, 4, 5)
_SYSTEM, _TURNS = "\x01S\x02", ("\x01U\x02", "\x01A\x02", "\x01V\x02")
_AWKWARD = ("  {{ .System }}\n\n it's \\ ", "\n{% if %} 'a'\t", '\\n"b" ', " ", "<|im_end|>é\r\n")


@dataclass(frozen=True, slots=True)
class Pieces:
    """What stands between the texts of a conversation."""

    first: str
    """Before the first text of the user, without a system text."""
    answer: str
    """Between a text of the user and the answer to it."""
    again: str
    """Between an answer and the next text of the user."""
    end: str
    """Behind the last text of the user, where the answer shall begin."""
    system: tuple[str, str]
    """Before and behind a system text, in front of the first text of the user."""
    late_system: tuple[str, str] | None
    """The same in front of the last of several; None where it stays in front of the first."""

    def prompt(self, system: str, turns: Sequence[str]) -> str:
        """Return the prompt of a conversation: texts of the user and answers by turns."""
        written = []
        for place, text in enumerate(turns):
            if place % 2:
                written.append(self.answer + text)
                continue
            before = self.again if place else self.first
            if system and place == 0 and (self.late_system is None or len(turns) == 1):
                before = system.join(self.system)
            elif system and self.late_system is not None and place == len(turns) - 1:
                before = system.join(self.late_system)
            written.append(before + text)
        return "".join((*written, self.end))


def jinja_of(source: str) -> str | None:
    """Return the Jinja template; None where there is none that writes the same prompts."""
    try:
        template = PromptTemplate.parse(source)
        pieces = _pieces(template)
        if pieces is None or not _is_whole(template, pieces):
            return None
    except TemplateError:
        return None
    return _written(pieces)


def uses_tools(source: str) -> bool:
    """Say whether a Go template knows tools, which its Jinja one does not."""
    try:
        return "tools" in PromptTemplate.parse(source).variables
    except TemplateError:
        return False


def _pieces(template: PromptTemplate) -> Pieces | None:
    short, whole = _TURNS[:1], _TURNS
    alone = _between(_rendered(template, "", short), short)
    plain = _between(_rendered(template, "", whole), whole)
    guided = _between(_rendered(template, _SYSTEM, short), (_SYSTEM, *short))
    long = _rendered(template, _SYSTEM, whole)
    early = _between(long, (_SYSTEM, *whole))
    late = _between(long, (*whole[:2], _SYSTEM, whole[2]))
    if alone is None or plain is None or guided is None or (early is None and late is None):
        return None
    return Pieces(
        first=plain[0],
        answer=plain[1],
        again=plain[2],
        end=plain[3],
        system=(guided[0], guided[1]),
        late_system=(late[2], late[3]) if late is not None else None,
    )


def _between(prompt: str, texts: Sequence[str]) -> list[str] | None:
    """Return what stands around ``texts``; None unless each is there once, in this order."""
    parts = re.split("|".join(map(re.escape, texts)), prompt)
    found = re.findall("|".join(map(re.escape, texts)), prompt)
    return parts if found == list(texts) and "\x01" not in "".join(parts) else None


def _is_whole(template: PromptTemplate, pieces: Pieces) -> bool:
    """Say whether ``pieces`` write what the template does, whatever the texts and the day."""
    for system in ("", "\n Be 'brief'. "):
        for n_turns in (1, 3, 5):
            turns = _AWKWARD[:n_turns]
            expected = pieces.prompt(system, turns)
            if any(_rendered(template, system, turns, day) != expected for day in (_TODAY, _LATER)):
                return False
    return True


def _rendered(
    template: PromptTemplate, system: str, turns: Sequence[str], today: date = _TODAY
) -> str:
    messages = [Message(role="system", content=system)] if system else []
    messages += [
        Message(role="assistant" if place % 2 else "user", content=text)
        for place, text in enumerate(turns)
    ]
    return template.render(messages, tools=(), think=None, today=today)


def _written(pieces: Pieces) -> str:
    """Return the Jinja template of ``pieces``.

    Texts of the system are one, as Ollama has it; so are neighbours of one role.
    """
    words = {
        "FIRST": pieces.first,
        "ANSWER": pieces.answer,
        "AGAIN": pieces.again,
        "END": pieces.end,
        "BEFORE": pieces.system[0],
        "BEHIND": pieces.system[1],
        "LATE_BEFORE": (pieces.late_system or pieces.system)[0],
        "LATE_BEHIND": (pieces.late_system or pieces.system)[1],
        "IS_LATE": None,
    }
    place = "ns.users" if pieces.late_system is not None else "1"

    def word(match: re.Match[str]) -> str:
        text = words[match[0]]
        return place if text is None else _literal(text)

    return re.sub("|".join(sorted(words, reverse=True)), word, _JINJA)


def _literal(text: str) -> str:
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return f"'{''.join(escapes.get(character, character) for character in text)}'"


_JINJA = """\
{%- set ns = namespace(system='', users=0, seen=0, last='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- if ns.system -%}{%- set ns.system = ns.system + '\\n\\n' -%}{%- endif -%}
{%- set ns.system = ns.system + message['content'] -%}
{%- elif message['role'] == 'user' and ns.last != 'user' -%}
{%- set ns.users = ns.users + 1 -%}
{%- endif -%}
{%- if message['role'] != 'system' -%}{%- set ns.last = message['role'] -%}{%- endif -%}
{%- endfor -%}
{%- set ns.last = '' -%}
{%- for message in messages -%}
{%- if message['role'] == ns.last -%}
{{- '\\n\\n' + message['content'] -}}
{%- elif message['role'] == 'user' -%}
{%- set ns.seen = ns.seen + 1 -%}
{%- if ns.system and ns.seen == IS_LATE -%}
{%- if ns.seen == 1 -%}
{{- BEFORE + ns.system + BEHIND -}}
{%- else -%}
{{- LATE_BEFORE + ns.system + LATE_BEHIND -}}
{%- endif -%}
{%- elif ns.seen == 1 -%}
{{- FIRST -}}
{%- else -%}
{{- AGAIN -}}
{%- endif -%}
{{- message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- ANSWER + message['content'] -}}
{%- endif -%}
{%- if message['role'] != 'system' -%}{%- set ns.last = message['role'] -%}{%- endif -%}
{%- endfor -%}
{%- if ns.users == 0 and ns.system -%}{{- BEFORE + ns.system + BEHIND -}}{%- endif -%}
{%- if add_generation_prompt and ns.last != 'assistant' -%}{{- END -}}{%- endif -%}
"""
