"""A llama-server is killed under its requests: what a client reads is what a calm run gives."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from tests.conftest import StartKvsup
from tests.running import RunningKvsup, eventually

N_TOKENS = 60
QUESTION = "Write a short story about a lighthouse keeper and a storm."
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tale": {"type": "string"}},
    "required": ["name", "tale"],
}


def model(smollm2: Path, rest: str = "") -> str:
    """Return the file of a model with an exact cache."""
    return f'model = "{smollm2}"\nthreads = 1\nnum_ctx = 1024\nnum_parallel = 2\n{rest}'


def kill(kvsup: RunningKvsup) -> None:
    """Send SIGKILL to the llama-server of model ``m``."""
    psutil.Process(int(kvsup.models()["m"]["pid"])).send_signal(signal.SIGKILL)


Texts = Callable[[Iterator[str]], Iterator[str]]


def ndjson(member: Callable[[Any], str]) -> Texts:
    """Return what reads the texts of Ollama's lines."""

    def texts(lines: Iterator[str]) -> Iterator[str]:
        is_done = False
        for line in lines:
            answer = msgspec.json.decode(line)
            assert "error" not in answer, line
            yield member(answer)
            is_done = answer["done"]
        assert is_done

    return texts


def sse(member: Callable[[Any], str | None]) -> Texts:
    """Return what reads the texts of OpenAI's events."""

    def texts(lines: Iterator[str]) -> Iterator[str]:
        ids = set()
        last = ""
        for line in lines:
            if not line:
                continue
            last = line.removeprefix("data: ")
            if last != "[DONE]":
                event = msgspec.json.decode(last)
                ids.add(event["id"])
                for choice in event["choices"]:
                    yield member(choice) or ""
        assert last == "[DONE]"
        assert len(ids) == 1

    return texts


def anthropic(lines: Iterator[str]) -> Iterator[str]:
    """Read the texts of Anthropic's events."""
    kinds = []
    for line in lines:
        if line.startswith("data: "):
            event = msgspec.json.decode(line[6:])
            kinds.append(event["type"])
            yield event.get("delta", {}).get("text", "")
    assert (kinds[0], kinds[-1], kinds.count("message_start")) == (
        "message_start",
        "message_stop",
        1,
    )


MESSAGES = [{"role": "user", "content": QUESTION}]
OLLAMA = {"model": "m", "options": {"temperature": 0, "num_predict": N_TOKENS}}
OPENAI = {"model": "m", "stream": True, "temperature": 0, "max_tokens": N_TOKENS}
CASES: dict[str, tuple[str, dict[str, Any], Texts]] = {
    "chat": (
        "/api/chat",
        {**OLLAMA, "messages": MESSAGES},
        ndjson(lambda a: a["message"]["content"]),
    ),
    "generate": ("/api/generate", {**OLLAMA, "prompt": QUESTION}, ndjson(lambda a: a["response"])),
    "raw": (
        "/api/generate",
        {**OLLAMA, "prompt": "Once upon a time", "raw": True},
        ndjson(lambda a: a["response"]),
    ),
    "schema": (
        "/api/chat",
        {**OLLAMA, "messages": MESSAGES, "format": SCHEMA},
        ndjson(lambda a: a["message"]["content"]),
    ),
    "chat.completions": (
        "/v1/chat/completions",
        {**OPENAI, "messages": MESSAGES},
        sse(lambda c: c["delta"].get("content")),
    ),
    "messages": ("/v1/messages", {**OPENAI, "messages": MESSAGES}, anthropic),
    "completions": (
        "/v1/completions",
        {**OPENAI, "prompt": "Once upon a time"},
        sse(lambda c: c["text"]),
    ),
}


def read(kvsup: RunningKvsup, case: str, *, kills_at: tuple[int, ...] = (), **more: Any) -> str:
    """Return the whole text of a stream whose llama-server is killed after some of its pieces.

    It starts in a fresh process: one that has the whole prompt in its KV cache evaluates the last
    token alone, by other kernels than a prompt, so that its text may differ from a replay's.
    """
    if kvsup.models()["m"]["state"] == "ready":
        kill(kvsup)
    path, body, texts = CASES[case]
    pieces: list[str] = []
    with kvsup.client.stream("POST", path, json={**body, **more}, timeout=100) as stream:
        assert stream.status_code == 200, stream.read()
        for text in texts(stream.iter_lines()):
            pieces += [text] if text else []
            if text and len(pieces) in kills_at:
                kill(kvsup)
    return "".join(pieces)


@pytest.mark.parametrize("case", CASES)
def test_kill_in_a_stream_is_not_seen_by_its_client(
    start_kvsup: StartKvsup, smollm2: Path, any_build: Path, case: str
) -> None:
    """Early, in the middle and late: at temperature 0 each text is that of the calm run."""
    kvsup = start_kvsup({"m": model(smollm2, 'resume = "replay"')}, llama_server=any_build)
    calm = read(kvsup, case)

    for kills_at in ((1,), (7,), (20, 30), (N_TOKENS - 12,)):
        assert read(kvsup, case, kills_at=kills_at) == calm, kills_at


def test_continuations_join_without_a_gap(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """The text goes on behind what was delivered, to the same number of tokens."""
    kvsup = start_kvsup({"m": model(smollm2, 'resume = "continue"')})
    calm = {case: read(kvsup, case) for case in ("chat", "raw", "completions")}

    for case, text in calm.items():
        joined = read(kvsup, case, kills_at=(25,))
        assert joined[:60] == text[:60]
    assert kvsup.log().count("a request was continued") == 3


def test_a_drawn_answer_goes_on_as_it_began(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """A request without a seed gets one, so even at temperature 1 nothing is said twice."""
    kvsup = start_kvsup({"m": model(smollm2)})

    for kill_at in (3, 17, 29):
        options = {"temperature": 1.0, "num_predict": N_TOKENS, "ignore_eos": True}
        text = read(kvsup, "chat", kills_at=(kill_at,), options=options)
        assert text
    log = kvsup.log()
    assert log.count("a request was resumed") == 3, log


def test_two_streams_and_a_folded_answer_survive_one_kill(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Whoever ran beside the one that is looked at comes through as well."""
    kvsup = start_kvsup({"m": model(smollm2)})
    body = {**CASES["raw"][1], "stream": False}

    with ThreadPoolExecutor() as clients:
        other = clients.submit(kvsup.client.post, "/api/generate", json=body)
        eventually(lambda: kvsup.models()["m"]["in_flight"] == 1)
        assert read(kvsup, "chat", kills_at=(15,))

        answer = other.result(timeout=100).json()
    assert answer["done_reason"] == "length"
    assert answer["eval_count"] == N_TOKENS


def test_resume_off_ends_the_stream_with_an_error(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """It says what happened, in the API's shape, and does not end as if it were whole."""
    kvsup = start_kvsup({"m": model(smollm2, 'resume = "off"')})
    lines = []

    path, body, _ = CASES["chat"]
    with kvsup.client.stream("POST", path, json=body) as stream:
        for line in stream.iter_lines():
            lines.append(msgspec.json.decode(line))
            if len(lines) == 5:
                kill(kvsup)

    assert "llama-server ended in the middle of this answer" in lines[-1]["error"]
    assert not any(line.get("done") for line in lines)
    assert "a request was lost" in kvsup.log()


def test_a_killed_llama_server_is_never_given_up(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """Ten kills in one stream: the client sees one stream, the model stays in service."""
    kvsup = start_kvsup({"m": model(smollm2, 'resume = "replay"\n[restart]\nmax_deaths = 3')})
    calm = read(kvsup, "raw")

    assert read(kvsup, "raw", kills_at=tuple(range(2, 42, 4))) == calm
    assert kvsup.models()["m"]["state"] == "ready"


def test_sigterm_from_outside_in_the_middle_of_a_stream_loses_nothing(
    start_kvsup: StartKvsup, smollm2: Path, any_build: Path
) -> None:
    """A llama-server that was told to end takes no connection any more, and is replaced."""
    kvsup = start_kvsup({"m": model(smollm2, 'resume = "replay"')}, llama_server=any_build)
    calm = read(kvsup, "raw")
    pid = int(kvsup.models()["m"]["pid"])
    path, body, texts = CASES["raw"]
    pieces: list[str] = []

    with kvsup.client.stream("POST", path, json=body, timeout=100) as stream:
        for text in texts(stream.iter_lines()):
            pieces.append(text)
            if len(pieces) == 5:
                psutil.Process(pid).terminate()

    assert "".join(pieces) == calm
    assert read(kvsup, "raw") == calm
    eventually(lambda: not psutil.pid_exists(pid))
