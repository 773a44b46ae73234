"""A conversation as a prompt, by a Go template as Ollama applies it (template/, v0.17.4).

A template that mentions ``.Messages`` gets the whole conversation. An older one is executed once
for each round of system text, prompt and response, the last time only up to its ``.Response``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property

from msgspec.structs import replace as with_fields

from kvsup.ollama.gotemplate import GoTemplate, Signature, TemplateError
from kvsup.ollama.gotemplate.nodes import Action, Command, Field, Pipe
from kvsup.ollama.promptvalues import messages_value, tools_value, typescript_type
from kvsup.ollama.requests import Message
from kvsup.ollama.templateuse import (
    has_call_without_value,
    thinking_tags,
    up_to_response,
    variables,
)

_FUNCTIONS = ("currentDate", "yesterdayDate", "toTypeScriptType")
_RESPONSE = Action(0, Pipe(0, (Command(0, (Field(0, ("Response",)),)),)))


@dataclass(frozen=True)
class Thinking:
    """What the request said of thinking."""

    is_on: bool = False
    level: str = ""
    is_set: bool = False

    @classmethod
    def of(cls, think: bool | str | None) -> "Thinking":  # noqa: FBT001 - a field of a request
        """Return the values of a request's ``think``; True is the level ``medium``."""
        level = think if isinstance(think, str) else "medium" if think else ""
        return cls(bool(think), level, think is not None)


@dataclass(frozen=True)
class PromptTemplate:
    """The prompt template of a model or request."""

    template: GoTemplate

    @classmethod
    def parse(cls, source: str) -> "PromptTemplate":
        """Return the template; one without ``.Messages`` and ``.Response`` gets the latter.

        Raises:
            TemplateError: it is no template.
        """
        template = GoTemplate.parse(source, _FUNCTIONS)
        if has_call_without_value(template):
            raise TemplateError("undefined template specified")
        prompt = cls(template)
        if prompt.variables.isdisjoint(("messages", "response")):
            whole = (*template.templates[""], _RESPONSE)
            return cls(replace(template, templates={**template.templates, "": whole}))
        return prompt

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names that the template mentions, in lower case: ``tools``, ``suffix`` and so on."""
        return variables(self.template)

    @property
    def takes_suffix(self) -> bool:
        """Whether the model fills in the middle (Ollama's capability ``insert``)."""
        return "suffix" in self.variables

    @cached_property
    def thinking_tags(self) -> tuple[str, str]:
        """What opens and closes a thought, as the texts around ``.Thinking`` in a message do.

        Either is empty where there is no such text (thinking/template.go, v0.17.4).
        """
        return thinking_tags(self.template)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        think: bool | str | None = None,
        today: date,
    ) -> str:
        """Return the prompt that makes the model go on with a conversation.

        ``tools`` are those of a request: None is what Ollama has without any on ``/api/chat``, an
        empty list what it has on ``/api/generate``; they print as ``null`` and ``[]``.

        Raises:
            TemplateError: the template fails on these values, or a bound was passed.
        """
        thinking = Thinking.of(think)
        system, merged = merge(messages)
        if "messages" not in self.variables:
            return self._rounds(merged, thinking, today)
        given = {
            "System": system,
            "Messages": messages_value(merged),
            "Tools": tools_value(tools),
            "Response": "",
        }
        return self._execute(self.template, given, thinking, today)

    def fill(
        self, prompt: str, suffix: str, *, think: bool | str | None = None, today: date
    ) -> str:
        """Return the prompt that makes the model write what stands between two texts.

        Raises:
            TemplateError: the template fails on these values, or a bound was passed.
        """
        given = {"Prompt": prompt, "Suffix": suffix, "Response": ""}
        return self._execute(self.template, given, Thinking.of(think), today)

    def _rounds(self, messages: Sequence[Message], thinking: Thinking, today: date) -> str:
        *rounds, last = _rounds(messages)
        whole = [self._execute(self.template, given, thinking, today) for given in rounds]
        return "".join((*whole, self._execute(self._cut, last, thinking, today)))

    @cached_property
    def _cut(self) -> GoTemplate:
        return up_to_response(self.template)

    def _execute(
        self, template: GoTemplate, given: Mapping[str, object], thinking: Thinking, today: date
    ) -> str:
        values = {
            **given,
            "Think": thinking.is_on,
            "ThinkLevel": thinking.level,
            "IsThinkSet": thinking.is_set,
        }
        yesterday = today - timedelta(days=1)
        functions = {
            "currentDate": Signature(lambda *_: today.isoformat(), 0, None, texts=-1),
            "yesterdayDate": Signature(lambda *_: yesterday.isoformat(), 0, None, texts=-1),
            "toTypeScriptType": Signature(typescript_type, 1, 1),
        }
        return template.execute(values, functions)


def merge(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """Return all system texts as one, and the messages with neighbours of one role as one.

    The first of such neighbours keeps its other fields, and only its; those of the role ``tool``
    stay apart.
    """
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role != "tool":
            content = f"{merged[-1].content}\n\n{message.content}"
            merged[-1] = with_fields(merged[-1], content=content)
        else:
            merged.append(message)
    return system, merged


def tag_images(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """Return the messages with ``[img-N]`` for each image, and the images in order of N.

    A tag replaces the first ``[img]`` of the text, or stands in front (server/prompt.go, v0.17.4).
    """
    images: list[str] = []
    tagged = []
    for message in messages:
        content, front = message.content, ""
        for image in message.images:
            tag = f"[img-{len(images)}]"
            images.append(image)
            if "[img]" in content:
                content = content.replace("[img]", tag, 1)
            else:
                front += tag
        tagged.append(with_fields(message, content=front + content))
    return tagged, images


def _rounds(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Return the values of each round; the last one may lack a response."""
    empty = {"System": "", "Prompt": "", "Response": ""}
    rounds: list[dict[str, object]] = [dict(empty)]
    for message in messages:
        now = rounds[-1]
        is_over = now["Response"] or (message.role == "system" and now["Prompt"])
        if is_over and message.role in ("system", "user"):
            rounds.append(dict(empty))
        match message.role:
            case "system":
                rounds[-1]["System"] = message.content
            case "user":
                rounds[-1]["Prompt"] = message.content
            case "assistant":
                rounds[-1]["Response"] = message.content
    return rounds
