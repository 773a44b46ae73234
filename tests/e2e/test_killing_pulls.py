"""Whatever moment a kill comes at: every model that is listed is whole, and no part lies about."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kvsup.runtime.bringing import digest_of
from kvsup.runtime.ownstore import OwnStore
from kvsup.stores.manifest import decode_manifest
from tests.between import Between
from tests.conftest import StartKvsup
from tests.registries import DockerRegistry
from tests.tiny import TinyModels

N_KILLS = 50

LOOP = """
import sys
from kvsup.cli import offline
from kvsup.cli.creating import create
from pathlib import Path

name, modelfile, config = sys.argv[1:]
config = Path(config)

def ignore(_line): pass

print("begun", flush=True)
while True:
    for what in (name, f"{name}-2"):
        offline.follow(lambda works: works.pull(what), config, ignore)
        print("pulled", flush=True)
    create("made", Path(modelfile), "", config)
    offline.change(lambda changes: changes.copy("made", "copied"), config)
    for what in ("made", "copied", name, f"{name}-2"):
        offline.change(lambda changes: changes.delete(what), config)
    print("removed", flush=True)
"""
"""Pulls, makes, copies and removes, without end."""


@pytest.mark.timeout(300)
def test_fifty_kills_at_random_leave_whole_models_only(
    start_kvsup: StartKvsup,
    registry: DockerRegistry,
    tiny: TinyModels,
    smollm2: Path,
    tmp_path: Path,
) -> None:
    """Pulled, made, copied or removed: each state on the way is one of before or after."""
    base = f'model = "{smollm2}"\nnum_ctx = 512\n'
    plain = f'model = "{tiny.plain()}"\nnum_ctx = 512\n'
    with Between(registry.host) as between:
        name = f"{between.host}/me/m"
        host = f'registries = ["{between.host}"]\n'
        maker = start_kvsup({"base": base, "plain": plain}, host=host)
        for made, origin in ((name, "base"), (f"{name}-2", "plain")):
            body = {"model": made, "from": origin, "system": made, "license": ["a", "b"]}
            maker.client.post("/api/create", json={**body, "stream": False}).raise_for_status()
            done = maker.client.post("/api/push", json={"model": made, "stream": False})
            assert done.json() == {"status": "success"}
        maker.stop()
        user = start_kvsup({}, host=host)
        user.stop()
        modelfile = tmp_path / "Modelfile"
        modelfile.write_text(f"FROM {name}-2\nSYSTEM made\n")
        loop = tmp_path / "loop.py"
        loop.write_text(textwrap.dedent(LOOP))
        between.rate_bytes_s = 300e6
        draw = random.Random(20261201)
        n_models = []

        for _ in range(N_KILLS):
            _kill([loop, name, modelfile, user.configs], draw.uniform(0.0, 1.2))
            n_models.append(_check(OwnStore(user.store)))
        between.rate_bytes_s = 0.0
        finished = user.cli("pull", name)

    assert finished.returncode == 0, finished.stderr
    assert _check(OwnStore(user.store)) >= 1
    assert len(set(n_models)) > 1
    assert {path.suffix for path in user.configs.iterdir() if path.name[0] != "."} == {".toml"}
    again = user.cli("check", str(user.configs))
    assert again.returncode == 0, again.stderr


def _kill(words: list[object], after_s: float) -> None:
    """Run a Python program, and kill it some time after it has begun."""
    with subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        begun = process.stdout.readline()
        time.sleep(after_s)
        assert process.poll() is None, begun + process.stdout.read()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()


def _check(store: OwnStore) -> int:
    """Hold a store to its promise; return how many models it lists."""
    for path in (store.root / "blobs").glob("*"):
        assert re.fullmatch(r"sha256-[0-9a-f]{64}", path.name), path
        assert digest_of(path, lambda _n: None) == path.name.removeprefix("sha256-")
    names = store.names()
    for path in (store.root / "manifests").rglob("*"):
        assert path.is_dir() or json.loads(path.read_text())["layers"]
    for name in names:
        manifest = decode_manifest(store.manifest_data(name))
        assert all(store.has(blob) for blob in manifest.files())
    return len(names)
