"""Messages of the model stand before each conversation, on every API, on the real llama-server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import RunningKvsup
from tests.stores import OllamaLayout
from tests.tiny import TinyModels

ECHO = "{% for message in messages %}[{{ message.role }}|{{ message.content }}]{% endfor %}"
HI = [{"role": "user", "content": "Hi"}]
SYSTEM = [{"role": "system", "content": "Mine."}]
SHOTS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
BEFORE = "[system|Be brief.][user|2+2?][assistant|4]"

MODEL = """
model = "{model}"
template = "{template}"
num_ctx = 512
threads = 1
system = "Be brief."
messages = [
    {{ role = "user", content = "2+2?" }},
    {{ role = "assistant", content = "4" }},
]

[options]
num_predict = 2

[variants.bare]
messages = []
"""

STORED = """
model = "ollama:shots"
template = "{template}"
num_ctx = 512
threads = 1
"""


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, any_build: Path, tiny: TinyModels
) -> Iterator[RunningKvsup]:
    """Return one running kvsup for this file and each build; its prompts are told by their text."""
    folder = tmp_path_factory.mktemp("messages")
    template = tiny.folder / "echo.jinja"
    template.write_text(ECHO)
    store = OllamaLayout(folder / "ollama")
    store.add(
        "shots",
        store.file("model", tiny.plain()),
        store.text("messages", '[{"role":"user","content":"2+2?"}]'),
    )
    models = {
        "set": MODEL.format(model=tiny.plain(), template=template),
        "stored": STORED.format(template=template),
    }
    with RunningKvsup(
        folder / "kvsup",
        models=models,
        llama_server=any_build,
        environment={"OLLAMA_MODELS": str(store.root)},
    ) as running:
        yield running
    assert running.children() == []


def _post(kvsup: RunningKvsup, path: str, **body: Any) -> Any:
    answer = kvsup.client.post(path, json={"model": "set", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def _rendered(kvsup: RunningKvsup, path: str, **body: Any) -> str:
    answer = _post(kvsup, path, **body, _debug_render_only=True)
    prompt: str = answer["_debug_info"]["rendered_template"]
    return prompt


def _n_read(answer: Any) -> int:
    """Return how many tokens of prompt were read: one a character."""
    usage = answer["usage"]
    if "prompt_tokens" in usage:
        return int(usage["prompt_tokens"])
    return int(usage.get("cache_read_input_tokens", 0)) + int(usage["input_tokens"])


def test_chat_begins_with_them(kvsup: RunningKvsup) -> None:
    """In Ollama's order, whoever the system text is from; each variant has its own."""
    chat = "/api/chat"

    assert _rendered(kvsup, chat, messages=HI) == f"{BEFORE}[user|Hi]"
    assert _rendered(kvsup, chat, messages=SYSTEM + HI) == (
        "[user|2+2?][assistant|4][system|Mine.][user|Hi]"
    )
    assert _rendered(kvsup, chat, model="set:bare", messages=HI) == "[system|Be brief.][user|Hi]"
    assert _rendered(kvsup, chat, model="stored", messages=HI) == "[user|2+2?][user|Hi]"
    counted = _post(kvsup, chat, messages=HI, stream=False)["prompt_eval_count"]
    assert counted == len(f"{BEFORE}[user|Hi]")


def test_prompt_begins_with_them_unless_it_goes_on(kvsup: RunningKvsup) -> None:
    """From a context, whose tokens hold them; nothing is put before a raw prompt."""
    generate = "/api/generate"
    context = _post(kvsup, generate, prompt="Hi", stream=False)["context"]
    template = "{{ range .Messages }}<{{ .Role }} {{ .Content }}>{{ end }}"

    assert _rendered(kvsup, generate, prompt="Hi") == f"{BEFORE}[user|Hi]"
    assert _rendered(kvsup, generate, prompt="Hi", context=[]) == "[system|Be brief.][user|Hi]"
    assert _rendered(kvsup, generate, prompt="So?", context=context).startswith(
        f"{BEFORE}[user|Hi]Tiny models[system|Be brief.][user|So?]"
    )
    assert _rendered(kvsup, generate, prompt="Hi", raw=True) == "Hi"
    assert _rendered(kvsup, generate, prompt="Hi", template=template) == (
        "<system Be brief.><user 2+2?><assistant 4><user Hi>"
    )


@pytest.mark.parametrize(
    ("path", "body", "own"),
    [
        ("/v1/chat/completions", {"messages": HI}, {"messages": SYSTEM + HI}),
        ("/v1/responses", {"input": "Hi"}, {"instructions": "Mine."}),
        ("/v1/responses", {"input": HI}, {"instructions": "Mine."}),
        ("/v1/messages", {"messages": HI, "max_tokens": 2}, {"system": "Mine."}),
    ],
)
def test_chats_of_other_apis_begin_with_them(
    kvsup: RunningKvsup, path: str, body: dict[str, Any], own: dict[str, Any]
) -> None:
    """One token a letter tells what was read."""
    read = _n_read(_post(kvsup, path, **body))
    read_with_own = _n_read(_post(kvsup, path, **{**body, **own}))

    assert read == len(f"{BEFORE}[user|Hi]")
    assert read_with_own == len(f"{BEFORE.replace('Be brief', 'Mine')}[user|Hi]")


def test_counted_tokens_have_them(kvsup: RunningKvsup) -> None:
    """As the message will."""
    counted = _post(kvsup, "/v1/messages/count_tokens", messages=HI)

    assert counted == {"input_tokens": len(f"{BEFORE}[user|Hi]")}


def test_prompt_of_a_completion_has_none(kvsup: RunningKvsup) -> None:
    """It is the client's as it is."""
    assert _n_read(_post(kvsup, "/v1/completions", prompt="Hi")) == 2


def test_oldest_of_them_go_first_where_a_chat_is_too_long(kvsup: RunningKvsup) -> None:
    """They are the oldest; the system text stays."""
    long = [{"role": "user", "content": "x" * 470}]

    answer = _post(kvsup, "/api/chat", messages=long, stream=False)

    assert answer["prompt_eval_count"] == len(f"[system|Be brief.][user|{'x' * 470}]")


def test_show_tells_them(kvsup: RunningKvsup) -> None:
    """As Ollama does, and as lines of the Modelfile; a store's, too."""
    shown = _post(kvsup, "/api/show")
    stored = _post(kvsup, "/api/show", model="stored")

    assert shown["messages"] == SHOTS
    assert shown["modelfile"].endswith("\nMESSAGE user 2+2?\nMESSAGE assistant 4\n")
    assert stored["messages"] == SHOTS[:1]
    assert "messages" not in _post(kvsup, "/api/show", model="set:bare")
