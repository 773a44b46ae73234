"""What a running llama-server tells of its KV cache, as a person sees it in kvsup."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import make_tiny_gguf
from tests.conftest import StartKvsup
from tests.e2e.commands import json_of, out
from tests.running import START_TIMEOUT_S, RunningKvsup, eventually

UNROTATED = (
    "K (q8_0) and V (q4_0) are not rotated, so more is lost: heads of 96 elements are no multiple "
    "of 64; kvsup tune measures how much"
)


@pytest.fixture
def wide_heads(tmp_path: Path) -> Path:
    """Return a model with heads of 96 elements."""
    path = tmp_path / "wide.gguf"
    make_tiny_gguf.make_scripted(path, head_dims=96)
    return path


@pytest.fixture
def rpc_address(llama_server: Path) -> Iterator[str]:
    """Return where a server of llama.cpp's RPC backend listens: a device, as far as logs tell."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(llama_server.with_name("ggml-rpc-server")), "-p", str(port), "-t", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            eventually(lambda: _listens(port), timeout_s=START_TIMEOUT_S)
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _load(kvsup: RunningKvsup, name: str) -> dict[str, Any]:
    """Load a model; return its entry of ``/api/ps``."""
    kvsup.client.post("/api/generate", json={"model": name}).raise_for_status()
    (entry,) = kvsup.client.get("/api/ps").json()["models"]
    assert isinstance(entry, dict)
    return entry


def test_heads_that_are_not_rotated_are_told_everywhere(
    start_kvsup: StartKvsup, any_build: Path, wide_heads: Path
) -> None:
    """Once in kvsup's log, and for as long as it is loaded in ``/api/ps`` and ``kvsup ps``."""
    model = f'model = "{wide_heads}"\nkv_cache_type = "q8_0:q4_0"\nthreads = 1\nnum_ctx = 512'
    kvsup = start_kvsup({"wide": model}, llama_server=any_build)

    entry = _load(kvsup, "wide")

    assert entry["kv_warnings"] == [UNROTATED]
    (shown,) = json_of(kvsup, "ps")["models"]
    assert shown["kv_warnings"] == [UNROTATED]
    assert out(kvsup, "ps").splitlines()[-1] == f"wide: {UNROTATED}"
    eventually(lambda: f"WARNING wide: {UNROTATED}" in kvsup.log())
    assert kvsup.log().count(UNROTATED) == 1

    kvsup.cli("stop", "wide")
    eventually(lambda: kvsup.models()["wide"]["state"] == "stopped")
    assert kvsup.models()["wide"]["kv_warnings"] == []


@pytest.mark.parametrize(
    "settings",
    [
        'kv_cache_type = "f16"',
        'kv_cache_type = "q8_0:f16"\nflash_attention = "off"',
        'kv_cache_type = "q8_0:q5_1"\nnum_parallel = 2\nkv_unified = true',
    ],
)
def test_cache_as_planned_has_nothing_to_tell(
    start_kvsup: StartKvsup, any_build: Path, smollm2: Path, settings: str
) -> None:
    """The log's bytes are the estimate's, so an entry is Ollama's with K and V beside it."""
    model = f'model = "{smollm2}"\nthreads = 1\nnum_ctx = 512\nkv_slow = "warn"\n{settings}'
    kvsup = start_kvsup({"smollm2": model}, llama_server=any_build)
    (plan,) = json_of(kvsup, "list")

    entry = _load(kvsup, "smollm2")

    assert "kv_warnings" not in entry
    assert entry["kv_bytes"] == {"k": plan["k_bytes"], "v": plan["v_bytes"]}


@pytest.mark.parametrize(
    ("more", "warnings"),
    [
        (
            "",
            [
                (
                    "RPC takes q8_0:q5_1 unasked, and a worker whose device has no kernel for it "
                    "aborts, and llama-server with it; workers on a CPU run every pair; "
                    "q8_0:q8_0 is fast here"
                ),
            ],
        ),
        (
            ', "--no-kv-offload"',
            [
                (
                    "attention runs on the CPU while the layers are on RPC0 (62 graph splits), "
                    "which is slow; kvsup check names the nearest pair that is fast there"
                ),
            ],
        ),
    ],
)
def test_attention_on_the_cpu_beside_a_device_is_told(
    start_kvsup: StartKvsup,
    smollm2: Path,
    rpc_address: str,
    more: str,
    warnings: list[str],
) -> None:
    """Nothing fails and no line says so, but the graph is cut at each of the 30 layers.

    What the log tells counts more than what was known before.
    """
    model = (
        f'model = "{smollm2}"\nthreads = 1\nnum_ctx = 256\nkv_cache_type = "q8_0:q5_1"\n'
        f'extra_args = ["--rpc", "{rpc_address}"{more}]'
    )
    kvsup = start_kvsup({"smollm2": model})

    entry = _load(kvsup, "smollm2")

    assert entry.get("kv_warnings") == warnings
    assert 90 << 20 < entry["size_vram"] < entry["size"]


def test_sizes_of_a_load_are_known_to_the_next_kvsup(
    start_kvsup: StartKvsup, smollm2: Path
) -> None:
    """What was measured is set aside for it, before it is loaded again."""
    kvsup = start_kvsup({"smollm2": f'model = "{smollm2}"\nthreads = 1\nnum_ctx = 512'})
    planned = kvsup.models()["smollm2"]["size_bytes"]
    measured = _load(kvsup, "smollm2")["size"]

    assert kvsup.stop() == 0
    kvsup.start()

    assert kvsup.models()["smollm2"]["size_bytes"] == measured != planned
