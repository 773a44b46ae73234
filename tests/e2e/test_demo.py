"""The README's promise, on every build: chat, and see K and V apart with their measured bytes."""

from pathlib import Path

import ollama
import pytest

from tests.conftest import StartKvsup

SMOLLM2 = """
model = "{path}"
kv_cache_type = "Q8_0 : q5_1"
threads = 1

[variants.agent]
kv_cache_type = "f16"
"""


@pytest.mark.parametrize("name", ["smollm2", "smollm2:agent"])
def test_chat_with_official_client_streams_and_folds_the_same_text(
    start_kvsup: StartKvsup, any_build: Path, smollm2: Path, name: str
) -> None:
    """A model and its variant answer the ollama package, streamed and not, with the same text."""
    kvsup = start_kvsup({"smollm2": SMOLLM2.format(path=smollm2)}, llama_server=any_build)
    messages = [{"role": "user", "content": "Say hello in five words."}]
    options = {"temperature": 0, "num_predict": 24}

    with ollama.Client(host=kvsup.url) as client:
        whole = client.chat(name, messages=messages, options=options)
        pieces = list(client.chat(name, messages=messages, options=options, stream=True))

    assert whole.message.content
    assert "".join(p.message.content or "" for p in pieces) == whole.message.content
    assert [p.done for p in pieces].count(True) == 1
    assert whole.eval_count
    assert whole.prompt_eval_count


def test_ps_after_chats_shows_each_pair_with_measured_bytes(
    start_kvsup: StartKvsup, any_build: Path, smollm2: Path
) -> None:
    """K and V bytes are those that llama-server logged: 30 layers x 4096 cells x 192 elements."""
    kvsup = start_kvsup({"smollm2": SMOLLM2.format(path=smollm2)}, llama_server=any_build)
    for name in ("smollm2", "smollm2:agent"):
        kvsup.client.post("/api/generate", json={"model": name}).raise_for_status()

    running = {m["name"]: m for m in kvsup.client.get("/api/ps").json()["models"]}

    elements = 30 * 4096 * 192
    rounding = 1 << 13  # the log has two decimals of MiB
    assert running["smollm2:latest"]["kv_cache_type"] == "q8_0:q5_1"
    assert abs(running["smollm2:latest"]["kv_bytes"]["k"] - elements * 34 // 32) < rounding
    assert abs(running["smollm2:latest"]["kv_bytes"]["v"] - elements * 24 // 32) < rounding
    assert running["smollm2:agent"]["kv_cache_type"] == "f16:f16"
    assert running["smollm2:agent"]["kv_bytes"] == {"k": elements * 2, "v": elements * 2}
