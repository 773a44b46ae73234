"""What becomes of prompts that are longer than the context, on both real llama-servers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import RunningKvsup
from tests.tiny import ANSWER, TinyModels

N_CTX = 256
N_KEEP = 4  # Ollama's default

TURN = "x" * 90
"""One token a letter, as all text but the model's own script."""

LONG = "x" * 300

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)

ALTERNATING = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ message.content }}{% endfor %}"
)

ECHO = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    model = tiny.scripted("echo", ["Yes", "."], template=ECHO)
    alternating = tiny.scripted("alternating", ["Yes", "."], template=ALTERNATING)
    models = {
        "alternating": f'model = "{alternating}"\nnum_ctx = {N_CTX}\nthreads = 1\n',
        "echo": f'model = "{model}"\nnum_ctx = {N_CTX}\nthreads = 1\n',
        "plain": f'model = "{tiny.plain()}"\nnum_ctx = {N_CTX}\nthreads = 1\n',
    }
    folder = tmp_path_factory.mktemp("truncation") / "kvsup"
    host = "max_loaded_models = 2\n"
    with RunningKvsup(folder, models=models, llama_server=any_build, host=host) as running:
        yield running
    assert running.children() == []


def _chat(kvsup: RunningKvsup, *texts: str, **more: Any) -> httpx.Response:
    """Ask with one message for each of ``ROLE:TEXT``."""
    messages = [dict(zip(("role", "content"), text.split(":"), strict=True)) for text in texts]
    body = {"model": "echo", "messages": messages, "stream": False, **more}
    return kvsup.client.post("/api/chat", json=body)


def _generate(kvsup: RunningKvsup, prompt: str, **more: Any) -> httpx.Response:
    body = {"model": "plain", "prompt": prompt, "stream": False, **more}
    return kvsup.client.post("/api/generate", json=body)


def _seen(answer: httpx.Response) -> int:
    """Return how many tokens of prompt a model has read."""
    assert answer.status_code == 200, answer.text
    number: int = answer.json()["prompt_eval_count"]
    return number


def _said(*roles: str) -> list[str]:
    return [f"{role}:{number}{TURN}" for number, role in enumerate(roles)]


def test_chat_too_long_loses_its_oldest_messages_until_it_fits(kvsup: RunningKvsup) -> None:
    """Only as many turns as need be, and not the system text nor the last message."""
    turns = _said("user", "assistant", "user", "assistant", "user")

    answer = _chat(kvsup, "system:S", *turns, "user:last")

    assert answer.json()["message"]["content"] == "Yes."
    assert _seen(answer) == len("S") + len(f"4{TURN}") + len("last")


def test_chat_too_long_fits_a_template_whose_turns_alternate(kvsup: RunningKvsup) -> None:
    """Such a template raises an error where the first message is not the user's."""
    turns = _said("user", "assistant", "user", "assistant", "user", "assistant")

    answer = _chat(kvsup, *turns, "user:last", model="alternating")

    assert _seen(answer) == 2 * len(f"4{TURN}") + len("last")


def test_chat_too_long_keeps_system_messages_wherever_they_stand(kvsup: RunningKvsup) -> None:
    """All of them."""
    turns = _said("user", "system", "user", "user")

    answer = _chat(kvsup, *turns, "user:last")

    assert _seen(answer) == 2 * len(f"1{TURN}") + len("last")


def test_chat_that_just_fits_is_whole_and_one_token_more_is_cut(kvsup: RunningKvsup) -> None:
    """A prompt leaves room for one token at least."""
    fits = _chat(kvsup, "user:first", "user:" + "x" * (N_CTX - 1 - len("first")))
    cut = _chat(kvsup, "user:first", "user:" + "x" * (N_CTX - len("first")))

    assert _seen(fits) == N_CTX - 1
    assert _seen(cut) == N_CTX - len("first")


def test_chat_too_long_is_cut_in_a_stream_too(kvsup: RunningKvsup) -> None:
    """The first byte comes after the cut."""
    answer = _chat(kvsup, *_said("user", "user", "user"), "user:last", stream=True)

    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == "Yes."
    assert lines[-1]["done"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "texts",
    [
        [f"user:{LONG}"],
        ["user:first", f"user:{LONG}"],
        [f"system:{LONG}", "user:first", "user:last"],
    ],
)
def test_chat_whose_last_message_or_system_text_is_too_long_is_400(
    kvsup: RunningKvsup, texts: list[str], *, stream: bool
) -> None:
    """Nothing is left that could be left out."""
    answer = _chat(kvsup, *texts, stream=stream)

    assert answer.status_code == 400
    assert "exceeds the available context size" in answer.json()["error"]


def test_chat_too_long_without_truncate_is_400(kvsup: RunningKvsup) -> None:
    """llama-server's text, without its JSON."""
    answer = _chat(kvsup, *_said("user", "user", "user"), truncate=False)

    assert answer.status_code == 400
    assert "exceeds the available context size" in answer.json()["error"]
    assert "{" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("options", "n_seen"),
    [
        ({}, N_CTX - (N_CTX - N_KEEP) // 2),
        ({"num_keep": 0}, N_CTX // 2),
        ({"num_keep": 56}, N_CTX - 100),
        ({"num_keep": 100_000}, N_CTX - 1),
        ({"num_keep": -1}, N_CTX - 1),
    ],
)
@pytest.mark.parametrize("more", [{"raw": True}, {"template": "{{ .Prompt }}"}, {}])
def test_prompt_too_long_keeps_its_start_and_its_end(
    kvsup: RunningKvsup, more: dict[str, Any], options: dict[str, int], n_seen: int
) -> None:
    """As many tokens at the start as ``num_keep`` says, then the last; negative is all."""
    answer = _generate(kvsup, LONG, options=options, **more)

    assert _seen(answer) == n_seen
    assert ANSWER.startswith(answer.json()["response"])


def test_context_of_a_prompt_that_was_cut_holds_what_was_read(kvsup: RunningKvsup) -> None:
    """So that a conversation by contexts goes on."""
    first = _generate(kvsup, "start" + LONG + "end", template="{{ .Prompt }}")
    second = _generate(kvsup, "x", context=first.json()["context"], template="{{ .Prompt }}")

    assert len(first.json()["context"]) == _seen(first) + len(ANSWER)
    assert _seen(second) == len(first.json()["context"]) + 1


@pytest.mark.parametrize("more", [{}, {"raw": True}, {"stream": True}])
def test_prompt_too_long_without_shift_is_400_in_ollama_s_words(
    kvsup: RunningKvsup, more: dict[str, Any]
) -> None:
    """Before the first byte."""
    answer = _generate(kvsup, LONG, shift=False, **more)

    assert (answer.status_code, answer.json()) == (400, {"error": TOO_LONG})


@pytest.mark.parametrize("more", [{}, {"shift": False}, {"raw": True}])
def test_prompt_too_long_without_truncate_is_400(kvsup: RunningKvsup, more: dict[str, Any]) -> None:
    """It goes as it is, and llama-server says why not."""
    answer = _generate(kvsup, LONG, truncate=False, **more)

    assert answer.status_code == 400
    assert "exceeds the available context size" in answer.json()["error"]


def test_prompt_that_fits_ignores_shift_and_truncate(kvsup: RunningKvsup) -> None:
    """They are for those that do not."""
    for more in ({"shift": False}, {"truncate": False}, {"shift": True}):
        assert _seen(_generate(kvsup, "x" * (N_CTX - 1), raw=True, **more)) == N_CTX - 1


def test_repeat_last_n_of_minus_one_is_the_whole_context(kvsup: RunningKvsup) -> None:
    """As Ollama has it; llama-server takes no negative one (b11434)."""
    answer = _generate(kvsup, "x", options={"repeat_last_n": -1, "repeat_penalty": 1.1})

    assert answer.status_code == 200, answer.text
    assert answer.json()["response"] == ANSWER
