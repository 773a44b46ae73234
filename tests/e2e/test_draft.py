"""A model with a draft model, whose KV cache has types of its own."""

from pathlib import Path

import pytest

from tests.conftest import StartKvsup
from tests.e2e.commands import json_of
from tests.headsizes import make_plain


def test_draft_is_loaded_with_its_own_pair_and_counted(
    start_kvsup: StartKvsup, any_build: Path, smollm2: Path
) -> None:
    """Both caches are as they were asked for, and the whole is as it was estimated."""
    text = f"""
        model = "{smollm2}"
        draft_model = "{smollm2}"
        kv_cache_type = "q8_0:q5_1"
        draft_kv_cache_type = "q4_0:q4_0"
        num_ctx = 1024
        threads = 1
    """
    kvsup = start_kvsup({"m": text}, llama_server=any_build)
    expected = json_of(kvsup, "estimate", "m")
    body = {"model": "m", "prompt": "Hi", "options": {"num_predict": 4}}

    kvsup.client.post("/api/generate", json=body).raise_for_status()

    served = kvsup.models()["m"]
    assert (served["k_bytes"], served["v_bytes"]) == (expected["k_bytes"], expected["v_bytes"])
    assert served["size_bytes"] == pytest.approx(expected["total_bytes"], rel=0.05)
    assert expected["draft"]["k_bytes"] == 30 * 1024 * 192 * 18 // 32
    log = kvsup.client.get("/kvsup/logs/m").text
    assert "K (q4_0):    3.16 MiB, V (q4_0):    3.16 MiB" in log
    assert served["kv_warnings"] == []


def test_draft_pair_that_its_heads_forbid_is_refused(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """The rules hold for the draft's own shape, and the message names its key."""
    kvsup = start_kvsup({"m": f'model = "{smollm2}"\n'})
    draft = tmp_path / "draft.gguf"
    make_plain(draft, head=80)
    kvsup.write(
        "m", f'model = "{smollm2}"\ndraft_model = "{draft}"\ndraft_kv_cache_type = "q8_0"\n'
    )

    done = kvsup.cli("check")

    assert done.returncode == 2
    assert "m.toml:3: draft_kv_cache_type: K as q8_0 is stored in blocks of 32" in done.stderr
