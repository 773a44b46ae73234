"""Conversations with one system prompt keep a slot each, on the real llama-server."""

import textwrap
from pathlib import Path
from typing import Any

from tests.conftest import StartKvsup
from tests.running import RunningKvsup

SYSTEM = {"role": "system", "content": " ".join(f"Rule {n} holds." for n in range(60))}


def _turn(kvsup: RunningKvsup, messages: list[dict[str, str]], text: str) -> dict[str, Any]:
    """Say ``text``, keep what is answered, and return how much of the prompt was found."""
    messages.append({"role": "user", "content": text})
    body = {"model": "m", "messages": messages, "max_tokens": 8, "temperature": 0}
    answer = kvsup.client.post("/v1/chat/completions", json=body, timeout=100).raise_for_status()
    messages.append(answer.json()["choices"][0]["message"])
    timings: dict[str, Any] = answer.json()["timings"]
    return timings


def test_new_conversation_gets_an_empty_slot_and_pushes_no_other_out(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Each finds all of its earlier turns, though both begin with the same 300 tokens."""
    model = f'model = "{smollm2}"\nthreads = 1\nnum_ctx = 1024\nnum_parallel = 2\n'
    kvsup = start_kvsup({"m": model})
    red, blue = [dict(SYSTEM)], [dict(SYSTEM)]
    own = " ".join(f"word {n}" for n in range(40))

    read = {
        "red": _turn(kvsup, red, f"Red. {own}"),
        "blue": _turn(kvsup, blue, f"Blue. {own}"),
    }
    again = {"red": _turn(kvsup, red, "Why?"), "blue": _turn(kvsup, blue, "Why?")}

    for name, turn in again.items():
        n_known = read[name]["cache_n"] + read[name]["prompt_n"]
        assert turn["cache_n"] >= n_known - 1, f"{name}: {read} {again}"
    assert read["blue"]["cache_n"] < 20, "it got a slot of its own"


def test_messages_of_the_model_make_no_two_conversations_one(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """They open alike with a user's message, and yet the second gets a slot of its own."""
    shots = f"""
    messages = [
        {{ role = "user", content = "{SYSTEM["content"]}" }},
        {{ role = "assistant", content = "Yes." }},
    ]
    """
    model = f'model = "{smollm2}"\nthreads = 1\nnum_ctx = 1024\nnum_parallel = 2\n'
    kvsup = start_kvsup({"m": model + textwrap.dedent(shots)})
    red: list[dict[str, str]] = []
    blue: list[dict[str, str]] = []

    read = [_turn(kvsup, red, "I am red."), _turn(kvsup, blue, "I am blue.")]
    again = [_turn(kvsup, red, "Why?"), _turn(kvsup, blue, "Why?")]

    assert all(turn["prompt_n"] > 200 for turn in read), "each into an empty slot"
    for first, second in zip(read, again, strict=True):
        assert second["cache_n"] >= first["cache_n"] + first["prompt_n"] - 1


def test_third_conversation_of_two_slots_is_served(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """Once no slot is empty llama-server chooses, as it does for one that names a slot itself."""
    model = f'model = "{smollm2}"\nthreads = 1\nnum_ctx = 1024\nnum_parallel = 2\n'
    kvsup = start_kvsup({"m": model})
    talks = [[dict(SYSTEM)] for _ in range(4)]

    found = [_turn(kvsup, talk, f"I am number {n}.") for n, talk in enumerate(talks)]

    assert [turn["cache_n"] > 200 for turn in found] == [False, False, True, True]
