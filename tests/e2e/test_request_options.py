"""Load-time options and KV cache types that a request asks for, over every API, on both builds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import RunningKvsup, eventually

BASE = 'model = "{path}"\nthreads = 1\nnum_ctx = 256\n'
MODELS = {
    "growing": BASE,
    "clamping": BASE + 'on_bigger_request = "clamp"\n',
    "refusing": BASE + 'on_bigger_request = "refuse"\n',
    "strict": BASE + "allow_request_kv = false\n",
    "mixed": BASE + 'embedding = "on"\n',
    "open": 'model = "{path}"\nnum_ctx = 256\n',
}
HELLO = [{"role": "user", "content": "Say hello."}]
SHORT = {"num_predict": 2, "temperature": 0}
Q8 = "q8_0:q5_1"
DOCUMENTED = {
    "num_keep": 5, "seed": 42, "top_k": 20, "top_p": 0.9, "min_p": 0.0, "typical_p": 0.7,
    "repeat_last_n": 33, "repeat_penalty": 1.2, "presence_penalty": 1.5, "frequency_penalty": 1.0,
    "penalize_newline": True, "stop": ["\n", "user:"], "numa": False, "num_ctx": 1024,
    "num_batch": 2, "num_gpu": 1, "main_gpu": 0, "use_mmap": True, "num_thread": 1,
}  # fmt: skip
"""Every option at once, as in the documentation of Ollama's API."""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    models = {name: text.format(path=smollm2) for name, text in MODELS.items()}
    folder = tmp_path_factory.mktemp("options") / "kvsup"
    with RunningKvsup(folder, models=models, llama_server=any_build) as running:
        yield running
    assert running.children() == []


@pytest.fixture(autouse=True)
def _nothing_loaded(kvsup: RunningKvsup) -> Iterator[None]:
    """Let each test begin with nothing in memory."""
    yield
    for name in MODELS:
        kvsup.client.post("/kvsup/stop", json={"model": name}).raise_for_status()
    eventually(lambda: not kvsup.children())


def _chat(kvsup: RunningKvsup, model: str = "growing", /, **options: Any) -> httpx.Response:
    body = {"model": model, "messages": HELLO, "stream": False, "options": {**SHORT, **options}}
    return kvsup.client.post("/api/chat", json=body)


def _served(answer: httpx.Response) -> list[str]:
    """Return the notes of an answer that went well."""
    assert answer.status_code == 200, answer.text
    return answer.headers.get_list("x-kvsup-note")


def _ps(kvsup: RunningKvsup) -> list[tuple[str, str, int]]:
    """Return name, pair and context of each loaded instance."""
    models = kvsup.client.get("/api/ps").raise_for_status().json()["models"]
    return sorted((m["name"], m["kv_cache_type"], m["context_length"]) for m in models)


def _pids(kvsup: RunningKvsup) -> set[int]:
    return {process.pid for process in kvsup.children()}


def _argument(kvsup: RunningKvsup, flag: str) -> str:
    """Return the value of a flag of the one llama-server that runs."""
    (process,) = kvsup.children()
    words = process.cmdline()
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("num_ctx", [1, 128, 256, -1, 0])
def test_num_ctx_of_what_is_there_or_less_is_served_by_it(
    kvsup: RunningKvsup, num_ctx: int
) -> None:
    """No process is started for it, and there is nothing to note."""
    _served(_chat(kvsup))
    before = _pids(kvsup)

    notes = _served(_chat(kvsup, num_ctx=num_ctx))

    assert notes == []
    assert _pids(kvsup) == before
    assert _ps(kvsup) == [("growing:latest", "f16:f16", 256)]


def test_num_ctx_of_more_is_given_once_and_then_there(kvsup: RunningKvsup) -> None:
    """The larger one serves everyone, in one process, until it is unloaded."""
    _served(_chat(kvsup))

    assert _served(_chat(kvsup, num_ctx=512)) == []
    eventually(lambda: _ps(kvsup) == [("growing:latest", "f16:f16", 512)])
    eventually(lambda: len(_pids(kvsup)) == 1)
    larger = _pids(kvsup)
    for num_ctx in (256, 512, 300, 512):
        assert _served(_chat(kvsup, num_ctx=num_ctx)) == []

    assert _pids(kvsup) == larger


def test_num_ctx_beyond_training_is_clipped_and_noted(kvsup: RunningKvsup) -> None:
    """SmolLM2 was trained for 8192 tokens; a client is told that it has no more."""
    notes = _served(_chat(kvsup, num_ctx=100_000))

    assert notes == ["num_ctx 100000 was asked, the model was trained for 8192"]
    assert _ps(kvsup) == [("growing:latest", "f16:f16", 8192)]


def test_num_ctx_of_more_where_it_is_refused_is_the_clients_mistake(kvsup: RunningKvsup) -> None:
    """The message has both numbers and what to do; nothing is loaded for it."""
    answer = _chat(kvsup, "refusing", num_ctx=512)

    assert answer.status_code == 400
    assert answer.json()["error"].startswith("num_ctx 512 is more than the 256 of refusing")
    assert _ps(kvsup) == []
    _served(_chat(kvsup, "refusing", num_ctx=256))


def test_num_predict_with_a_larger_context_is_bounded_by_the_larger(kvsup: RunningKvsup) -> None:
    """Ollama's bound is ten times the context that the request has."""
    options = {"num_ctx": 512, "num_predict": 3000, "temperature": 0}
    body = {"model": "growing", "prompt": "a", "raw": True, "stream": True, "options": options}
    with kvsup.client.stream("POST", "/api/generate", json=body) as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())
        slots = kvsup.client.get("/upstream/growing/slots").json()

    assert slots[0]["params"]["n_predict"] == 3000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": HELLO, "stream": False, "options": SHORT}),
        ("/api/generate", {"prompt": "Say hello.", "stream": False, "options": SHORT}),
        ("/api/embed", {"input": "hello"}),
        ("/api/embeddings", {"prompt": "hello"}),
    ],
)
def test_kv_cache_type_by_options_is_what_runs(
    kvsup: RunningKvsup, path: str, body: dict[str, Any]
) -> None:
    """Every route of Ollama's API that runs a model takes it."""
    options = {**body.get("options", {}), "kv_cache_type": Q8}

    answer = kvsup.client.post(path, json={**body, "model": "mixed", "options": options})

    assert _served(answer) == []
    assert _ps(kvsup) == [("mixed:latest", Q8, 256)]
    assert _argument(kvsup, "--cache-type-k") == "q8_0"
    assert _argument(kvsup, "--cache-type-v") == "q5_1"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2}),
        ("/v1/completions", {"prompt": "Say hello.", "max_tokens": 2}),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 2}),
        ("/v1/responses", {"input": "Say hello.", "max_output_tokens": 2}),
        ("/v1/embeddings", {"input": "hello"}),
    ],
)
@pytest.mark.parametrize("by", ["member", "options", "header", "options header"])
def test_kv_cache_type_over_v1_is_what_runs(
    kvsup: RunningKvsup, path: str, body: dict[str, Any], by: str
) -> None:
    """By a member of the body, or by a header where a client cannot add one."""
    members: dict[str, dict[str, Any]] = {
        "member": {"kv_cache_type": Q8},
        "options": {"options": {"kv_cache_type": Q8}},
    }
    headers = {
        "header": {"x-kvsup-kv-cache-type": Q8},
        "options header": {"x-kvsup-options": json.dumps({"kv_cache_type": Q8})},
    }

    answer = kvsup.client.post(
        path, json={**body, "model": "mixed", **members.get(by, {})}, headers=headers.get(by, {})
    )

    assert _served(answer) == []
    assert _ps(kvsup) == [("mixed:latest", Q8, 256)]


def test_kv_cache_type_of_the_body_overrules_that_of_a_header(kvsup: RunningKvsup) -> None:
    """A header is a client's setting, a member is the request's own."""
    body = {"model": "growing", "messages": HELLO, "max_tokens": 2, "kv_cache_type": Q8}

    _served(
        kvsup.client.post(
            "/v1/chat/completions", json=body, headers={"x-kvsup-kv-cache-type": "q4_0"}
        )
    )

    assert _ps(kvsup) == [("growing:latest", Q8, 256)]


def test_two_pairs_of_one_model_run_side_by_side_and_are_told_apart(kvsup: RunningKvsup) -> None:
    """Accurate and small at once, each found again by its pair, in two processes."""
    _served(_chat(kvsup))
    _served(_chat(kvsup, kv_cache_type=Q8))
    both = _pids(kvsup)

    for pair in ("f16", Q8, "f16:f16", None):
        _served(_chat(kvsup, kv_cache_type=pair))

    assert _ps(kvsup) == [("growing:latest", "f16:f16", 256), ("growing:latest", Q8, 256)]
    assert _pids(kvsup) == both
    assert len(both) == 2
    bytes_ = {
        m["kv_cache_type"]: m["kv_bytes"] for m in kvsup.client.get("/api/ps").json()["models"]
    }
    assert bytes_[Q8]["k"] * 32 == bytes_["f16:f16"]["k"] * 17
    assert bytes_[Q8]["v"] * 8 == bytes_["f16:f16"]["v"] * 3


def test_two_pairs_are_listed_as_the_one_model_that_they_are(kvsup: RunningKvsup) -> None:
    """A client that compares ``/api/ps`` with ``/api/tags`` finds the model that it knows."""
    _served(_chat(kvsup, kv_cache_type=Q8))

    tags = {m["name"]: m["digest"] for m in kvsup.client.get("/api/tags").json()["models"]}
    (loaded,) = kvsup.client.get("/api/ps").json()["models"]

    assert loaded["digest"] == tags["growing:latest"]
    assert len(tags) == len(MODELS)


def test_kv_cache_type_where_it_is_not_allowed_is_refused_by_every_api(
    kvsup: RunningKvsup,
) -> None:
    """The model's own pair may be named."""
    ollama = _chat(kvsup, "strict", kv_cache_type=Q8)
    openai = kvsup.client.post(
        "/v1/chat/completions",
        json={"model": "strict", "messages": HELLO, "max_tokens": 2, "kv_cache_type": Q8},
    )

    assert (ollama.status_code, openai.status_code) == (400, 400)
    assert "allow_request_kv = false" in ollama.json()["error"]
    assert "allow_request_kv = false" in openai.json()["error"]["message"]
    assert _ps(kvsup) == []
    _served(_chat(kvsup, "strict", kv_cache_type="f16"))


@pytest.mark.parametrize("pair", ["q9_9", "q8_0:", "", "q8_0:q4_0:q4_0", "--model"])
def test_kv_cache_type_that_is_none_is_the_clients_mistake(kvsup: RunningKvsup, pair: str) -> None:
    """It is told before anything is loaded, and reaches no command line."""
    by_options = _chat(kvsup, kv_cache_type=pair)
    by_header = kvsup.client.post(
        "/v1/chat/completions",
        json={"model": "growing", "messages": HELLO},
        headers={"x-kvsup-kv-cache-type": pair},
    )

    assert (by_options.status_code, by_header.status_code) == (400, 400)
    assert by_options.json()["error"].startswith("kv_cache_type: ")
    assert by_header.json()["error"]["message"].startswith("kv_cache_type: ")
    assert _pids(kvsup) == set()


@pytest.mark.parametrize(
    ("option", "value", "flag"),
    [("num_thread", 2, "--threads"), ("num_batch", 128, "--batch-size")],
)
def test_option_of_more_than_is_there_is_on_the_next_command_line(
    kvsup: RunningKvsup, option: str, value: int, flag: str
) -> None:
    """The model grows to it, and keeps it for who asks for less."""
    _served(_chat(kvsup, num_batch=64))

    assert _served(_chat(kvsup, "growing", **{option: value})) == []
    eventually(lambda: len(_pids(kvsup)) == 1)
    assert _served(_chat(kvsup, "growing", **{option: 1})) == []

    assert _argument(kvsup, flag) == str(value)


@pytest.mark.parametrize(
    ("option", "value", "flag", "word"),
    [
        ("num_gpu", 7, "--gpu-layers", "7"),
        ("num_gpu", 0, "--gpu-layers", "0"),
        ("use_mmap", True, "--load-mode", "mmap"),
        ("use_mmap", False, "--load-mode", "none"),
        ("main_gpu", 0, "--main-gpu", "0"),
        ("num_thread", 1, "--threads", "1"),
    ],
)
def test_option_that_the_file_leaves_open_is_taken_up_by_the_load(
    kvsup: RunningKvsup, option: str, value: object, flag: str, word: str
) -> None:
    """It loads and answers with it, on a machine without a GPU too."""
    assert _served(_chat(kvsup, "open", **{option: value})) == []

    assert _argument(kvsup, flag) == word


def test_option_of_a_choice_after_the_load_is_noted_and_loads_nothing(kvsup: RunningKvsup) -> None:
    """One that runs mapped is not loaded again to be read; the client is told."""
    _served(_chat(kvsup, use_mmap=True))
    before = _pids(kvsup)

    notes = _served(_chat(kvsup, use_mmap=False))

    assert notes == ["use_mmap is decided at the load, this one was loaded otherwise"]
    assert _pids(kvsup) == before


def test_options_of_ollamas_documented_example_are_served(kvsup: RunningKvsup) -> None:
    """A client that copied them all is served, on a machine without a GPU too."""
    answer = _chat(kvsup, "open", **DOCUMENTED)

    assert _served(answer) == []
    assert _ps(kvsup) == [("open:latest", "f16:f16", 1024)]


@pytest.mark.parametrize("option", ["num_thread", "num_batch", "num_gpu", "main_gpu"])
def test_option_that_no_machine_has_is_tried_at_most_once(kvsup: RunningKvsup, option: str) -> None:
    """Whatever becomes of that request, it neither fails the next nor starts a process again."""
    _served(_chat(kvsup))
    _chat(kvsup, "growing", **{option: 10**12})
    assert _served(_chat(kvsup)) == []
    eventually(lambda: len(_pids(kvsup)) == 1)
    before = _pids(kvsup)

    for value in (10**12, 10**11, 10**12):
        _chat(kvsup, "growing", **{option: value})
        assert _served(_chat(kvsup)) == []

    assert _pids(kvsup) == before


@pytest.mark.parametrize(("option", "value"), [("num_gpu", 10**12), ("main_gpu", -1)])
def test_option_out_of_range_before_the_load_does_not_fail_the_request(
    kvsup: RunningKvsup, option: str, value: int
) -> None:
    """All layers are all layers, however they are counted; no GPU has a negative number."""
    assert _chat(kvsup, "open", **{option: value}).status_code in {200, 400}


def test_notes_come_with_a_stream_too(kvsup: RunningKvsup) -> None:
    """Over both APIs, before the first byte."""
    options = {**SHORT, "num_ctx": 512}
    body = {"model": "clamping", "messages": HELLO, "stream": True}

    with kvsup.client.stream("POST", "/api/chat", json={**body, "options": options}) as ollama:
        ollama.read()
    with kvsup.client.stream(
        "POST",
        "/v1/chat/completions",
        json={**body, "max_tokens": 2},
        headers={"x-kvsup-options": '{"num_ctx": 512}'},
    ) as openai:
        openai.read()

    text = "num_ctx 512 was asked, 256 is there"
    assert _served(ollama) == [text]
    assert _served(openai) == [text]


def test_load_and_unload_by_an_empty_request_reach_every_pair(kvsup: RunningKvsup) -> None:
    """An empty request loads the pair that it names; one with ``keep_alive`` 0 unloads them all."""
    loading = {"model": "growing", "options": {"kv_cache_type": Q8}}
    loaded = kvsup.client.post("/api/generate", json={**loading, "stream": False}).json()
    _served(_chat(kvsup))
    assert loaded["done_reason"] == "load"
    assert len(_ps(kvsup)) == 2

    unloaded = kvsup.client.post(
        "/api/generate", json={"model": "growing", "keep_alive": 0, "stream": False}
    ).json()

    assert unloaded["done_reason"] == "unload"
    eventually(lambda: _ps(kvsup) == [])


def test_keep_alive_of_one_pair_leaves_the_other(kvsup: RunningKvsup) -> None:
    """Each counts by itself."""
    _served(_chat(kvsup))
    body = {"model": "growing", "messages": HELLO, "stream": False, "keep_alive": 0}
    options = {**SHORT, "kv_cache_type": Q8}

    _served(kvsup.client.post("/api/chat", json={**body, "options": options}))

    eventually(lambda: _ps(kvsup) == [("growing:latest", "f16:f16", 256)])
