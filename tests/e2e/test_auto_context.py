"""``num_ctx = "auto"``: the largest context that fits what is free at the load."""

from pathlib import Path
from typing import Any

from tests.conftest import StartKvsup
from tests.e2e.commands import json_of
from tests.running import RunningKvsup
from tests.tiny import TinyModels

_BUDGET = 300 << 20


def _chat(kvsup: RunningKvsup, model: str, **options: int) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": False}
    limited = {"num_predict": 1, **options}
    answer = kvsup.client.post("/api/chat", json={**body, "options": limited}).raise_for_status()
    return dict(answer.json())


def _served_tokens(kvsup: RunningKvsup, model: str) -> int:
    models = kvsup.client.get("/api/ps").json()["models"]
    (served,) = (each for each in models if each["name"].startswith(model))
    return int(served["context_length"])


def test_auto_context_is_what_estimate_says_fits_the_budget(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """One formula: what a person is told beforehand is what runs, within the memory of the host."""
    text = f'model = "{smollm2}"\nthreads = 1\nnum_ctx = "auto"\nkv_cache_type = "f16:f16"\n'
    kvsup = start_kvsup({"wide": text}, host=f"memory = {_BUDGET}\n")
    fits = json_of(kvsup, "estimate", "wide", "--budget", str(_BUDGET))["largest_num_ctx"]

    _chat(kvsup, "wide")

    assert 4096 < fits < 8192
    assert _served_tokens(kvsup, "wide") == fits
    assert kvsup.models()["wide"]["size_bytes"] < _BUDGET


def test_auto_context_of_a_small_model_ends_where_its_training_ends(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """More would be allocated and never used."""
    text = f'model = "{smollm2}"\nthreads = 1\nnum_ctx = "auto"\nkv_cache_type = "q4_0:q4_0"\n'
    kvsup = start_kvsup({"wide": text}, host='memory = "4GiB"\n')

    _chat(kvsup, "wide")

    assert _served_tokens(kvsup, "wide") == 8192


def test_auto_context_takes_what_another_model_leaves(
    start_kvsup: StartKvsup, smollm2: Path, tiny: TinyModels
) -> None:
    """Nothing is unloaded for more context, and who asks for more is served with what there is."""
    kvsup = start_kvsup(
        {
            "wide": f'model = "{smollm2}"\nthreads = 1\nnum_ctx = "auto"\n',
            "other": f'model = "{tiny.plain()}"\nthreads = 1\nnum_ctx = 512\n',
        },
        host=f"memory = {_BUDGET + (68 << 20)}\n",
    )
    _chat(kvsup, "other")

    _chat(kvsup, "wide", num_ctx=8192)

    assert {name for name, model in kvsup.models().items() if model["pid"]} == {"wide", "other"}
    assert 4096 <= _served_tokens(kvsup, "wide") < 8192


def test_auto_context_survives_a_reload(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """What runs is the same process with the same context after the folder was read again."""
    text = f'model = "{smollm2}"\nthreads = 1\nnum_ctx = "auto"\n'
    kvsup = start_kvsup({"wide": text}, host=f"memory = {_BUDGET}\n")
    _chat(kvsup, "wide")
    pid, served = kvsup.models()["wide"]["pid"], _served_tokens(kvsup, "wide")
    kvsup.write("second", text)

    assert kvsup.cli("reload").returncode == 0
    _chat(kvsup, "wide")

    assert kvsup.models()["wide"]["pid"] == pid
    assert _served_tokens(kvsup, "wide") == served
