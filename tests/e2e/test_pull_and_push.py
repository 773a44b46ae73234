"""Pull and push by the API, against a real registry."""

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.between import Between, Fault
from tests.conftest import StartKvsup
from tests.pulling import blobs_of, create, lines_of, manifests_of, said, statuses
from tests.registries import DockerRegistry
from tests.running import RunningKvsup
from tests.tiny import ANSWER, TinyModels

HTPASSWD = "ada:$2b$05$abcdefghijklmnopqrstuuugyJgZetmHGvxwCJ1rpgM8bgT8KJ8.i\n"
"""What ``htpasswd -nbB ada lovelace`` writes."""


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


def test_model_goes_to_a_registry_and_comes_back_through_a_kill(
    start: Callable[..., RunningKvsup], between: Between, smollm2: Path
) -> None:
    """Pushed, pulled into an empty store with a ``kill -9`` in the middle, resumed, and chatted."""
    name = f"{between.host}/me/smol"
    first = start(smol=f'model = "{smollm2}"\nkv_cache_type = "q8_0:q5_1"\nnum_ctx = 1024\n')
    create(first, name, **{"from": "smol", "parameters": {"kv_cache_type": "q8_0:q4_0"}})
    spoken, blobs = said(first, name), blobs_of(first.store)
    pushed = statuses(lines_of(first, "/api/push", model=name))
    second = start()

    between.rate_bytes_s = 40e6
    before_bytes = between.n_sent_bytes
    with second.client.stream("POST", "/api/pull", json={"model": name}) as answer:
        for line in answer.iter_lines():
            if json.loads(line).get("completed", 0) > 40e6:
                break
        second.process.send_signal(signal.SIGKILL)
        second.process.wait()
    listed = manifests_of(second)
    between.rate_bytes_s = 0.0
    killed_bytes = between.n_sent_bytes - before_bytes
    second.start()
    pulled = statuses(lines_of(second, "/api/pull", model=name))

    whole_bytes = smollm2.stat().st_size
    resumed_bytes = between.n_sent_bytes - before_bytes - killed_bytes
    assert pushed[0] == "retrieving manifest"
    assert pushed[-2:] == ["pushing manifest", "success"]
    assert listed == []
    assert pulled[0] == "pulling manifest"
    assert pulled[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    assert resumed_bytes < whole_bytes - 20e6
    (manifest,) = manifests_of(second)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert digest == second.client.get("/api/tags").json()["models"][0]["digest"]
    assert blobs_of(second.store) == blobs
    assert all(name == digest for name, digest in blobs.items())
    assert said(second, name) == spoken
    assert second.models()[f"{name}:latest"]["kv_cache_type"] == "q8_0:q4_0"


def test_lines_of_a_pull_are_ollamas(
    start: Callable[..., RunningKvsup], between: Between, tiny: TinyModels
) -> None:
    """A line for each layer, the config last, each with its digest and bytes up to the total."""
    name = f"{between.host}/me/plain:v1"
    kvsup = start(plain=f'model = "{tiny.plain()}"\nnum_ctx = 512\n')
    create(kvsup, name, **{"from": "plain", "system": "Be brief."})
    manifest = json.loads(next(iter(manifests_of(kvsup))).read_text())
    lines_of(kvsup, "/api/push", model=name)
    kvsup.client.request("DELETE", "/api/delete", json={"model": name}).raise_for_status()
    assert blobs_of(kvsup.store) == {}

    lines = lines_of(kvsup, "/api/pull", model=name)
    again = lines_of(kvsup, "/api/pull", model=name)

    files = [*manifest["layers"], manifest["config"]]
    expected = [f"pulling {file['digest'][7:19]}" for file in files]
    ends = {line["status"]: line for line in lines}
    assert statuses(lines)[1 : len(files) + 1] == expected
    for file, status in zip(files, expected, strict=True):
        assert ends[status]["digest"] == file["digest"]
        assert ends[status]["total"] == ends[status]["completed"] == file["size"]
    assert statuses(again) == statuses(lines)
    assert said(kvsup, name) == ANSWER


def test_pull_that_fails_is_told_and_leaves_nothing_listed(
    start: Callable[..., RunningKvsup], between: Between
) -> None:
    """In Ollama's words, as the last line of a stream or as the answer."""
    kvsup = start()
    gone = f"{between.host}/me/gone"

    streamed = lines_of(kvsup, "/api/pull", model=gone)
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

    fine = lines_of(kvsup, "/api/pull", model=f"{between.host}/me/gone", insecure=True)
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

    lines = lines_of(kvsup, "/api/push", model=f"{between.host}/me/plain")

    assert statuses(lines)[:2] == ["retrieving manifest", "couldn't retrieve manifest"]
    assert "is missing" in lines[-1]["error"]


def test_equal_pulls_are_one_and_end_with_the_last_client(
    start: Callable[..., RunningKvsup], between: Between, smollm2: Path
) -> None:
    """Two clients, one download; the first that leaves does not end it, the last does."""
    name = f"{between.host}/me/smol"
    kvsup = start(smol=f'model = "{smollm2}"\nnum_ctx = 512\n')
    create(kvsup, name, **{"from": "smol"})
    lines_of(kvsup, "/api/push", model=name)
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
    create(maker, name, **{"from": "plain", "system": "Old."})
    lines_of(maker, "/api/push", model=name)
    lines_of(user, "/api/pull", model=name)
    create(maker, name, **{"from": "plain", "system": "New."})
    lines_of(maker, "/api/push", model=name)
    n_before = len(between.seen)

    lines = lines_of(user, "/api/pull", model=name)

    shown = user.client.post("/api/show", json={"model": name}).json()
    weights = json.loads(manifests_of(user)[0].read_text())["layers"][0]["digest"]
    fetched = [seen.path for seen in between.seen[n_before:] if "/blobs/" in seen.path]
    assert "removing unused layers" in statuses(lines)
    assert shown["system"] == "New."
    assert not any(weights in path for path in fetched)
    assert blobs_of(user.store) == blobs_of(maker.store)


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
        create(kvsup, name, **{"from": "plain"})

        refused = lines_of(kvsup, "/api/push", model=name)
        auths = {registry.host: {"auth": "YWRhOmxvdmVsYWNl"}}  # ada:lovelace
        (config / "config.json").write_text(json.dumps({"auths": auths}))
        pushed = lines_of(kvsup, "/api/push", model=name)
        pulled = lines_of(kvsup, "/api/pull", model=name)
        auths[registry.host]["auth"] = "YWRhOndyb25n"
        (config / "config.json").write_text(json.dumps({"auths": auths}))
        wrong = lines_of(kvsup, "/api/push", model=name)

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
    create(maker, name, **{"from": "plain"})
    lines_of(maker, "/api/push", model=name)
    shutil.copytree(maker.store, theirs)
    kvsup = start_kvsup({}, host=host, environment={"OLLAMA_MODELS": str(theirs)})
    n_before = len(between.seen)

    lines_of(kvsup, "/api/pull", model=name)

    fetched = [seen.path for seen in between.seen[n_before:] if "/blobs/" in seen.path]
    weights = tiny.plain().stat().st_size
    own = next(path for path in (kvsup.store / "blobs").iterdir() if path.stat().st_size == weights)
    assert own.samefile(theirs / "blobs" / own.name)
    assert not any(own.name.replace("-", ":") in path for path in fetched)
    assert said(kvsup, name) == ANSWER


def test_run_without_any_model_waits_for_the_first(
    start: Callable[..., RunningKvsup], between: Between, tiny: TinyModels
) -> None:
    """As Ollama does: an empty folder is no error, since a model can be pulled."""
    maker = start(plain=f'model = "{tiny.plain()}"\nnum_ctx = 512\n')
    name = f"{between.host}/me/plain"
    create(maker, name, **{"from": "plain"})
    lines_of(maker, "/api/push", model=name)
    kvsup = start()

    assert kvsup.client.get("/api/tags").json() == {"models": []}
    lines_of(kvsup, "/api/pull", model=name)
    assert said(kvsup, name) == ANSWER
