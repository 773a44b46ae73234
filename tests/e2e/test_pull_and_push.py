"""Pull and push, by the API and by the command line, against a real registry."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvsup.runtime.bringing import digest_of
from kvsup.runtime.paths import cache_dir
from tests.between import Between, Fault
from tests.conftest import StartKvsup
from tests.e2e.commands import run
from tests.registries import DockerRegistry
from tests.running import RunningKvsup, eventually
from tests.tiny import ANSWER, TinyModels

HTPASSWD = "ada:$2b$05$abcdefghijklmnopqrstuuugyJgZetmHGvxwCJ1rpgM8bgT8KJ8.i\n"
"""What ``htpasswd -nbB ada lovelace`` writes."""

HI = [{"role": "user", "content": "Hi"}]
ASKED = {"messages": HI, "stream": False, "options": {"temperature": 0, "num_predict": 24}}


@pytest.fixture
def between(registry: DockerRegistry) -> Iterator[Between]:
    """Return what stands before the registry; models are named by its host."""
    with Between(registry.host) as between:
        yield between


@pytest.fixture
def start(start_kvsup: StartKvsup, between: Between) -> Callable[..., RunningKvsup]:
    """Return what starts a kvsup that may use the registry."""

    def start(**models: str) -> RunningKvsup:
        return start_kvsup(models, host=f'registries = ["{between.host}"]\n')

    return start


def _lines(kvsup: RunningKvsup, path: str, **body: object) -> list[dict[str, Any]]:
    with kvsup.client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.iter_lines()]


def _statuses(lines: list[dict[str, Any]]) -> list[str]:
    """Return each status once, in order."""
    return list(dict.fromkeys(line.get("status", line.get("error", "")) for line in lines))


def _blobs(store: Path) -> dict[str, str]:
    """Return what each file of a store really hashes to, by its name."""
    files = (store / "blobs").iterdir()
    return {path.name: f"sha256-{digest_of(path, lambda _n: None)}" for path in files}


def _create(kvsup: RunningKvsup, name: str, **more: object) -> None:
    answer = kvsup.client.post("/api/create", json={"model": name, "stream": False, **more})
    assert answer.json() == {"status": "success"}


def _said(kvsup: RunningKvsup, model: str) -> str:
    answer = kvsup.client.post("/api/chat", json={"model": model, **ASKED})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["message"]["content"])


def test_model_goes_to_a_registry_and_comes_back_through_a_kill(
    start: Callable[..., RunningKvsup], between: Between, smollm2: Path
) -> None:
    """Pushed, pulled into an empty store with a ``kill -9`` in the middle, resumed, and chatted."""
    name = f"{between.host}/me/smol"
    first = start(smol=f'model = "{smollm2}"\nkv_cache_type = "q8_0:q5_1"\nnum_ctx = 1024\n')
    _create(first, name, **{"from": "smol", "parameters": {"kv_cache_type": "q8_0:q4_0"}})
    said, blobs = _said(first, name), _blobs(first.store)
    pushed = _statuses(_lines(first, "/api/push", model=name))
    second = start()

    between.rate_bytes_s = 40e6
    before_bytes = between.n_sent_bytes
    with second.client.stream("POST", "/api/pull", json={"model": name}) as answer:
        for line in answer.iter_lines():
            if json.loads(line).get("completed", 0) > 40e6:
                break
        second.process.send_signal(signal.SIGKILL)
        second.process.wait()
    listed = _models_of(second)
    between.rate_bytes_s = 0.0
    killed_bytes = between.n_sent_bytes - before_bytes
    second.start()
    pulled = _statuses(_lines(second, "/api/pull", model=name))

    whole_bytes = smollm2.stat().st_size
    resumed_bytes = between.n_sent_bytes - before_bytes - killed_bytes
    assert pushed[0] == "retrieving manifest"
    assert pushed[-2:] == ["pushing manifest", "success"]
    assert listed == []
    assert pulled[0] == "pulling manifest"
    assert pulled[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    assert resumed_bytes < whole_bytes - 20e6
    assert _blobs(second.store) == blobs
    assert all(name == digest for name, digest in blobs.items())
    assert _said(second, name) == said
    assert second.models()[f"{name}:latest"]["kv_cache_type"] == "q8_0:q4_0"


def _models_of(kvsup: RunningKvsup) -> list[Path]:
    return [path for path in (kvsup.store / "manifests").rglob("*") if path.is_file()]


def test_lines_of_a_pull_are_ollamas(
    start: Callable[..., RunningKvsup], between: Between, tiny: TinyModels
) -> None:
    """A line for each layer, the config last, each with its digest and bytes up to the total."""
    name = f"{between.host}/me/plain:v1"
    kvsup = start(plain=f'model = "{tiny.plain()}"\nnum_ctx = 512\n')
    _create(kvsup, name, **{"from": "plain", "system": "Be brief."})
    manifest = json.loads(next(iter(_models_of(kvsup))).read_text())
    _lines(kvsup, "/api/push", model=name)
    kvsup.client.request("DELETE", "/api/delete", json={"model": name}).raise_for_status()
    assert _blobs(kvsup.store) == {}

    lines = _lines(kvsup, "/api/pull", model=name)
    again = _lines(kvsup, "/api/pull", model=name)

    files = [*manifest["layers"], manifest["config"]]
    expected = [f"pulling {file['digest'][7:19]}" for file in files]
    ends = {line["status"]: line for line in lines}
    assert _statuses(lines)[1 : len(files) + 1] == expected
    for file, status in zip(files, expected, strict=True):
        assert ends[status]["digest"] == file["digest"]
        assert ends[status]["total"] == ends[status]["completed"] == file["size"]
    assert _statuses(again) == _statuses(lines)
    assert _said(kvsup, name) == ANSWER


def test_pull_that_fails_is_told_and_leaves_nothing_listed(
    start: Callable[..., RunningKvsup], between: Between
) -> None:
    """In Ollama's words, as the last line of a stream or as the answer."""
    kvsup = start()
    gone = f"{between.host}/me/gone"

    streamed = _lines(kvsup, "/api/pull", model=gone)
    whole = kvsup.client.post("/api/pull", json={"model": gone, "stream": False})
    between.rules.append(lambda _seen: Fault(status=503, body=b"down"))
    down = kvsup.client.post("/api/pull", json={"model": gone, "stream": False})

    text = "pull model manifest: file does not exist"
    assert streamed == [{"status": "pulling manifest"}, {"error": text}]
    assert (whole.status_code, whole.json()) == (500, {"error": text})
    assert down.json() == {"error": "pull model manifest: 503: down"}
    assert kvsup.client.get("/api/tags").json() == {"models": []}


@pytest.mark.parametrize("route", ["pull", "push"])
def test_registry_that_is_not_listed_is_not_asked(
    start: Callable[..., RunningKvsup], route: str
) -> None:
    """Nor is a name that is none."""
    kvsup = start()

    other = kvsup.client.post(f"/api/{route}", json={"model": "evil.example/me/m"})
    none = kvsup.client.post(f"/api/{route}", json={"model": "../../etc/passwd"})

    assert other.status_code == 400
    assert "evil.example is none of the registries" in other.json()["error"]
    assert "registries in kvsup.toml" in other.json()["error"]
    assert none.status_code == 400


def test_registry_is_asked_without_tls_only_where_registries_says_so(
    start_kvsup: StartKvsup, between: Between
) -> None:
    """``insecure`` of a request alone downgrades nothing; where it is so anyway it is fine."""
    kvsup = start_kvsup({}, host=f'registries = ["{between.host}", "https://localhost:1"]\n')

    fine = _lines(kvsup, "/api/pull", model=f"{between.host}/me/gone", insecure=True)
    body = {"model": "localhost:1/me/m", "insecure": True}
    refused = kvsup.client.post("/api/pull", json=body)

    assert fine[-1] == {"error": "pull model manifest: file does not exist"}
    assert refused.status_code == 400
    assert 'write "http://localhost:1" in registries' in refused.json()["error"]


def test_push_of_what_is_not_there_is_told(
    start: Callable[..., RunningKvsup], between: Between, tiny: TinyModels
) -> None:
    """A model with a file of its own is not in the store."""
    kvsup = start(plain=f'model = "{tiny.plain()}"\nnum_ctx = 512\n')

    lines = _lines(kvsup, "/api/push", model=f"{between.host}/me/plain")

    assert _statuses(lines)[:2] == ["retrieving manifest", "couldn't retrieve manifest"]
    assert "is missing" in lines[-1]["error"]


def test_equal_pulls_are_one_and_end_with_the_last_client(
    start: Callable[..., RunningKvsup], between: Between, smollm2: Path
) -> None:
    """Two clients, one download; the first that leaves does not end it, the last does."""
    name = f"{between.host}/me/smol"
    kvsup = start(smol=f'model = "{smollm2}"\nnum_ctx = 512\n')
    _create(kvsup, name, **{"from": "smol"})
    _lines(kvsup, "/api/push", model=name)
    kvsup.client.request("DELETE", "/api/delete", json={"model": name}).raise_for_status()
    between.rate_bytes_s, begin_bytes = 20e6, between.n_sent_bytes

    with (
        httpx.Client(base_url=kvsup.url) as one,
        httpx.Client(base_url=kvsup.url) as other,
        one.stream("POST", "/api/pull", json={"model": name}) as first,
    ):
        _read_until(first, 5e6)
        with other.stream("POST", "/api/pull", json={"model": name.upper().lower()}) as second:
            _read_until(second, 5e6)
            first.close()
            _read_until(second, 30e6)
    left_bytes = between.n_sent_bytes
    time.sleep(0.5)
    after_bytes = between.n_sent_bytes

    assert after_bytes - left_bytes < 15e6
    assert after_bytes - begin_bytes < 60e6
    assert kvsup.client.get("/api/tags").json()["models"][0]["name"] == "smol:latest"


def _read_until(answer: httpx.Response, n_bytes: float) -> None:
    # iter_lines of a response can be begun once only
    text = getattr(answer, "_lines", None) or answer.iter_lines()
    answer._lines = text  # type: ignore[attr-defined]
    for line in text:
        if json.loads(line).get("completed", 0) >= n_bytes:
            return


def test_changed_model_replaces_what_was_there(
    start: Callable[..., RunningKvsup], between: Between, tiny: TinyModels
) -> None:
    """What only the old one had goes; what both have is not fetched again."""
    name = f"{between.host}/me/m"
    base = f'model = "{tiny.plain()}"\nnum_ctx = 512\n'
    maker, user = start(plain=base), start()
    _create(maker, name, **{"from": "plain", "system": "Old."})
    _lines(maker, "/api/push", model=name)
    _lines(user, "/api/pull", model=name)
    _create(maker, name, **{"from": "plain", "system": "New."})
    _lines(maker, "/api/push", model=name)
    n_before = len(between.seen)

    lines = _lines(user, "/api/pull", model=name)

    shown = user.client.post("/api/show", json={"model": name}).json()
    weights = json.loads(_models_of(user)[0].read_text())["layers"][0]["digest"]
    fetched = [seen.path for seen in between.seen[n_before:] if "/blobs/" in seen.path]
    assert "removing unused layers" in _statuses(lines)
    assert shown["system"] == "New."
    assert not any(weights in path for path in fetched)
    assert _blobs(user.store) == _blobs(maker.store)


def test_command_line_pulls_without_a_kvsup_that_runs(
    start: Callable[..., RunningKvsup], between: Between, tiny: TinyModels
) -> None:
    """The next ``run`` serves it; progress is on stderr."""
    name = f"{between.host}/me/plain"
    kvsup = start(plain=f'model = "{tiny.plain()}"\nnum_ctx = 512\n')
    _create(kvsup, name, **{"from": "plain"})
    pushed = kvsup.cli("push", name)
    removed = kvsup.cli("rm", name)
    assert kvsup.stop() == 0

    pulled = kvsup.cli("pull", name)
    again = kvsup.cli("pull", f"{between.host}/me/gone")
    kvsup.start()

    assert (pushed.returncode, removed.returncode, pulled.returncode) == (0, 0, 0), pulled.stderr
    assert removed.stdout == f"deleted {name!r}\n"
    assert pulled.stderr.splitlines()[0] == "pulling manifest"
    assert pulled.stderr.splitlines()[-1] == "success"
    assert again.returncode == 1
    assert again.stderr.endswith("kvsup: pull model manifest: file does not exist\n")
    assert _said(kvsup, name) == ANSWER


def test_registry_that_asks_for_a_password_gets_that_of_docker(
    start_kvsup: StartKvsup, tiny: TinyModels, tmp_path: Path
) -> None:
    """Without one, or with a wrong one, the error names the command that mends it."""
    config = tmp_path / "docker"
    config.mkdir()
    with DockerRegistry(tmp_path / "closed", htpasswd=HTPASSWD) as registry:
        kvsup = start_kvsup(
            {"plain": f'model = "{tiny.plain()}"\nnum_ctx = 512\n'},
            host=f'registries = ["{registry.host}"]\n',
            environment={"DOCKER_CONFIG": str(config)},
        )
        name = f"{registry.host}/me/plain"
        _create(kvsup, name, **{"from": "plain"})

        refused = _lines(kvsup, "/api/push", model=name)
        auths = {registry.host: {"auth": "YWRhOmxvdmVsYWNl"}}  # ada:lovelace
        (config / "config.json").write_text(json.dumps({"auths": auths}))
        pushed = _lines(kvsup, "/api/push", model=name)
        pulled = _lines(kvsup, "/api/pull", model=name)
        auths[registry.host]["auth"] = "YWRhOndyb25n"
        (config / "config.json").write_text(json.dumps({"auths": auths}))
        wrong = _lines(kvsup, "/api/push", model=name)

    assert "unauthorized: access denied" in refused[-1]["error"]
    assert f"docker login {registry.host}" in refused[-1]["error"]
    assert pushed[-1] == pulled[-1] == {"status": "success"}
    assert "unauthorized: access denied" in wrong[-1]["error"]


def test_store_of_ollama_is_linked_not_fetched(
    start_kvsup: StartKvsup, between: Between, tiny: TinyModels, tmp_path: Path
) -> None:
    """Its files are checked, and have a second name; nothing there is changed."""
    name = f"{between.host}/me/plain"
    theirs = tmp_path / "ollama"
    host = f'registries = ["{between.host}"]\n'
    maker = start_kvsup({"plain": f'model = "{tiny.plain()}"\nnum_ctx = 512\n'}, host=host)
    _create(maker, name, **{"from": "plain"})
    _lines(maker, "/api/push", model=name)
    shutil.copytree(maker.store, theirs)
    kvsup = start_kvsup({}, host=host, environment={"OLLAMA_MODELS": str(theirs)})
    n_before = len(between.seen)

    _lines(kvsup, "/api/pull", model=name)

    fetched = [seen.path for seen in between.seen[n_before:] if "/blobs/" in seen.path]
    weights = tiny.plain().stat().st_size
    own = next(path for path in (kvsup.store / "blobs").iterdir() if path.stat().st_size == weights)
    assert own.samefile(theirs / "blobs" / own.name)
    assert not any(own.name.replace("-", ":") in path for path in fetched)
    assert _said(kvsup, name) == ANSWER


def test_run_without_any_model_waits_for_the_first(
    start: Callable[..., RunningKvsup], between: Between, tiny: TinyModels
) -> None:
    """As Ollama does: an empty folder is no error, since a model can be pulled."""
    maker = start(plain=f'model = "{tiny.plain()}"\nnum_ctx = 512\n')
    name = f"{between.host}/me/plain"
    _create(maker, name, **{"from": "plain"})
    _lines(maker, "/api/push", model=name)
    kvsup = start()

    assert kvsup.client.get("/api/tags").json() == {"models": []}
    _lines(kvsup, "/api/pull", model=name)
    assert _said(kvsup, name) == ANSWER


def test_first_command_of_a_new_user_is_a_pull(
    start: Callable[..., RunningKvsup], between: Between, tiny: TinyModels, tmp_path: Path
) -> None:
    """No folder is there, no file was written: what is pulled is listed, and ``run`` serves it."""
    name = f"{between.host}/me/plain"
    maker = start(plain=f'model = "{tiny.plain()}"\nnum_ctx = 512\n')
    _create(maker, name, **{"from": "plain"})
    _lines(maker, "/api/push", model=name)
    home = tmp_path / "home"
    (home / ".config/kvsup").mkdir(parents=True)
    (home / ".config/kvsup/kvsup.toml").write_text(f'registries = ["{between.host}"]\nport = 0\n')
    folders = {"XDG_CONFIG_HOME": "", "XDG_STATE_HOME": "", "XDG_DATA_HOME": "", "HOME": str(home)}
    cache = {"XDG_CACHE_HOME": str(cache_dir().parent)}

    pulled = run("pull", name, cwd=home, **folders, **cache)
    shutil.rmtree(home / ".config")
    listed = run("list", cwd=home, **folders, **cache)

    assert pulled.returncode == 0, pulled.stderr
    assert listed.returncode == 0, listed.stderr
    assert f"{name}:latest" in listed.stdout
    assert (home / ".local/share/kvsup/models/manifests").is_dir()


def test_interrupted_command_line_goes_on(
    start: Callable[..., RunningKvsup], between: Between, smollm2: Path
) -> None:
    """Ctrl-C leaves what came; exit code 130."""
    name = f"{between.host}/me/smol"
    kvsup = start(smol=f'model = "{smollm2}"\nnum_ctx = 512\n')
    _create(kvsup, name, **{"from": "smol"})
    _lines(kvsup, "/api/push", model=name)
    kvsup.cli("rm", name)
    kvsup.stop()
    between.rate_bytes_s = 30e6
    with subprocess.Popen(
        [sys.executable, "-m", "kvsup", "pull", name, "--config", str(kvsup.configs)],
        stderr=subprocess.PIPE,
        env=kvsup._environment,
    ) as process:
        eventually(lambda: between.n_sent_bytes > 40e6)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    between.rate_bytes_s = 0.0
    before_bytes = between.n_sent_bytes

    pulled = kvsup.cli("pull", name)

    assert pulled.returncode == 0, pulled.stderr
    assert between.n_sent_bytes - before_bytes < smollm2.stat().st_size - 20e6
