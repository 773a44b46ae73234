"""Conversations go on where they were, whatever happened to their llama-server in between."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest

from kvsup.units import format_bytes
from tests.conftest import StartKvsup
from tests.running import RunningKvsup, eventually

pytestmark = pytest.mark.timeout(180)

TEXT = " ".join(f"Item {n} is a {word}." for n in range(18) for word in ("cup", "pen", "hat"))
GREEDY = {"temperature": 0, "seed": 1, "num_predict": 16}


def model(path: Path, rest: str = "") -> str:
    """Return the file of the demo model, at its steadiest."""
    return f'model = "{path}"\nthreads = 1\nnum_ctx = 1024\n{rest}'


def chat(kvsup: RunningKvsup, name: str, *turns: str) -> tuple[str, dict[str, int]]:
    """Have the next turn of a conversation that begins with a long text.

    Returns what the model says, and what kvsup says that it did for it.
    """
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate((TEXT, *turns))]
    body = {"model": name, "messages": messages, "options": GREEDY, "stream": False}
    answer = kvsup.client.post("/api/chat", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["message"]["content"], answer.json().get("kvsup", {})


def unload(kvsup: RunningKvsup, name: str) -> None:
    """Unload a model as clients of Ollama do, and wait until it is gone."""
    kvsup.client.post("/api/generate", json={"model": name, "keep_alive": 0}).raise_for_status()
    eventually(lambda: kvsup.models()[name]["state"] == "stopped")


def saved(kvsup: RunningKvsup) -> list[Path]:
    """Return the conversations that are kept."""
    return sorted((kvsup.state / "kv").rglob("*.kv"))


@pytest.mark.parametrize("pair", ["f16:f16", "q8_0:q4_0"])
def test_conversation_outlives_an_unload_of_its_model(
    start_kvsup: StartKvsup, smollm2: Path, pair: str
) -> None:
    """The text is the one that it says without the unload, and nearly nothing is read."""
    kvsup = start_kvsup({"m": model(smollm2, f'kv_cache_type = "{pair}"\n')})
    said, done = chat(kvsup, "m")
    assert "restored_tokens" not in done
    calm, done = chat(kvsup, "m", said, "Which item is last?")
    assert "restored_tokens" not in done
    unload(kvsup, "m")
    (file,) = saved(kvsup)
    assert file.stat().st_mode & 0o777 == 0o600

    again, done = chat(kvsup, "m", said, "Which item is last?")

    assert done["restored_tokens"] > 300
    assert again == calm


def test_what_is_kept_of_a_model_and_what_it_saved_is_told(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """By ``/api/ps``, ``/kvsup/models`` and ``kvsup ps``, over all processes of the model."""
    kvsup = start_kvsup({"m": model(smollm2), "other": model(smollm2)})
    chat(kvsup, "m")
    eventually(lambda: kvsup.models()["m"]["prompt_tokens"])  # the log may lag behind the answer
    n_prompt = kvsup.models()["m"]["prompt_tokens"]
    (running,) = kvsup.client.get("/api/ps").json()["models"]
    assert "kept" not in running
    assert running["cache_hit_rate"] < 0.1
    unload(kvsup, "m")

    _, done = chat(kvsup, "m")

    eventually(lambda: kvsup.models()["m"]["prompt_tokens"] == 2 * n_prompt)
    (running,) = kvsup.client.get("/api/ps").json()["models"]
    (file,) = saved(kvsup)
    n_restored = done["restored_tokens"]
    assert running["kept"] == {
        "conversations": 1,
        "bytes": file.stat().st_size,
        "restored_tokens": n_restored,
    }
    listed = kvsup.models()
    assert listed["m"]["restored_tokens"] == n_restored
    n_cached = listed["m"]["cache_hit_rate"] * listed["m"]["prompt_tokens"]
    assert abs(n_cached - n_restored) < 20
    assert running["cache_hit_rate"] == listed["m"]["cache_hit_rate"]
    assert listed["other"]["kept_conversations"] == 0
    assert listed["other"]["cache_hit_rate"] is None
    size = format_bytes(file.stat().st_size)
    assert (
        f"m: 1 conversation kept ({size}), {n_restored} tokens restored" in kvsup.cli("ps").stdout
    )


def test_conversation_outlives_two_swaps(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """A, then B, then A: what A had read is not read again, and B's is kept as well."""
    kvsup = start_kvsup({"a": model(smollm2), "b": model(smollm2)}, host="max_loaded_models = 1\n")
    for name in ("a", "b"):
        assert "restored_tokens" not in chat(kvsup, name)[1]

    for name in ("a", "b"):
        assert chat(kvsup, name)[1]["restored_tokens"] > 300


def kill_llama_server(kvsup: RunningKvsup) -> None:
    """Kill it as the kernel would."""
    psutil.Process(int(kvsup.models()["m"]["pid"])).kill()


def restart_kvsup(kvsup: RunningKvsup) -> None:
    """End kvsup politely and start it anew."""
    kvsup.stop()
    kvsup.start()


def kill_kvsup(kvsup: RunningKvsup) -> None:
    """Kill kvsup and start it anew."""
    kvsup.client.close()
    os.kill(kvsup.process.pid, signal.SIGKILL)
    kvsup.process.wait()
    (kvsup.state / "kvsup.url").unlink()
    kvsup.start()


@pytest.mark.parametrize("end", [kill_llama_server, restart_kvsup, kill_kvsup])
def test_conversation_outlives_an_end_that_nobody_announced(
    start_kvsup: StartKvsup, smollm2: Path, end: Callable[[RunningKvsup], None]
) -> None:
    """It was saved when enough was new and nobody wanted anything."""
    kvsup = start_kvsup({"m": model(smollm2, "checkpoint_after_tokens = 300\n")})
    chat(kvsup, "m")
    eventually(lambda: saved(kvsup))

    end(kvsup)

    assert chat(kvsup, "m")[1]["restored_tokens"] > 300
    assert chat(kvsup, "m")[1].get("restored_tokens") is None


@pytest.mark.parametrize("pair", ["f16:f16", "q8_0:q4_0"])
def test_kill_in_an_answer_to_a_long_prompt_costs_no_second_reading(
    start_kvsup: StartKvsup, smollm2: Path, pair: str
) -> None:
    """The prompt was saved when it had been read, before its answer went on."""
    settings = f'checkpoint_after_tokens = 300\nkv_cache_type = "{pair}"\n'
    kvsup = start_kvsup({"m": model(smollm2, settings)})
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": f"{TEXT} Count the items."}],
        "options": GREEDY | {"num_predict": 60},
    }

    def streamed(*, kills: bool) -> tuple[str, dict[str, Any]]:
        """Return the text and the last object."""
        lines = []
        with kvsup.client.stream("POST", "/api/chat", json=body) as answer:
            for line in answer.iter_lines():
                lines.append(json.loads(line))
                if kills and len(lines) == 5:
                    kill_llama_server(kvsup)
        return "".join(line["message"]["content"] for line in lines), lines[-1]

    calm, calm_end = streamed(kills=False)
    eventually(lambda: kvsup.models()["m"]["prompt_tokens"])
    assert kvsup.models()["m"]["cache_hit_rate"] < 0.1, "that it ran twice is no hit"
    unload(kvsup, "m")
    for file in saved(kvsup):
        file.unlink()
    log_before = kvsup.log()
    broken, broken_end = streamed(kills=True)
    log = kvsup.log().removeprefix(log_before)

    assert log.index("saved ") < log.index("signal SIGKILL") < log.index("took up ")
    assert broken == calm
    for count in ("prompt_eval_count", "eval_count", "done_reason"):
        assert broken_end[count] == calm_end[count], count


def test_client_that_leaves_behind_a_long_prompt_takes_nothing_of_the_hit_rate(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Its request did not come to its end; the next one found all of its prompt read."""
    kvsup = start_kvsup({"m": model(smollm2, "checkpoint_after_tokens = 300\n")})
    body = {"model": "m", "messages": [{"role": "user", "content": f"{TEXT} Count."}]}
    with kvsup.client.stream("POST", "/api/chat", json=body) as answer:
        next(answer.iter_lines())
    eventually(lambda: kvsup.models()["m"]["in_flight"] == 0)
    assert len(saved(kvsup)) == 1

    kvsup.client.post("/api/chat", json={**body, "stream": False, "options": GREEDY})

    eventually(lambda: kvsup.models()["m"]["prompt_tokens"])
    assert kvsup.models()["m"]["cache_hit_rate"] > 0.9


CHAT = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 8, "temperature": 0}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/messages", CHAT),
        ("/v1/completions", {"prompt": TEXT, "max_tokens": 8, "temperature": 0}),
        ("/api/generate", {"prompt": TEXT, "options": GREEDY}),
    ],
)
def test_conversation_of_any_api_is_kept_and_told_in_a_header(
    start_kvsup: StartKvsup, smollm2: Path, path: str, body: dict[str, Any]
) -> None:
    """What is kept is tokens, so it does not matter who asked for them."""
    kvsup = start_kvsup({"m": model(smollm2)})
    ask: dict[str, Any] = {"model": "m", **body}
    first = kvsup.client.post(path, json=ask)
    unload(kvsup, "m")

    second = kvsup.client.post(path, json=ask)

    assert first.status_code == second.status_code == 200
    assert "x-kvsup-restored" not in first.headers
    assert int(second.headers["x-kvsup-restored"].removeprefix("tokens=")) > 300


def test_kept_conversations_are_listed_and_removed(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """By the command line, with kvsup running and without."""
    kvsup = start_kvsup({"a": model(smollm2), "b": model(smollm2)})
    for name in ("a", "b"):
        chat(kvsup, name)
        unload(kvsup, name)

    def listed() -> dict[str, int]:
        done = kvsup.cli("kv", "list", "--json")
        assert done.returncode == 0, done.stderr
        return {one["model"]: one["tokens"] for one in json.loads(done.stdout)}

    assert {name: n > 300 for name, n in listed().items()} == {"a": True, "b": True}
    assert kvsup.client.get("/kvsup/kv", params={"model": "nobody"}).status_code == 404
    assert kvsup.cli("kv", "clear", "nobody").returncode == 1
    assert "removed" in kvsup.cli("kv", "clear", "a").stdout
    assert list(listed()) == ["b"]
    kvsup.stop()
    assert list(listed()) == ["b"]
    assert "removed" in kvsup.cli("kv", "clear").stdout
    assert listed() == {}
    assert saved(kvsup) == []


def test_deleted_model_leaves_no_conversation(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """Neither what was kept before nor what its llama-server holds still."""
    kvsup = start_kvsup({"m": model(smollm2)})
    chat(kvsup, "m")
    unload(kvsup, "m")
    assert saved(kvsup)
    chat(kvsup, "m")

    kvsup.client.request("DELETE", "/api/delete", json={"model": "m"}).raise_for_status()

    eventually(lambda: not kvsup.children())
    assert saved(kvsup) == []


def test_model_that_keeps_nothing_leaves_nothing(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """``warm_swap = false``: no prompt lies on disk."""
    kvsup = start_kvsup({"m": model(smollm2, "warm_swap = false\n")})
    chat(kvsup, "m")
    unload(kvsup, "m")

    assert saved(kvsup) == []
    assert chat(kvsup, "m")[1] == {}


def test_disk_that_is_not_there_costs_only_the_warmth(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """A folder that cannot be made is told once a load, and the model serves."""
    kvsup = start_kvsup({"m": model(smollm2)})
    (kvsup.state / "kv").write_text("in the way")

    chat(kvsup, "m")
    unload(kvsup, "m")

    assert chat(kvsup, "m")[1] == {}
    assert "no conversation is kept" in kvsup.log()


def test_requests_at_once_of_kept_conversations_are_all_answered(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Two slots, three conversations: whichever is restored, each gets its own answer."""
    kvsup = start_kvsup({"m": model(smollm2, "num_parallel = 2\n")})
    turns = ["Name a cup.", "Name a pen.", "Name a hat."]

    def ask(turn: str) -> dict[str, Any]:
        return {
            "model": "m",
            "messages": [{"role": "user", "content": f"{turn} {TEXT}"}],
            "max_tokens": 8,
            "temperature": 0,
            "seed": 1,
        }

    calm = [kvsup.client.post("/v1/chat/completions", json=ask(t)).json() for t in turns]
    unload(kvsup, "m")

    async def everything() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=kvsup.url, timeout=100) as client:
            answers: dict[str, dict[str, Any]] = {}

            async def one(turn: str) -> None:
                reply = await client.post("/v1/chat/completions", json=ask(turn))
                answers[turn] = reply.raise_for_status().json()

            async with anyio.create_task_group() as tasks:
                for turn in turns:
                    tasks.start_soon(one, turn)
        return [answers[turn] for turn in turns]

    again = anyio.run(everything)

    def texts(answers: list[dict[str, Any]]) -> list[str]:
        return [str(answer["choices"][0]["message"]["content"]) for answer in answers]

    assert all(texts(again))
    assert len(texts(again)) == len(texts(calm)) == 3
