"""A llama-server with a KV type that kvsup has never heard of works by itself."""

from pathlib import Path

import pytest

from tests.conftest import StartKvsup
from tests.e2e.commands import json_of
from tests.running import eventually


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory, llama_server: Path) -> Path:
    """Return the real llama-server with its type q5_1 under a name of a fork's own."""
    program = tmp_path_factory.mktemp("fork") / "llama-server"
    program.write_bytes(llama_server.read_bytes().replace(b"q5_1", b"zz51"))
    program.chmod(0o755)
    return program


def test_type_of_a_fork_is_served_and_its_size_learnt_at_the_first_load(
    start_kvsup: StartKvsup, fork: Path, smollm2: Path
) -> None:
    """A guess before, the log's bytes after, and the estimate of other contexts from then on."""
    text = f'model = "{smollm2}"\nthreads = 1\nkv_cache_type = "q8_0:zz51"\nnum_ctx = 2048\n'
    kvsup = start_kvsup({"forked": text}, llama_server=fork)
    guess = json_of(kvsup, "estimate", "forked")
    body = {"model": "forked", "prompt": "Hi", "options": {"num_predict": 1}}

    kvsup.client.post("/api/generate", json=body).raise_for_status()
    eventually(lambda: json_of(kvsup, "estimate", "forked")["v_bytes"] != guess["v_bytes"])

    v_bytes = 30 * 2048 * 192 * 24 // 32
    assert guess["is_exact"] is False
    assert guess["v_bytes"] == 30 * 2048 * 192 * 2
    assert kvsup.models()["forked"]["v_bytes"] == pytest.approx(v_bytes, rel=0.001)
    learnt = json_of(kvsup, "estimate", "forked", "--num-ctx", "8192")
    assert learnt["v_bytes"] == pytest.approx(4 * v_bytes, rel=0.001)
    assert "zz51" in kvsup.log()


def test_type_of_a_fork_is_refused_where_the_binary_lacks_it(
    start_kvsup: StartKvsup, llama_server: Path, smollm2: Path
) -> None:
    """The stock binary lists what it takes, and a wrong name is told before any start."""
    kvsup = start_kvsup({"m": f'model = "{smollm2}"\n'}, llama_server=llama_server)
    kvsup.write("m", f'model = "{smollm2}"\nkv_cache_type = "q8_0:zz51"\n')

    done = kvsup.cli("check")

    assert done.returncode == 2
    assert "kv_cache_type: 'zz51' is no KV cache type of this llama-server" in done.stderr
