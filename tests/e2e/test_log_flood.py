"""A llama-server that prints 100 MB a second, beside a real one that serves."""

from pathlib import Path

import psutil

from tests.conftest import StartKvsup
from tests.running import eventually
from tests.standin.script import LOAD, STANDIN, write_script

MODEL = """
model = "{path}"
num_ctx = 512
threads = 1
"""
LINE = "W srv  update_slots: this line says nothing, and is said again and again\n"
BLOCK = LINE * 800
N_BLOCKS = 4000


def test_flood_of_a_child_blocks_nobody_and_takes_no_memory(
    start_kvsup: StartKvsup, smollm2: Path, tmp_path: Path
) -> None:
    """A quarter of a GB in its log: the neighbour answers, and the child comes to its end."""
    done = tmp_path / "done"
    flood = [*LOAD, ["write", "stderr", BLOCK, N_BLOCKS], ["touch", str(done)]]
    script = write_script(tmp_path / "s.json", starts=[flood])
    kvsup = start_kvsup(
        {
            "m": MODEL.format(path=smollm2),
            "flood": f'model = "{smollm2}"\nllama_server = "{STANDIN}"\n{script}',
        }
    )
    process = psutil.Process(kvsup.process.pid)
    body = {"prompt": "Hi", "stream": False, "options": {"num_predict": 4}}
    kvsup.client.post("/api/generate", json={"model": "m", **body}).raise_for_status()
    before_bytes = process.memory_info().rss

    kvsup.client.post("/api/generate", json={"model": "flood"}).raise_for_status()
    n_answers, most_bytes = 0, 0
    while not done.exists():
        kvsup.client.post("/api/generate", json={"model": "m", **body}).raise_for_status()
        n_answers, most_bytes = n_answers + 1, max(most_bytes, process.memory_info().rss)

    assert n_answers >= 1
    assert most_bytes - before_bytes < 32 << 20
    eventually(lambda: "lines dropped" in kvsup.client.get("/kvsup/logs/flood?lines=9999").text)
    assert kvsup.cli("stop", "flood").returncode == 0
    eventually(lambda: kvsup.models()["flood"]["state"] == "stopped")
    assert "Traceback" not in kvsup.log()
