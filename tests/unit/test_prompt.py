"""Conversations as prompts, as Ollama's templates make them.

``golden/gotemplate/conversations.json`` holds templates in the manner of the common families, and
what Ollama v0.17.4's own package ``template`` made of conversations with them; what it sees in
each template is recorded there, too.
"""

import json
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvsup.ollama.gotemplate import TemplateError
from kvsup.ollama.prompt import PromptTemplate, merge, tag_images
from kvsup.ollama.requests import Message

GOLDEN = Path(__file__).parent.parent / "golden" / "gotemplate" / "conversations.json"
DOCUMENT = json.loads(GOLDEN.read_bytes())
TODAY = date.fromisoformat(DOCUMENT["today"])
TEMPLATES: dict[str, str] = DOCUMENT["templates"]
CASES: list[dict[str, Any]] = DOCUMENT["cases"]


def conversation(name: str) -> list[Message]:
    """Return the messages of the golden file, roles in lower case as from a request."""
    messages = [{**fields, "role": fields["role"].lower()} for fields in DOCUMENT["messages"][name]]
    return msgspec.convert(messages, list[Message])


def render(case: dict[str, Any]) -> str:
    """Return the prompt of a case of the golden file."""
    template = PromptTemplate.parse(TEMPLATES.get(case["template"], case["template"]))
    think = case.get("think")
    if "suffix" in case:
        return template.fill(case["prompt"], case["suffix"], think=think, today=TODAY)
    tools = DOCUMENT["tools"][case["tools"]] if "tools" in case else None
    return template.render(conversation(case["messages"]), tools=tools, think=think, today=TODAY)


def prompt_or_error(case: dict[str, Any]) -> dict[str, Any]:
    """Return the case with what comes out now."""
    asked = {key: value for key, value in case.items() if key not in ("output", "error")}
    try:
        return {**asked, "output": render(case)}
    except TemplateError as error:
        return {**asked, "error": str(error)}


@pytest.mark.parametrize("name", TEMPLATES)
def test_render_recorded_conversations_gives_what_ollama_gives(name: str) -> None:
    """Rounds, merged messages, tools, thoughts and gaps to fill come out to the byte."""
    cases = [case for case in CASES if case["template"] == name]

    assert [prompt_or_error(case) for case in cases] == cases


def test_render_recorded_odd_templates_gives_what_ollama_gives() -> None:
    """Templates that fail, define others or have nearly nothing come out as in Ollama, too."""
    cases = [case for case in CASES if case["template"] not in TEMPLATES]

    assert [prompt_or_error(case) for case in cases] == cases


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_read_for_its_use_shows_what_ollama_sees(name: str) -> None:
    """Variables and the tags of thoughts are those that Ollama finds."""
    template = PromptTemplate.parse(TEMPLATES[name])

    assert {
        "variables": sorted(template.variables),
        "thinking_tags": list(template.thinking_tags),
    } == DOCUMENT["uses"][name]


@pytest.mark.parametrize(("name", "takes_suffix"), [("qwen2.5", True), ("deepseek-r1", False)])
def test_template_with_a_suffix_fills_in(name: str, *, takes_suffix: bool) -> None:
    """Only a template that mentions the text behind the gap can be given one."""
    assert PromptTemplate.parse(TEMPLATES[name]).takes_suffix is takes_suffix


def test_parse_unclosed_action_fails_with_ollamas_text() -> None:
    """This is the text that ``/api/generate`` answers."""
    with pytest.raises(TemplateError, match=r"^template: :1: unclosed action$"):
        PromptTemplate.parse("{{ .Prompt")


def test_render_without_messages_gives_the_template_without_values() -> None:
    """An empty conversation is rendered as one empty round."""
    template = PromptTemplate.parse("[{{ .System }}{{ .Prompt }}]{{ .Response }}tail")

    assert template.render([], today=TODAY) == "[]"


def test_render_response_in_a_branch_with_else_drops_what_follows() -> None:
    """The prompt ends at the response, also where Ollama's own cut fails on the ``else``."""
    template = PromptTemplate.parse(
        "{{ if .Prompt }}{{ .Prompt }}:{{ .Response }}.{{ else }}x{{ end }}y"
    )

    assert template.render([Message("user", "Hi")], today=TODAY) == "Hi:"


def test_render_arguments_nested_too_deeply_fails() -> None:
    """What a client nests is bounded, before it is printed."""
    nested: object = 1
    for _ in range(100):
        nested = {"a": [nested]}
    template = PromptTemplate.parse("{{ range .Messages }}{{ .ToolCalls }}{{ end }}")
    message = msgspec.convert(
        {"role": "assistant", "tool_calls": [{"function": {"arguments": nested}}]}, Message
    )

    with pytest.raises(TemplateError, match="nested more than 40 levels deep"):
        template.render([message], today=TODAY)


@pytest.mark.parametrize(
    "prompt", ["{{ .Tools }}", "{{ json .Tools }}", "{{ printf `%s` .Tools }}"]
)
def test_render_tools_as_deep_as_allowed_prints_them(prompt: str) -> None:
    """All that passes the bound can be printed, within the stack that Python has."""
    schema: dict[str, object] = {"type": "string"}
    for _ in range(40):
        schema = {"type": "object", "properties": {"a": schema}}
    tool = {"function": {"name": "f", "parameters": {"properties": {"p": schema}}}}
    template = PromptTemplate.parse(prompt + "{{ range .Messages }}{{ end }}")

    text = template.render([], tools=[tool], today=TODAY)

    assert text.count('"properties"') == 41


def test_render_number_too_large_for_a_float_fails() -> None:
    """Go's numbers of JSON end at 1.8e308."""
    tool = {"function": {"name": "f", "parameters": {"items": 10**400}}}
    template = PromptTemplate.parse("{{ .Tools }}{{ range .Messages }}{{ end }}")

    with pytest.raises(TemplateError, match="too large"):
        template.render([], tools=[tool], today=TODAY)


def test_render_lone_surrogate_becomes_the_replacement_character() -> None:
    """A prompt is UTF-8, whatever a client's JSON escapes were."""
    template = PromptTemplate.parse("{{ .Prompt }}")

    assert template.render([Message("user", "a\ud800b\udcffc")], today=TODAY) == "a\ufffdb\ufffdc"


def test_merge_neighbours_of_one_role_become_one() -> None:
    """Their texts are joined by a blank line; tool results stay apart."""
    messages = [
        Message("system", "1"),
        Message("user", "a"),
        Message("user", "b"),
        Message("tool", "x"),
        Message("tool", "y"),
        Message("system", "2"),
    ]

    system, merged = merge(messages)

    assert system == "1\n\n2"
    assert [(m.role, m.content) for m in merged] == [
        ("system", "1"),
        ("user", "a\n\nb"),
        ("tool", "x"),
        ("tool", "y"),
        ("system", "2"),
    ]


def test_tag_images_stand_in_front_or_where_the_text_says() -> None:
    """Images are counted over the conversation; ``[img]`` in the text is the place of one."""
    messages = [
        Message("user", "look", images=("A", "B")),
        Message("user", "this [img] and [img], not that", images=("C", "D", "E")),
    ]

    tagged, images = tag_images(messages)

    assert [message.content for message in tagged] == [
        "[img-0][img-1]look",
        "[img-4]this [img-2] and [img-3], not that",
    ]
    assert images == ["A", "B", "C", "D", "E"]
