"""Go templates of Ollama's store: llama-server writes with the Jinja ones what Ollama does."""

import json
from datetime import date
from pathlib import Path

import pytest

from kvsup.ollama.prompt import PromptTemplate
from kvsup.ollama.requests import Message
from kvsup.stores.jinja import jinja_of
from tests.conftest import StartKvsup
from tests.running import RunningKvsup
from tests.stores import OllamaLayout
from tests.tiny import TinyModels

TEMPLATES = json.loads(
    (Path(__file__).parents[1] / "golden/gotemplate/conversations.json").read_text("utf-8")
)["templates"]
NAMES = ("chatml", "llama3", "mistral", "gemma", "alpaca", "codellama-fim", "zephyr", "phi3")
CHATS = (
    "user: Hi",
    "system: Be 'brief'.\n\nuser: Hi {{ x }}",
    "user: A\n\nassistant: B\n\nuser: C",
    "system: S\n\nuser: A\n\nassistant: B\\n\n\nuser: C\n\nassistant: D\n\nuser: E",
    "system: S\n\nuser: A\n\nuser: B",
)


def _messages(chat: str) -> list[dict[str, str]]:
    turns = (turn.partition(": ") for turn in chat.split("\n\n"))
    return [{"role": role, "content": content} for role, _, content in turns]


def _rendered(kvsup: RunningKvsup, model: str, messages: list[dict[str, str]]) -> str:
    body = {"model": model, "messages": messages, "_debug_render_only": True}
    answer = kvsup.client.post("/api/chat", json=body).raise_for_status().json()
    text: str = answer["_debug_info"]["rendered_template"]
    return text


def test_converted_template_writes_what_the_go_template_does(
    start_kvsup: StartKvsup, tiny: TinyModels, tmp_path: Path, any_build: Path
) -> None:
    """For each common family, with and without a system text, over several turns."""
    models = {}
    for name in NAMES:
        (tmp_path / f"{name}.jinja").write_text(jinja_of(TEMPLATES[name]) or "")
        models[name] = (
            f'model = "{tiny.plain()}"\ntemplate = "{tmp_path}/{name}.jinja"\nthreads = 1\n'
        )
    kvsup = start_kvsup(models, llama_server=any_build)

    for name in NAMES:
        template = PromptTemplate.parse(TEMPLATES[name])
        for chat in CHATS:
            messages = _messages(chat)
            expected = template.render(
                [Message(role=m["role"], content=m["content"]) for m in messages],
                tools=(),
                think=None,
                today=date(2026, 1, 1),
            )
            assert _rendered(kvsup, name, messages) == expected, (name, chat)


@pytest.mark.parametrize("route", ["/api/chat", "/v1/chat/completions"])
def test_base_model_of_a_store_chats_by_the_stores_template(
    start_kvsup: StartKvsup, gemma3: Path, tmp_path: Path, route: str
) -> None:
    """Its GGUF has none; what is made lies in the state folder, and its owner is told."""
    store = OllamaLayout(tmp_path / "ollama")
    layers = (store.file("model", gemma3), store.text("template", TEMPLATES["gemma"]))
    store.add("gemma", *layers)
    kvsup = start_kvsup({}, host=f'[sources]\nollama = "{store.root}"\n')

    prompt = _rendered(kvsup, "gemma", _messages("system: S\n\nuser: Hi"))
    answer = kvsup.client.post(
        route,
        json={
            "model": "gemma",
            "messages": _messages("user: Hi"),
            "stream": False,
            "max_tokens": 2,
            "options": {"num_predict": 2},
        },
    )

    assert prompt == "<start_of_turn>user\nS Hi<end_of_turn>\n<start_of_turn>model\n"
    assert answer.status_code == 200, answer.text
    (made,) = (kvsup.state / "templates").iterdir()
    assert "<start_of_turn>" in made.read_text()
    assert "gemma:latest: its chat template is made of the store's" in kvsup.log()
