"""The streams of real llama-servers, one of them killed, joined to the stream of a calm one."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kvsup.llama.seam import Seam
from kvsup.llama.transcript import CHAT, IDENTITY, TEXT
from scripts.make_tiny_gguf import chat_template
from tests.comparing import comparable
from tests.dying import DyingServer, n_events, requested, resumed, until_killed
from tests.tiny import TOOLS, TinyModels

pytestmark = pytest.mark.timeout(300)  # a process dies for every event of an answer

NATIVE = "/completion"

HELLO = {"messages": [{"role": "user", "content": "Say hello."}], "temperature": 0, "seed": 1}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "zones": {"type": "array", "items": {}}},
    "required": ["city", "zones"],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}

TAGS = ("<one>\n", "<two> ", "<three>\n\n", "<- four", "<  \n", "<five", "< ", "<é€", "<🎈.")
"""Ends of tokens that a template or a parser could trim, and characters of several bytes.

What begins with ``<`` is found in prompts, so a continuation sees the tokens that were delivered.
"""

THOUGHT = ("<think>", "<one> ", "<two>\n", "<three", "</think>", "<four>\n", "<five")

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": (CHAT, "plain", HELLO),
    "limit": (CHAT, "plain", {**HELLO, "max_tokens": 5}),
    "tags": (CHAT, "tags", HELLO),
    "stop": (CHAT, "plain", {**HELLO, "stop": [" what they wore", " were"]}),
    "logprobs": (CHAT, "plain", {**HELLO, "logprobs": True, "top_logprobs": 2}),
    "schema": (CHAT, "plain", {**HELLO, "response_format": FORMAT}),
    "thinking": (CHAT, "thinking", HELLO),
    "tool": (CHAT, "one_call", {**HELLO, "tools": TOOLS}),
    "tools": (CHAT, "two_calls", {**HELLO, "tools": TOOLS}),
    "several": (CHAT, "plain", {**HELLO, "n": 2}),
    "text": (TEXT, "plain", {"prompt": "Say", "temperature": 0}),
    "text_logprobs": (TEXT, "plain", {"prompt": "Say", "logprobs": 2, "stop": ["told"]}),
    "native": (NATIVE, "plain", {"prompt": "Say", "temperature": 0}),
    "native_limit": (NATIVE, "plain", {"prompt": "Say", "n_predict": 5}),
    "native_spaces": (NATIVE, "tags", {"prompt": "Say"}),
    "native_stop": (NATIVE, "plain", {"prompt": "Say", "stop": [" what they wore", "told."]}),
    "native_ids": (NATIVE, "plain", {"prompt": [1, 2, 3], "return_tokens": True}),
    "native_probs": (NATIVE, "plain", {"prompt": "Say", "n_probs": 2}),
}

CONTINUED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": (CHAT, "tags", HELLO),
    "limit": (CHAT, "tags", {**HELLO, "max_completion_tokens": 5}),
    "stop": (CHAT, "tags", {**HELLO, "stop": ["<five< <six", "<é€<🎈"]}),
    "text": (TEXT, "tags", {"prompt": "Say", "max_tokens": 7}),
    "native": (NATIVE, "tags", {"prompt": "Say"}),
    "native_limit": (NATIVE, "tags", {"prompt": "Say", "n_predict": 5}),
    "native_stop": (NATIVE, "tags", {"prompt": "Say", "stop": ["<five< <six", "<🎈."]}),
    "native_ids": (NATIVE, "plain", {"prompt": [1, 2, 3]}),
    "native_held": (NATIVE, "tags", {"prompt": [1, 2], "stop": ["<five< <six"]}),
}
"""Plain text, as tokens that are found in it again."""

SERVER = ("-c", "1024", "-np", "2", "--no-kv-unified", "--batch-size", "64")


@pytest.mark.parametrize("case", CASES)
def test_seam_replay_after_any_event_gives_the_calm_stream(
    case: str, llama_server: Path, tiny: TinyModels
) -> None:
    """Not one event more, less or other than without a death, but for durations."""
    for calm, joined in _joined(CASES[case], "replay", llama_server, tiny):
        assert joined == calm


@pytest.mark.parametrize("case", CONTINUED)
def test_seam_continuation_after_any_event_gives_the_calm_stream(
    case: str, any_build: Path, tiny: TinyModels
) -> None:
    """As a replay; a scripted model's next token depends on the last one alone."""
    for calm, joined in _joined(CONTINUED[case], "continue", any_build, tiny):
        assert joined == calm


def test_seam_continuation_of_thinking_gives_the_calm_text(
    any_build: Path, tiny: TinyModels
) -> None:
    """The template's line breaks around a thought count as tokens of the answer."""
    for calm, joined in _joined((CHAT, "thought", HELLO), "continue", any_build, tiny):
        assert joined[:-1] == calm[:-1]
        assert abs(_n_tokens(joined) - _n_tokens(calm)) <= 4


def _joined(
    case: tuple[str, str, dict[str, Any]], how: str, binary: Path, tiny: TinyModels
) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield the calm events and the joined ones for every event that a process can die after."""
    path, name, fields = case
    model = _model(name, tiny)
    body = requested(fields)
    with DyingServer(binary, model, *SERVER) as heir:
        calm = b"".join(heir.stream(path, body))
        for after in range(1, n_events(calm)):
            seam = Seam(path)
            with DyingServer(binary, model, *SERVER) as server:
                stream = until_killed(server, seam, path, body, after=after)
            if not seam.is_complete:
                ways = [how] if seam.has_delivered else ["replay"]
                stream += resumed(heir, seam, path, {**body, "cache_prompt": False}, ways)
            assert seam.is_complete
            _check_one_identity(stream)
            yield _events(path, calm), _events(path, stream)


def _model(name: str, tiny: TinyModels) -> Path:
    if name == "tags":
        return tiny.scripted(name, TAGS)
    if name == "thought":
        return tiny.scripted(name, THOUGHT, template=chat_template(thinking=True))
    made: Path = getattr(tiny, name)()
    return made


def _events(path: str, stream: bytes) -> list[Any]:
    """Return what the events of a stream say, in order of the answers."""
    found = [_said(event) for event in _payloads(stream) if "prompt_progress" not in event]
    if path == NATIVE:
        return found
    return sorted(found, key=lambda event: [c["index"] for c in event["choices"]] or [99])


def _said(event: Mapping[str, Any]) -> Any:
    varying = {"id_slot", "generation_settings", "cache_n", "prompt_n", "tokens_cached"}
    kept = {name: value for name, value in event.items() if name not in varying}
    said = comparable(kept)
    for usage in [said.get("usage") or {}]:
        usage.pop("prompt_tokens_details", None)
    return said


def _n_tokens(events: list[Any]) -> int:
    n: int = events[-1]["usage"]["completion_tokens"]
    return n


def _payloads(stream: bytes) -> list[dict[str, Any]]:
    lines = [line for line in stream.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line[6:]) for line in lines]


def _check_one_identity(stream: bytes) -> None:
    events = _payloads(stream)
    for member in set(IDENTITY) - {"created"}:
        assert len({event[member] for event in events if member in event}) <= 1


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
THOUGHT_FORM = r'root ::= "<think>\n" [a-z ]{20,30} "\n</think>\n\n" [^\x00]*'
ANSWERS: dict[str, dict[str, Any]] = {
    "chat": {},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"schema": WEATHER}}},
    "tool": {"tools": [TOOL], "tool_choice": "required", "logit_bias": [['{"', 30]]},
    "thinking": {"grammar": THOUGHT_FORM},
}


@pytest.mark.parametrize("pair", [("f16", "f16"), ("q8_0", "q4_0")], ids=":".join)
@pytest.mark.parametrize("kind", ANSWERS)
def test_seam_replay_of_a_real_model_is_exact(
    kind: str, pair: tuple[str, str], llama_server: Path, smollm2: Path, tmp_path: Path
) -> None:
    """At temperature 0 a fresh process says the same again, of any cache, early cut or late."""
    template = tmp_path / "template.jinja"
    template.write_text(chat_template(thinking=True, tools=True))
    flags = ("-ctk", pair[0], "-ctv", pair[1], "-fa", "on", "--chat-template-file", str(template))
    arguments = ("-c", "1024", "-np", "1", *flags)
    body = requested({**HELLO, **ANSWERS[kind], "max_tokens": 20, "cache_prompt": False})
    with DyingServer(llama_server, smollm2, *arguments) as heir:
        calm = b"".join(heir.stream(CHAT, body))
        for after in (3, n_events(calm) - 6):
            seam = Seam(CHAT)
            with DyingServer(llama_server, smollm2, *arguments) as server:
                stream = until_killed(server, seam, CHAT, body, after=after)
            stream += resumed(heir, seam, CHAT, body, ["replay"])
            assert _events(CHAT, stream) == _events(CHAT, calm)
