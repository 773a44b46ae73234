"""A model that is loaded smaller, as a client and a person at the command line see it."""

from pathlib import Path
from typing import Any

from tests.conftest import StartKvsup
from tests.running import RunningKvsup

HUGE = """
model = "{model}"
threads = 1
num_parallel = 200
num_ctx = 8192
batch_size = 256
fallback = [{{ num_parallel = 1 }}, {{ num_ctx = 512, kv_cache_type = "q8_0:q4_0" }}]
"""


def _chat(kvsup: RunningKvsup, **options: Any) -> tuple[dict[str, Any], list[str]]:
    body = {"model": "a", "messages": [{"role": "user", "content": "Hi"}], "stream": False}
    answer = kvsup.client.post("/api/chat", json={**body, "options": {"num_predict": 1, **options}})
    return answer.raise_for_status().json(), answer.headers.get_list("x-kvsup-note")


def test_what_was_given_up_is_shown_in_ps_log_headers_and_api(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """200 slots of 8192 tokens cannot be allocated for real; one of them can."""
    kvsup = start_kvsup({"a": HUGE.format(model=smollm2)}, host='memory = "999GiB"\n')
    given_up = "num_parallel 1, not 200"

    _, notes = _chat(kvsup, num_ctx=4096)
    assert notes == [f"memory was short: {given_up}"]

    [served] = kvsup.client.get("/api/ps").json()["models"]
    assert served["given_up"] == [given_up]
    assert served["context_length"] == 8192
    assert served["size"] < 1 << 30
    assert kvsup.models()["a"]["given_up"] == [given_up]
    assert f"a: memory was short: {given_up}" in kvsup.cli("ps").stdout
    assert f"a: stepped down, fallback 1 of 2: {given_up}; since the memory is not there" in (
        kvsup.log()
    )
    assert "stepped down, fallback 1 of 2" in kvsup.cli("why", "a").stdout


def test_request_for_more_than_a_step_has_is_served_and_told_so(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """Neither a larger context nor the file's own pair is tried while the step is loaded."""
    kvsup = start_kvsup({"a": HUGE.format(model=smollm2)}, host='memory = "256MiB"\n')

    _, notes = _chat(kvsup, num_ctx=8192, kv_cache_type="f16:f16")

    assert notes[:2] == [
        "num_ctx 8192 was asked, 512 is there",
        "kv_cache_type f16:f16 was asked, q8_0:q4_0 is there",
    ]
    assert len(kvsup.models()) == 1
    [served] = kvsup.client.get("/api/ps").json()["models"]
    assert served["context_length"] == 512
    assert served["kv_cache_type"] == "q8_0:q4_0"


def test_show_tells_each_step_with_its_bytes_before_any_load(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """What a person can count on is known beforehand."""
    kvsup = start_kvsup({"a": HUGE.format(model=smollm2)})

    shown = kvsup.cli("show", "a").stdout

    assert "fallback 1" in shown
    assert "num_parallel 1, not 200: " in shown
    assert "kv_cache_type q8_0:q4_0, not f16:f16: " in shown


def test_wrong_step_is_told_with_its_line_and_mend(start_kvsup: StartKvsup, smollm2: Path) -> None:
    """The line is that of the step's table, not of ``fallback``."""
    kvsup = start_kvsup({"a": f'model = "{smollm2}"\nnum_ctx = 512\n'})
    kvsup.write(
        "a",
        f'model = "{smollm2}"\nnum_ctx = 512\nfallback = [\n  {{ num_ctx = 256 }},\n'
        '  { num_ctx = 1024 },\n  { kv_cache_type = "q8_0:q9_9" },\n]\n',
    )

    told = kvsup.cli("list").stderr

    assert "a.toml:5: fallback.2.num_ctx: 1024 is more than the 256 before it" in told
    assert "a.toml:6: fallback.3.kv_cache_type: " in told
