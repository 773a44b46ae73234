"""Thinking apart from the content and tool calls as objects, by Ollama's API."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.make_tiny_gguf import chat_template
from tests.running import RunningKvsup
from tests.tiny import AFTER_CALLS, AFTER_THOUGHT, ANSWER, THOUGHT, TOOLS, TinyModels

HI = [{"role": "user", "content": "Hi"}]
PARIS = {"name": "get_weather", "arguments": {"city": "Paris"}}
CET = {"name": "get_time", "arguments": {"zone": "CET"}}

LEVELS = (
    "{% for message in messages %}{{ message.content }}{% endfor %}"
    "({{ enable_thinking }},{{ reasoning_effort }})<think></think>"
)
RESULTS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}"
    "{{ message.role }}[{{ message.name }}|{{ message.tool_call_id }}|{{ message.content }}]"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}{% endfor %}{% endfor %}"
)
TALKING = ("Let me", " see.", "<tool_call>", '\n{"name": "get_weather", ',
           '"arguments": {"city": "Paris"}}', "\n</tool_call>")  # fmt: skip
MUSING = ("<think>", "\nA tool.\n", "</think>", "\n\n", *TALKING[2:])


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    both = chat_template(thinking=True, tools=True)
    files = {
        "plain": tiny.plain(),
        "thinker": tiny.thinking(),
        "levels": tiny.scripted("levels", ["Yes", "."], template=LEVELS),
        "one": tiny.one_call(),
        "two": tiny.two_calls(),
        "talker": tiny.scripted("talker", TALKING, template=chat_template(tools=True)),
        "muser": tiny.scripted("muser", MUSING, template=both),
        "results": tiny.scripted("results", ["Yes", "."], template=RESULTS),
    }
    models = {
        name: f'model = "{path}"\nnum_ctx = 1024\nthreads = 1\n' for name, path in files.items()
    }
    folder = tmp_path_factory.mktemp("thinking") / "kvsup"
    host = f"max_loaded_models = {len(models)}\n"
    with RunningKvsup(folder, models=models, llama_server=any_build, host=host) as running:
        yield running
    assert running.children() == []


def _lines(kvsup: RunningKvsup, path: str = "/api/chat", **body: Any) -> list[dict[str, Any]]:
    answer = kvsup.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def _whole(kvsup: RunningKvsup, path: str = "/api/chat", **body: Any) -> dict[str, Any]:
    (whole,) = _lines(kvsup, path, **body, stream=False)
    return whole


def _refused(kvsup: RunningKvsup, path: str, **body: Any) -> tuple[int, str]:
    answer = kvsup.client.post(path, json=body)
    return answer.status_code, answer.json()["error"]


def _rendered(kvsup: RunningKvsup, **body: Any) -> str:
    """Return the prompt that a chat makes."""
    shown: str = _whole(kvsup, **body, _debug_render_only=True)["_debug_info"]["rendered_template"]
    return shown


def _functions(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [call["function"] for call in message["tool_calls"]]


@pytest.mark.parametrize("think", [{}, {"think": None}, {"think": True}, {"think": "high"}])
def test_chat_of_a_thinking_model_streams_its_thought_apart(
    kvsup: RunningKvsup, think: dict[str, Any]
) -> None:
    """It thinks unless told not to; no line has both, none has a tag."""
    *lines, last = _lines(kvsup, model="thinker", messages=HI, **think)

    thoughts = [line["message"] for line in lines if "thinking" in line["message"]]
    texts = [line["message"] for line in lines if "thinking" not in line["message"]]
    assert lines[: len(thoughts)] == [line for line in lines if line["message"] in thoughts]
    assert {tuple(message) for message in thoughts} == {("role", "content", "thinking")}
    assert {message["content"] for message in thoughts} == {""}
    assert "".join(message["thinking"] for message in thoughts).strip() == THOUGHT
    assert "".join(message["content"] for message in texts) == AFTER_THOUGHT
    assert last["message"] == {"role": "assistant", "content": ""}


def test_generate_of_a_thinking_model_streams_its_thought_apart(kvsup: RunningKvsup) -> None:
    """In a field behind the response."""
    *lines, last = _lines(kvsup, "/api/generate", model="thinker", prompt="Hi")
    whole = _whole(kvsup, "/api/generate", model="thinker", prompt="Hi")

    thoughts = [line for line in lines if "thinking" in line]
    assert list(thoughts[0]) == ["model", "created_at", "response", "thinking", "done"]
    assert "".join(line["thinking"] for line in thoughts).strip() == THOUGHT
    assert "".join(line["response"] for line in lines) == AFTER_THOUGHT
    assert "thinking" not in last
    assert list(whole)[:5] == ["model", "created_at", "response", "thinking", "done"]
    assert whole["thinking"].strip() == THOUGHT
    assert whole["response"] == AFTER_THOUGHT


def test_whole_chat_has_the_thought_and_the_content(kvsup: RunningKvsup) -> None:
    """Each once, and never mixed."""
    message = _whole(kvsup, model="thinker", messages=HI)["message"]

    assert list(message) == ["role", "content", "thinking"]
    assert message["thinking"].strip() == THOUGHT
    assert message["content"] == AFTER_THOUGHT


@pytest.mark.parametrize(
    ("path", "prompt"), [("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "Hi"})]
)
def test_think_false_has_no_thought(
    kvsup: RunningKvsup, path: str, prompt: dict[str, object]
) -> None:
    """The field vanishes; a model that never thinks takes it, too."""
    whole = _whole(kvsup, path, model="thinker", think=False, **prompt)
    plain = _whole(kvsup, path, model="plain", think=False, **prompt)

    assert "thinking" not in whole
    assert "thinking" not in whole.get("message", {})
    assert (whole.get("response") or whole["message"]["content"]) == AFTER_THOUGHT
    assert (plain.get("response") or plain["message"]["content"]) == ANSWER


@pytest.mark.parametrize("think", [True, "low", "max"])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_thinking_asked_of_a_model_without_it_is_refused(
    kvsup: RunningKvsup, path: str, think: object
) -> None:
    """With the name as it was sent; also where the model is only to be loaded."""
    assert _refused(kvsup, path, model="Plain", think=think) == (
        400,
        '"Plain" does not support thinking',
    )


@pytest.mark.parametrize(
    ("think", "expected"),
    [
        (None, "(True,)"),
        (True, "(True,)"),
        (False, "(False,)"),
        ("low", "(True,low)"),
        ("medium", "(True,medium)"),
        ("high", "(True,high)"),
        ("max", "(True,max)"),
    ],
)
def test_think_and_its_level_reach_the_template(
    kvsup: RunningKvsup, think: object, expected: str
) -> None:
    """As ``enable_thinking`` and ``reasoning_effort``."""
    shown = _rendered(kvsup, model="levels", messages=HI, think=think)

    assert expected.lower() in shown.lower()


def test_thought_that_the_limit_cuts_is_all_there_is(kvsup: RunningKvsup) -> None:
    """No content, and no part of the thought in it."""
    cut = _whole(kvsup, model="thinker", messages=HI, options={"num_predict": 2})

    assert cut["done_reason"] == "length"
    assert cut["message"]["content"] == ""
    assert THOUGHT.startswith(cut["message"]["thinking"].strip())


def test_thought_of_an_earlier_turn_is_not_sent_again(kvsup: RunningKvsup) -> None:
    """Models are trained on conversations without them."""
    earlier = {"role": "assistant", "content": "Four.", "thinking": "secret"}

    shown = _rendered(kvsup, model="thinker", messages=[*HI, earlier, *HI])

    assert "Four." in shown
    assert "secret" not in shown


def test_raw_answer_of_a_thinking_model_is_not_parted(kvsup: RunningKvsup) -> None:
    """Raw is raw."""
    whole = _whole(kvsup, "/api/generate", model="thinker", prompt="Hi", raw=True)

    assert "thinking" not in whole
    assert whole["response"].startswith("<think>")


def test_thinking_goes_on_being_parted_after_a_context(kvsup: RunningKvsup) -> None:
    """The second answer of a conversation has the shape of the first."""
    first = _whole(kvsup, "/api/generate", model="thinker", prompt="Hi")

    second = _whole(kvsup, "/api/generate", model="thinker", prompt="Hi", context=first["context"])

    assert second["response"] == first["response"]
    assert second["thinking"] == first["thinking"]


def test_format_of_a_thinking_model_holds_for_the_content(kvsup: RunningKvsup) -> None:
    """It thinks freely first."""
    message = _whole(kvsup, model="thinker", messages=HI, format="json")["message"]

    assert message["thinking"].strip() == THOUGHT
    assert isinstance(json.loads(message["content"]), dict)


def test_tool_calls_are_streamed_each_on_a_line_of_its_own(kvsup: RunningKvsup) -> None:
    """As it completes, before the end, which says ``stop``."""
    *lines, last = _lines(kvsup, model="two", messages=HI, tools=TOOLS)

    assert [_functions(line["message"]) for line in lines] == [
        [{"index": 0, **PARIS}], [{"index": 1, **CET}],
    ]  # fmt: skip
    assert [list(line["message"]) for line in lines] == [["role", "content", "tool_calls"]] * 2
    assert {line["message"]["content"] for line in lines} == {""}
    assert not any(line["done"] for line in lines)
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["done_reason"] == "stop"


def test_tool_calls_of_a_whole_answer_are_gathered(kvsup: RunningKvsup) -> None:
    """Arguments are an object; each has an id of its own, litellm's index, and no type."""
    message = _whole(kvsup, model="two", messages=HI, tools=TOOLS)["message"]

    assert _functions(message) == [{"index": 0, **PARIS}, {"index": 1, **CET}]
    assert [list(call) for call in message["tool_calls"]] == [["id", "index", "function"]] * 2
    assert [list(call) for call in _functions(message)] == [["index", "name", "arguments"]] * 2
    ids = {call["id"] for call in message["tool_calls"]}
    assert len(ids) == 2
    assert all(ids)


def test_text_before_a_call_is_content(kvsup: RunningKvsup) -> None:
    """It is streamed as it comes."""
    *lines, _ = _lines(kvsup, model="talker", messages=HI, tools=TOOLS)

    assert "".join(line["message"]["content"] for line in lines).strip() == "Let me see."
    assert _functions(lines[-1]["message"]) == [{"index": 0, **PARIS}]


def test_thought_before_a_call_is_thinking(kvsup: RunningKvsup) -> None:
    """A model that does both."""
    message = _whole(kvsup, model="muser", messages=HI, tools=TOOLS)["message"]

    assert list(message) == ["role", "content", "thinking", "tool_calls"]
    assert message["thinking"].strip() == "A tool."
    assert message["content"].strip() == ""
    assert _functions(message) == [{"index": 0, **PARIS}]


def test_call_that_the_limit_cuts_is_none(kvsup: RunningKvsup) -> None:
    """Half an object is no argument."""
    *lines, last = _lines(kvsup, model="one", messages=HI, tools=TOOLS, options={"num_predict": 3})

    assert last["done_reason"] == "length"
    assert not any("tool_calls" in line["message"] for line in [*lines, last])


@pytest.mark.parametrize("named", [{}, {"tool_name": "get_weather"}, {"tool_call_id": "call_1"}])
def test_tool_result_goes_back_to_the_model(kvsup: RunningKvsup, named: dict[str, str]) -> None:
    """By name, by id, or by neither; the message of the call comes back as it was answered."""
    called = _whole(kvsup, model="one", messages=HI, tools=TOOLS)["message"]
    result = {"role": "tool", "content": "sunny", **named}

    whole = _whole(kvsup, model="one", messages=[*HI, called, result], tools=TOOLS)

    assert whole["message"] == {"role": "assistant", "content": AFTER_CALLS}


def test_names_and_ids_of_results_reach_the_template(kvsup: RunningKvsup) -> None:
    """Calls without an id and an index, too."""
    called = {"role": "assistant", "tool_calls": [{"function": PARIS}]}
    result = {"role": "TOOL", "content": "sunny", "tool_name": "get_weather", "tool_call_id": "c1"}

    shown = _rendered(kvsup, model="results", messages=[*HI, called, result], tools=TOOLS)

    assert "tool[get_weather|c1|sunny]" in shown
    assert "assistant[" in shown
    assert "get_weather" in shown
    assert json.dumps(TOOLS[0]["function"]["description"]) in shown


def test_arguments_that_are_a_text_are_refused(kvsup: RunningKvsup) -> None:
    """Ollama has an object there in requests, too."""
    call = {"function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    called = {"role": "assistant", "tool_calls": [call]}

    status, text = _refused(kvsup, "/api/chat", model="one", messages=[*HI, called])

    assert status == 400
    assert text.startswith("json: cannot unmarshal string into Go struct field")


def test_tools_for_a_model_without_them_are_refused_unless_there_are_none(
    kvsup: RunningKvsup,
) -> None:
    """With the full name; ollama-python always sends an empty list."""
    assert _refused(kvsup, "/api/chat", model="Plain", messages=HI, tools=TOOLS) == (
        400,
        "registry.ollama.ai/library/Plain:latest does not support tools",
    )
    assert _whole(kvsup, model="plain", messages=HI, tools=[])["message"]["content"] == ANSWER
