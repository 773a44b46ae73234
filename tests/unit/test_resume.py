"""How a broken answer goes on, and what its continuation asks for."""

import itertools
import json
from typing import Any

import pytest

from kvsup.llama.resume import (
    MAX_REPLAY_S,
    Continue,
    Facts,
    Mode,
    Replay,
    choose,
    continued_body,
    facts,
    n_answers,
    obstacle,
)
from kvsup.llama.transcript import CHAT, TEXT, Transcript

NATIVE = "/completion"
HELLO = {"messages": [{"role": "user", "content": "Say hello."}]}
MODES: tuple[Mode, ...] = ("auto", "replay", "continue", "off")


def _delivered(path: str, *events: dict[str, Any]) -> Transcript:
    transcript = Transcript(path)
    for event in events:
        transcript.add(b"data: %b\n\n" % json.dumps(event).encode())
    return transcript


def _chat(*deltas: dict[str, Any], finish: str | None = None) -> Transcript:
    made = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    return _delivered(CHAT, *made, *([last] if finish else []))


def _native(*pieces: tuple[str, int]) -> Transcript:
    return _delivered(
        NATIVE,
        *(
            {"content": text, "tokens": [token], "stop": False, "tokens_predicted": n}
            for n, (text, token) in enumerate(pieces, start=1)
        ),
    )


AB = ({"role": "assistant", "content": None}, {"content": "a"}, {"content": "b"})

ALL_FACTS = [
    Facts(
        has_delivered=has_delivered,
        is_readable=is_readable,
        can_continue=can_continue,
        can_replay=can_replay,
        n_fruitless=n_fruitless,
        n_delivered_tokens=100,
        tokens_per_s=tokens_per_s,
    )
    for has_delivered, is_readable, can_continue, can_replay in itertools.product(
        (False, True), repeat=4
    )
    for n_fruitless in (0, 1, 2)
    for tokens_per_s in (None, 10.0, 1000.0)
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("known", [known for known in ALL_FACTS if not known.has_delivered])
def test_choose_client_that_has_had_nothing_gets_a_replay(mode: Mode, known: Facts) -> None:
    """In any mode: there is nothing to compare, and nothing to be seen."""
    assert choose(mode, known) == Replay()


@pytest.mark.parametrize("known", [known for known in ALL_FACTS if known.has_delivered])
def test_choose_never_takes_a_way_that_is_closed(known: Facts) -> None:
    """A replay that diverged is not repeated, and nothing unreadable is resumed."""
    chosen = {mode: choose(mode, known) for mode in MODES}

    assert chosen["off"] is None
    assert not isinstance(chosen["replay"], Continue)
    for how in chosen.values():
        assert known.can_continue or not isinstance(how, Continue)
        assert known.can_replay or not isinstance(how, Replay)
        assert known.is_readable or how is None
    if known.is_readable and (known.can_continue or known.can_replay):
        assert chosen["auto"] is not None


@pytest.mark.parametrize(
    ("known", "mode", "expected"),
    [
        ({}, "auto", Replay()),
        ({"can_continue": True}, "auto", Replay()),
        ({"can_continue": True, "can_replay": False}, "auto", Continue()),
        ({"can_continue": True, "n_fruitless": 2}, "auto", Continue()),
        ({"n_fruitless": 2}, "auto", Replay()),
        ({"can_continue": True, "n_delivered_tokens": 99, "tokens_per_s": 10}, "auto", Continue()),
        ({"can_continue": True, "n_delivered_tokens": 49, "tokens_per_s": 10}, "auto", Replay()),
        ({"n_delivered_tokens": 9999, "tokens_per_s": 1}, "auto", Replay()),
        ({"can_replay": False}, "auto", None),
        ({"can_continue": True}, "continue", Continue()),
        ({"can_continue": True, "is_whole": True}, "continue", Continue(is_whole=True)),
        ({}, "continue", Replay()),
        ({"can_continue": True, "n_fruitless": 9}, "replay", Replay()),
        ({"can_continue": True, "can_replay": False}, "replay", None),
    ],
)
def test_choose_takes_what_is_exact_unless_it_costs_too_much(
    known: dict[str, Any], mode: Mode, expected: object
) -> None:
    """Replays are exact; continuations are for long, diverging or unlucky plain text."""
    assert choose(mode, Facts(has_delivered=True, **known)) == expected


def test_facts_of_slow_answer_tell_how_long_a_replay_takes() -> None:
    """By the tokens delivered and the speed measured."""
    known = facts(CHAT, HELLO, _chat(*AB), tokens_per_s=0.2)

    assert known.replay_s == 10.0 > MAX_REPLAY_S
    assert known.has_delivered
    assert known.can_continue
    assert not known.is_whole


@pytest.mark.parametrize(
    ("body", "transcript", "is_whole"),
    [
        ({**HELLO, "max_tokens": 3}, _chat(*AB), False),
        ({**HELLO, "max_tokens": 2}, _chat(*AB), True),
        ({**HELLO, "max_tokens": -1}, _chat(*AB), False),
        (HELLO, _chat(*AB, finish="stop"), True),
    ],
)
def test_facts_of_whole_text_say_that_only_its_end_is_missing(
    body: dict[str, Any], transcript: Transcript, *, is_whole: bool
) -> None:
    """Then one token is asked for, and dropped."""
    assert facts(CHAT, body, transcript).is_whole is is_whole
    assert continued_body(CHAT, body, transcript).get("n_predict") == (
        1 if is_whole or body.get("max_tokens") == 3 else None
    )


def test_continued_chat_ends_with_the_delivered_text() -> None:
    """With both flags, and the rest of the limit under the name that wins."""
    body = {**HELLO, "max_tokens": 10, "max_completion_tokens": 8, "seed": 7}

    assert continued_body(CHAT, body, _chat(*AB)) == {
        "messages": [*HELLO["messages"], {"role": "assistant", "content": "ab"}],
        "continue_final_message": "content",
        "add_generation_prompt": False,
        "n_predict": 6,
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("deltas", "content", "kind"),
    [
        (({"reasoning_content": "hm"},), "", "reasoning_content"),
        (({"reasoning_content": "hm"}, {"content": "a"}), "a", "content"),
    ],
)
def test_continued_chat_goes_on_with_the_thought_or_behind_it(
    deltas: tuple[dict[str, Any], ...], content: str, kind: str
) -> None:
    """As ``reasoning_content``, which llama-server puts into the template's tags."""
    body = continued_body(CHAT, HELLO, _chat(*deltas))

    assert body["messages"][-1] == {
        "role": "assistant", "content": content, "reasoning_content": "hm",
    }  # fmt: skip
    assert body["continue_final_message"] == kind


@pytest.mark.parametrize(
    ("prompt", "stop", "expected"),
    [
        ("p", [], ["p", 1, 2]),
        ("", [], "ab"),
        (["p"], [], ["p", 1, 2]),
        ([7, 8], [], [7, 8, 1, 2]),
        ([7, "p"], [], [7, "p", 1, 2]),
        ("p", ["x"], "pab"),
        ([7, 8], ["x"], [7, 8, "ab"]),
        ({"prompt_string": "p", "multimodal_data": ["x"]}, [],
         {"prompt_string": "pab", "multimodal_data": ["x"]}),
    ],
)  # fmt: skip
def test_continued_prompt_ends_with_tokens_or_text(
    prompt: object, stop: list[str], expected: object
) -> None:
    """The ids where all are known and none can be of a stop word; silent ones are said again."""
    body = {"prompt": prompt, "stop": stop}
    transcript = _native(("a", 1), ("b", 2), ("", 3))

    assert continued_body(NATIVE, body, transcript)["prompt"] == expected


def test_continued_prompt_with_a_hidden_token_ends_with_text() -> None:
    """A character of two tokens has one event, so an id is missing."""
    transcript = _delivered(
        NATIVE, {"content": "é", "tokens": [2], "stop": False, "tokens_predicted": 2}
    )

    body = continued_body(NATIVE, {"prompt": "p", "n_predict": 5}, transcript)

    assert body == {"prompt": "pé", "n_predict": 3}


@pytest.mark.parametrize(
    ("path", "fields", "why"),
    [
        (CHAT, {"tools": [{}]}, "tools"),
        (CHAT, {"response_format": {"type": "json_object"}}, "schema"),
        (CHAT, {"grammar": "root ::= x"}, "grammar"),
        (CHAT, {"logprobs": True}, "probabilities"),
        (CHAT, {"n": 2}, "several answers"),
        (CHAT, {"messages": []}, "no messages"),
        (CHAT, {"messages": [{"role": "assistant", "content": "x"}]}, "itself goes on"),
        (CHAT, {"add_generation_prompt": False}, "start of the answer"),
        (TEXT, {"prompt": ["a", "b"]}, "one prompt"),
        (TEXT, {"prompt": None}, "one prompt"),
        (TEXT, {"prompt": "p", "echo": True}, "echoed"),
        (NATIVE, {"prompt": "p", "n_probs": 2}, "probabilities"),
        (NATIVE, {"prompt": [[1, 2], [3]]}, "one prompt"),
        (NATIVE, {"prompt": "p", "json_schema": {"type": "object"}}, "schema"),
        ("/infill", {"prompt": "p"}, "route"),
        ("/v1/responses", {"input": "p"}, "route"),
    ],
)
def test_obstacle_of_what_is_no_plain_text_is_named(
    path: str, fields: dict[str, Any], why: str
) -> None:
    """Grammars and parsers begin anew behind a prompt, so they would go wrong."""
    transcript = _native(("a", 1)) if path == NATIVE else _chat(*AB)
    body = {**HELLO, **fields}

    assert why in (obstacle(path, body, transcript) or "")
    with pytest.raises(ValueError, match=why):
        continued_body(path, body, transcript)


@pytest.mark.parametrize(
    ("deltas", "fields", "why"),
    [
        ((AB[0],), {}, "no text"),
        (({"content": "<think>\nhm"},), {}, "thinking stands in its text"),
        (({"tool_calls": [{"index": 0, "function": {"name": "f"}}]},), {}, "tool call"),
        (({"reasoning_content": "hm"},), {"reasoning_budget_tokens": 9}, "budget"),
        (({"reasoning_content": "hm"},), {"thinking_budget_tokens": 0}, "budget"),
    ],
)
def test_obstacle_of_what_was_delivered_is_named(
    deltas: tuple[dict[str, Any], ...], fields: dict[str, Any], why: str
) -> None:
    """An empty text is no prefill, and a tool call cannot be one."""
    assert why in (obstacle(CHAT, {**HELLO, **fields}, _chat(*deltas)) or "")


@pytest.mark.parametrize("budget", [-1, None, "64"])
def test_obstacle_of_a_budget_that_limits_nothing_is_none(budget: object) -> None:
    """Nor is one that is no number."""
    body = {**HELLO, "reasoning_budget_tokens": budget}

    assert obstacle(CHAT, body, _chat({"reasoning_content": "hm"})) is None


@pytest.mark.parametrize("fields", [{"tools": []}, {"n": 1}, {"response_format": {"type": "text"}},
                                    {"logprobs": False}, {"grammar": None}])  # fmt: skip
def test_obstacle_of_members_that_ask_for_nothing_is_none(fields: dict[str, Any]) -> None:
    """Clients send defaults along."""
    assert obstacle(CHAT, {**HELLO, **fields}, _chat(*AB)) is None


@pytest.mark.parametrize(
    ("body", "n"),
    [
        ({"prompt": "p"}, 1),
        ({"prompt": [1, 2]}, 1),
        ({"prompt": [1, "p"]}, 1),
        ({"prompt": ["p", "q"]}, 2),
        ({"prompt": [[1, 2], [3], "p"], "n_cmpl": 2}, 6),
        ({"prompt": "p", "n": 3}, 3),
        ({"input_prefix": "p"}, 1),
    ],
)
def test_n_answers_are_those_of_each_prompt(body: dict[str, Any], n: int) -> None:
    """A list of texts and tokens is one prompt, a list of texts or of lists is several."""
    assert n_answers("/completion", json.dumps(body).encode()) == n
    assert n_answers("/v1/completions", json.dumps(body).encode()) == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"n": "three"}'])
def test_n_answers_of_what_cannot_be_read_is_one(body: bytes) -> None:
    """llama-server says what is wrong with it."""
    assert n_answers("/completion", body) == 1
