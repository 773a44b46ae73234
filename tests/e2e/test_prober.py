"""Pairs that are served are measured by themselves; what is slow is said, refused or replaced."""

import json
from pathlib import Path
from typing import Any

from tests.conftest import StartKvsup
from tests.e2e.commands import json_of, out
from tests.running import RunningKvsup, eventually


def _generate(kvsup: RunningKvsup) -> None:
    body = {"model": "m", "prompt": "Hi", "options": {"num_predict": 1}}
    kvsup.client.post("/api/generate", json=body).raise_for_status()


def _probes(kvsup: RunningKvsup) -> list[dict[str, Any]]:
    files = (kvsup.state / "probes").glob("*.json")
    return [json.loads(file.read_text()) for file in files]


def _pretend(kvsup: RunningKvsup, ratio: float) -> None:
    """Make the pair's measured speed this part of f16:f16's."""
    for file in (kvsup.state / "probes").glob("*.json"):
        kept = json.loads(file.read_text())
        for probe in kept["by_pair"].values():
            for what in ("prompt_tokens_per_s", "generation_tokens_per_s"):
                probe["speed"][what] = probe["baseline"][what] * ratio
        file.write_text(json.dumps(kept))


def test_served_pair_is_probed_once_while_nobody_asks(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """The result is kept, told, and nothing is left running but what serves."""
    text = f'model = "{smollm2}"\nthreads = 1\nkv_cache_type = "q8_0:q4_0"\nkeep_alive = "-1"\n'
    kvsup = start_kvsup({"m": text}, host='probe_after = "0s"\n')
    _generate(kvsup)

    eventually(lambda: _probes(kvsup), timeout_s=50.0)

    (kept,) = _probes(kvsup)
    assert list(kept["by_pair"]) == ["q8_0:q4_0"]
    eventually(lambda: "m: q8_0:q4_0 reads prompts at " in kvsup.log())
    assert len(kvsup.children()) == 1


def test_pair_that_was_measured_slow_is_told_everywhere(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """In ps, by both APIs, in check and at the start; with fallback the fast pair is served."""
    text = f'model = "{smollm2}"\nthreads = 1\nkv_cache_type = "q8_0:q4_0"\n'
    kvsup = start_kvsup({"m": text})
    out(kvsup, "probe", "m")
    _pretend(kvsup, 0.1)
    out(kvsup, "reload")
    _generate(kvsup)

    says = "q8_0:q4_0 reads prompts at 0.10 and writes at 0.10 of f16:f16's speed behind"
    assert any(says in each for each in kvsup.models()["m"]["kv_warnings"])
    (served,) = kvsup.client.get("/api/ps").json()["models"]
    assert any(says in each for each in served["kv_warnings"])
    assert says in out(kvsup, "ps")
    assert says in out(kvsup, "check", str(kvsup.configs))
    assert says in json_of(kvsup, "estimate", "m")["slow"]

    kvsup.write("m", f'{text}kv_slow = "fallback"\n')
    out(kvsup, "reload")
    _generate(kvsup)

    assert kvsup.models()["m"]["kv_cache_type"] == "f16:f16"

    kvsup.write("m", f'{text}kv_slow = "refuse"\n')
    done = kvsup.cli("check", str(kvsup.configs))
    out(kvsup, "reload")
    refused = kvsup.client.post("/api/generate", json={"model": "m", "prompt": "Hi"})

    assert done.returncode == 2
    assert "m: q8_0:q4_0, 4096 tokens: refused" in done.stdout
    assert f"m.toml: kv_cache_type: {says}" in done.stderr
    assert refused.status_code == 400
    assert says in refused.json()["error"]
    assert "f16:f16 is fast here" in refused.json()["error"]

    out(kvsup, "probe", "m")  # what was measured on a busy machine can be measured again
    (kept,) = _probes(kvsup)
    measured = kept["by_pair"]["q8_0:q4_0"]
    assert (
        measured["speed"]["prompt_tokens_per_s"]
        > 0.11 * (measured["baseline"]["prompt_tokens_per_s"])
    )
    _pretend(kvsup, 1.0)
    out(kvsup, "reload")

    _generate(kvsup)
    assert kvsup.models()["m"]["kv_cache_type"] == "q8_0:q4_0"
