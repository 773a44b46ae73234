"""Gemma 3 270M, a real model most of whose layers see only a window, on both builds.

It is a base model: it goes on with a text rather than answering, and has no chat template.
"""

import json
import math
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvsup.gguf import read_metadata_of
from kvsup.kvtypes import parse_kv_pair
from kvsup.memory import Launch, estimate
from kvsup.modelshape import shape_of
from tests.e2e.commands import json_of
from tests.running import RunningKvsup

N_WINDOW = 512
N_EMBD = 640

TEMPLATE = """\
{{ bos_token }}{% for message in messages -%}
<start_of_turn>{{ "model" if message.role == "assistant" else message.role }}
{{ message.content }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

TEN = "one two three four five six seven eight nine ten"
COUNTING = " ".join([TEN] * 52)
"""More tokens than the window has, one a word; the model goes on counting."""

GREEDY = {"temperature": 0, "num_predict": 8}

_ROUNDING_BYTES = 2 * 0.005 * 2**20 + 1
"""llama-server logs two decimals of MiB for each of the two caches, which ``/api/ps`` adds up."""

_CACHE = re.compile(
    r"llama_kv_cache: size = .*\( *(\d+) cells, *(\d+) layers, .*/ *(\d+) seqs\), "
    r"K \((\w+)\): *([\d.]+) MiB, V \((\w+)\): *([\d.]+) MiB"
)


class Case(NamedTuple):
    """A way to run it that decides the size of its caches."""

    pair: str
    num_parallel: int
    swa_full: bool
    settings: str = ""
    n_batch: int = 64
    """What kvsup chooses on a CPU."""
    unified: bool = False
    num_ctx: int = 1024
    """More than the window and a batch need, so that the two caches differ in size."""


CASES = {
    **{
        f"{'full' if full else 'window'}{number}-{pair.partition(':')[0]}": Case(pair, number, full)
        for pair, number, full in product(("f16:f16", "q8_0:q5_1"), (1, 2), (False, True))
    },
    "unified": Case("q8_0:q5_1", 2, swa_full=False, settings="kv_unified = true", unified=True),
    "embedding": Case(
        "f16:f16", 1, swa_full=False, settings='embedding = "on"', n_batch=640, num_ctx=640
    ),
}
"""By the name of the model that runs so."""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, gemma3: Path
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build."""
    folder = tmp_path_factory.mktemp("gemma")
    (folder / "turns.jinja").write_text(TEMPLATE)
    start = f'model = "{gemma3}"\nthreads = 1\n'
    models = {
        "base": f"{start}num_ctx = 256\n",
        "turns": f'{start}num_ctx = 256\ntemplate = "{folder}/turns.jinja"\n',
    }
    for name, case in CASES.items():
        models[name] = (
            f'{start}num_ctx = {case.num_ctx}\nkv_cache_type = "{case.pair}"\n'
            f"num_parallel = {case.num_parallel}\nswa_full = {str(case.swa_full).lower()}\n"
            f"{case.settings}\n"
        )
    host = "max_loaded_models = 3\n"
    with RunningKvsup(folder / "kvsup", models=models, llama_server=any_build, host=host) as it:
        yield it
    assert it.children() == []


@pytest.fixture(scope="module")
def plans(kvsup: RunningKvsup) -> dict[str, Any]:
    """Return what ``kvsup list`` says of each model before it is loaded."""
    return {plan["name"]: plan for plan in json_of(kvsup, "list")}


def _post(kvsup: RunningKvsup, path: str, **body: Any) -> Any:
    answer = kvsup.client.post(path, json={"stream": False, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _continued(kvsup: RunningKvsup, model: str, prompt: str, **options: Any) -> Any:
    asked = {**GREEDY, **options}
    return _post(kvsup, "/api/generate", model=model, prompt=prompt, raw=True, options=asked)


def _loaded(kvsup: RunningKvsup, model: str) -> Any:
    listed = kvsup.client.get("/api/ps").json()["models"]
    (found,) = [entry for entry in listed if entry["name"] == f"{model}:latest"]
    return found


def _logged_caches(kvsup: RunningKvsup, model: str) -> list[tuple[str, ...]]:
    log = kvsup.client.get(f"/kvsup/logs/{model}", params={"lines": 100_000}).text
    return [match.groups() for line in log.splitlines() if (match := _CACHE.search(line))]


def _said(*contents: str) -> list[dict[str, str]]:
    """Return a conversation; the user has the first word."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def test_show_tells_window_licence_and_that_there_is_no_template(kvsup: RunningKvsup) -> None:
    """``model_info`` has the keys of its architecture; without a template Ollama shows its own."""
    shown = _post(kvsup, "/api/show", model="base")

    details = shown["details"]
    assert (shown["license"], shown["capabilities"]) == ("gemma", ["completion"])
    assert shown["template"] == "{{ .Prompt }}"
    assert (details["family"], details["quantization_level"]) == ("gemma3", "Q4_K_M")
    assert details["parameter_size"] == "268.10M"
    own = {k: v for k, v in shown["model_info"].items() if k.startswith("gemma3.")}
    assert own == {
        "gemma3.context_length": 32768,
        "gemma3.embedding_length": N_EMBD,
        "gemma3.block_count": 18,
        "gemma3.feed_forward_length": 2048,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": 256,
        "gemma3.attention.value_length": 256,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.sliding_window": N_WINDOW,
        "gemma3.rope.freq_base": 1000000,
    }


def test_show_of_a_model_with_a_template_file_has_it_and_what_it_can_do(
    kvsup: RunningKvsup,
) -> None:
    """The template neither thinks nor takes tools; ``embedding`` adds a capability."""
    turns = _post(kvsup, "/api/show", model="turns")
    embeds = _post(kvsup, "/api/show", model="embedding")

    assert (turns["template"], turns["capabilities"]) == (TEMPLATE, ["completion"])
    assert embeds["capabilities"] == ["completion", "embedding"]


def test_generate_raw_goes_on_with_the_text(kvsup: RunningKvsup) -> None:
    """One token is put in front, where the model wants its beginning marked."""
    answer = _continued(kvsup, "base", "one two three four five six")

    assert answer["response"].startswith(" seven eight nine ten")
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (7, 8)
    assert answer["done_reason"] == "length"


def test_request_for_more_context_grows_both_caches_and_one_for_less_keeps_them(
    kvsup: RunningKvsup,
) -> None:
    """The window's cache stops growing where the window and a batch have room."""
    sizes = []
    for num_ctx in (256, 2048, 512):
        _continued(kvsup, "base", "one two three", num_ctx=num_ctx)
        running = _loaded(kvsup, "base")
        sizes.append((running["context_length"], running["kv_bytes"]["k"]))

    row_bytes = 256 * 2
    small_bytes, large_bytes = 18 * 256 * row_bytes, (3 * 2048 + 15 * 768) * row_bytes
    assert sizes == [
        (256, pytest.approx(small_bytes, abs=_ROUNDING_BYTES)),
        (2048, pytest.approx(large_bytes, abs=_ROUNDING_BYTES)),
        (2048, pytest.approx(large_bytes, abs=_ROUNDING_BYTES)),
    ]


@pytest.mark.parametrize(
    ("model", "prompt"),
    [
        ("base", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("turns", "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_prompt_is_made_by_the_file_or_else_by_llama_servers_own_template(
    kvsup: RunningKvsup, path: str, model: str, prompt: str
) -> None:
    """As Ollama leaves it to llama-server where a model has no template."""
    body = {"messages": _said("Hi")} if path == "/api/chat" else {"prompt": "Hi"}

    shown = _post(kvsup, path, model=model, **body, _debug_render_only=True)

    assert shown["_debug_info"]["rendered_template"] == prompt


def test_chat_streams_as_many_tokens_as_were_asked_for(kvsup: RunningKvsup) -> None:
    """The text of the lines is that of the whole answer."""
    body = {"model": "turns", "messages": _said("The capital of France is"), "options": GREEDY}

    whole = _post(kvsup, "/api/chat", **body)
    with kvsup.client.stream("POST", "/api/chat", json=body) as answer:
        *lines, last = map(json.loads, answer.iter_lines())

    assert whole["message"]["content"]
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"]
    assert (last["done_reason"], last["eval_count"]) == ("length", 8)
    assert last["prompt_eval_count"] == whole["prompt_eval_count"] == 14


def test_chat_longer_than_the_context_loses_its_oldest_turn(kvsup: RunningKvsup) -> None:
    """The system message stays in front, and what is left is prompted as if it were all."""
    system = [{"role": "system", "content": "Count."}]
    talk = _said(COUNTING, "yes", TEN, "no", TEN)

    cut = _post(kvsup, "/api/chat", model="turns", messages=system + talk, options=GREEDY)
    rest = _post(kvsup, "/api/chat", model="turns", messages=system + talk[2:], options=GREEDY)

    assert cut["prompt_eval_count"] == rest["prompt_eval_count"] < 256
    assert cut["eval_count"] == 8


def test_text_longer_than_the_context_keeps_its_ends(kvsup: RunningKvsup) -> None:
    """Four tokens in front and half of the others' room behind: the counting goes on."""
    answer = _continued(kvsup, "turns", COUNTING)

    assert answer["prompt_eval_count"] == 4 + (256 - 4) // 2
    assert answer["response"].startswith(" one two three")


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_prompt_longer_than_the_context_is_refused_where_it_must_stay_whole(
    kvsup: RunningKvsup, path: str
) -> None:
    """With ``truncate`` false."""
    body = {"messages": _said(COUNTING)} if path == "/api/chat" else {"prompt": COUNTING}

    answer = kvsup.client.post(path, json={"model": "turns", **body, "truncate": False})

    assert answer.status_code == 400
    assert "exceeds the available context size (256 tokens)" in answer.json()["error"]


def test_answer_behind_a_prompt_longer_than_the_window_is_that_of_a_full_cache(
    kvsup: RunningKvsup,
) -> None:
    """The smaller cache drops only what the window hides anyway."""
    answers = [_continued(kvsup, name, COUNTING) for name in ("window1-f16", "full1-f16")]

    assert {answer["response"] for answer in answers} == {answers[0]["response"]}
    assert answers[0]["response"].startswith(" one two three")
    assert {answer["prompt_eval_count"] for answer in answers} == {521}


@pytest.mark.parametrize("name", CASES)
def test_estimate_of_a_model_with_a_window_equals_what_llama_server_allocates(
    kvsup: RunningKvsup, plans: dict[str, Any], gemma3: Path, name: str
) -> None:
    """Both caches in cells, layers, streams, types and MiB; what kvsup shows is their sum."""
    case = CASES[name]
    launch = Launch(
        case.num_ctx * case.num_parallel,
        case.num_parallel,
        unified=case.unified,
        n_batch=case.n_batch,
        n_ubatch=case.n_batch,
        swa_full=case.swa_full,
    )
    _post(kvsup, "/api/generate", model=name)

    full, window = _logged_caches(kvsup, name)
    shown = _loaded(kvsup, name)["kv_bytes"]

    result = estimate(
        shape_of(read_metadata_of(gemma3)), parse_kv_pair(case.pair), launch, weights_bytes=0
    )
    assert [full, window] == [
        (
            str(cache.cells),
            str(cache.layers),
            str(cache.streams),
            str(cache.type_k),
            f"{cache.k_bytes / 2**20:.2f}",
            str(cache.type_v),
            f"{cache.v_bytes / 2**20:.2f}",
        )
        for cache in result.caches
    ]
    assert (full[1], window[1]) == ("3", "15")
    assert (int(window[0]) < int(full[0])) is name.startswith(("window", "unified"))
    assert (plans[name]["k_bytes"], plans[name]["v_bytes"]) == (result.k_bytes, result.v_bytes)
    assert shown["k"] == pytest.approx(result.k_bytes, abs=_ROUNDING_BYTES)
    assert shown["v"] == pytest.approx(result.v_bytes, abs=_ROUNDING_BYTES)


def test_embeddings_of_a_chat_model_are_unit_vectors_and_it_still_chats(
    kvsup: RunningKvsup,
) -> None:
    """One longer than the context is cut to it, though that is more than the window."""
    texts = ["one two three", COUNTING * 2]

    reply = _post(kvsup, "/api/embed", model="embedding", input=texts)
    alone = _post(kvsup, "/api/embed", model="embedding", input=texts[0])
    answer = _continued(kvsup, "embedding", "one two three four five six")

    assert [len(vector) for vector in reply["embeddings"]] == [N_EMBD] * 2
    assert [math.hypot(*vector) for vector in reply["embeddings"]] == pytest.approx([1] * 2)
    assert reply["embeddings"][0] == pytest.approx(alone["embeddings"][0], abs=1e-3)
    assert reply["prompt_eval_count"] == 4 + 640
    assert answer["response"].startswith(" seven eight nine ten")
