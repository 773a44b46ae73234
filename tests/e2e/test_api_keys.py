"""A real kvsup with API keys: who may call, how the command line does, and what never leaks."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import openai
import pytest

from kvsup.runtime.paths import address_file
from tests.e2e.commands import ROOT, failure, out, run
from tests.running import RunningKvsup, eventually

SMOLLM2 = 'model = "{path}"\nnum_ctx = 256\nthreads = 1\n'

INFER = "infer-secret-0123456789"
MANAGE = "manage-secret-0123456789"
OTHER = "other-secret-0123456789"
WRONG = "wrong-secret-0123456789"
SECRETS = (INFER, MANAGE, OTHER, WRONG)

KEYS = f"""\
[phone]
sha256 = "{hashlib.sha256(INFER.encode()).hexdigest()}"

[desk]
key = "{MANAGE}"
scope = "manage"
"""

OPEN = (
    "kvsup: other machines can reach 0.0.0.0, and there are no API keys; set api_keys in "
    "kvsup.toml, listen on 127.0.0.1, or start with --insecure"
)


def _write_keys(path: Path, text: str = KEYS, *, mode: int = 0o600) -> None:
    path.touch()
    path.chmod(mode)
    path.write_text(text)


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def kvsup(
    tmp_path_factory: pytest.TempPathFactory, llama_server: Path, smollm2: Path
) -> Iterator[RunningKvsup]:
    """Return a kvsup that listens on every interface, whose output must never hold a key."""
    folder = tmp_path_factory.mktemp("keys")
    _write_keys(folder / "keys.toml")
    with RunningKvsup(
        folder / "kvsup",
        models={"smollm2": SMOLLM2.format(path=smollm2)},
        llama_server=llama_server,
        host=f'host = "0.0.0.0"\nlog_level = "debug"\napi_keys = "{folder}/keys.toml"\n',
    ) as running:
        yield running
    assert "API keys: phone (infer), desk (manage)" in running.log()
    for secret in SECRETS:
        assert secret not in running.log()
        assert hashlib.sha256(secret.encode()).hexdigest() not in running.log().lower()


@pytest.fixture
def folder(tmp_path: Path, llama_server: Path, smollm2: Path) -> Path:
    """Return a configuration folder with one model and, in it, a file of keys."""
    (tmp_path / "smollm2.toml").write_text(SMOLLM2.format(path=smollm2))
    (tmp_path / "kvsup.toml").write_text(
        f'llama_server = "{llama_server}"\nstate_dir = "state"\nport = 0\napi_keys = "keys.toml"\n'
    )
    _write_keys(tmp_path / "keys.toml")
    return tmp_path


@pytest.mark.parametrize(
    ("key", "statuses"),
    [(None, (200, 401, 401)), (WRONG, (200, 401, 401)), (INFER, (200, 200, 403))],
)
def test_request_without_enough_of_a_key_is_refused(
    kvsup: RunningKvsup, key: str | None, statuses: tuple[int, ...]
) -> None:
    """Version for all, listing for every key, management for a manage key alone."""
    headers = {} if key is None else _bearer(key)

    answers = [
        kvsup.client.get(path, headers=headers)
        for path in ("/api/version", "/api/tags", "/kvsup/models")
    ]

    assert tuple(answer.status_code for answer in answers) == statuses


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/kvsup/stop"),
        ("POST", "/%6bvsup/stop"),
        ("POST", "/kvsup/stop%0A"),
        ("GET", "/kvsup/logs/smollm2"),
        ("POST", "/kvsup/reload"),
        ("DELETE", "/api/delete"),
        ("DELETE", "/api/%64elete"),
        ("DELETE", "/api/delete%0A"),
        ("POST", "/api/copy"),
        ("POST", "/upstream/smollm2/slots/0?action=erase"),
        ("POST", "/upstream/smollm2/slots%2F0%3Faction=erase&x=/completion"),
    ],
)
def test_management_with_an_infer_key_is_403_however_it_is_written(
    kvsup: RunningKvsup, method: str, path: str
) -> None:
    """No spelling that reaches a route of management passes as something else."""
    answer = kvsup.client.request(method, path, headers=_bearer(INFER))

    assert answer.status_code == 403
    assert answer.json()  # in the shape of its API


def test_preflight_of_a_page_needs_no_key_and_a_refusal_can_be_read(kvsup: RunningKvsup) -> None:
    """A browser sends no key with OPTIONS, and shows no answer without the headers of CORS."""
    origin = {"Origin": "http://localhost:3000"}

    preflight = kvsup.client.options("/api/chat", headers=origin)
    refused = kvsup.client.get("/api/tags", headers=origin)

    assert preflight.status_code == 204
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == origin["Origin"]


def test_inference_with_an_infer_key_answers_and_gives_the_child_no_key(
    kvsup: RunningKvsup,
) -> None:
    """A key ends at kvsup: no llama-server sees it, in no argument, variable or header."""
    body = {"model": "smollm2", "prompt": "Hi", "stream": False, "options": {"num_predict": 1}}

    generated = kvsup.client.post("/api/generate", json=body, headers={"X-Api-Key": INFER})
    passed = kvsup.client.post(
        "/upstream/smollm2/completion",
        json={"prompt": "Hi", "n_predict": 1},
        headers=_bearer(INFER),
    )

    assert generated.status_code == passed.status_code == 200
    (child,) = kvsup.children()
    told = [*child.cmdline(), *child.environ().values(), *child.environ()]
    assert not [word for word in told for secret in SECRETS if secret in word]


def test_clients_with_their_own_key_setting_work_and_raise_their_own_class(
    kvsup: RunningKvsup,
) -> None:
    """Each SDK sends its key as it does elsewhere, and knows the refusal as what it is."""
    with (
        openai.OpenAI(base_url=f"{kvsup.url}/v1", api_key=INFER) as good,
        openai.OpenAI(base_url=f"{kvsup.url}/v1", api_key=WRONG) as bad,
    ):
        names = [model.id for model in good.models.list()]
        with pytest.raises(openai.AuthenticationError) as openai_error:
            bad.models.list()
    with (
        ollama.Client(kvsup.url, headers=_bearer(WRONG)) as llama,
        pytest.raises(ollama.ResponseError) as ollama_error,
    ):
        llama.list()

    assert names
    assert openai_error.value.code == "invalid_api_key"
    assert ollama_error.value.error == "unauthorized: no such API key"
    assert ollama_error.value.status_code == 401


def test_command_line_sends_the_manage_key_of_the_file(kvsup: RunningKvsup) -> None:
    """On the machine of kvsup nothing has to be typed."""
    assert "smollm2" in out(kvsup, "ps")
    assert out(kvsup, "reload") == "configuration read again\n"
    assert out(kvsup, "logs", "smollm2") is not None


@pytest.mark.parametrize(("key", "code"), [(WRONG, 1), (INFER, 1), (MANAGE, 0)])
def test_command_line_with_a_key_in_the_environment_sends_that(
    kvsup: RunningKvsup, key: str, code: int
) -> None:
    """The variable wins over the file; what is wrong with it is said without it."""
    done = subprocess.run(
        [sys.executable, "-m", "kvsup", "ps"],
        env={**os.environ, "KVSUP_CONFIG_DIR": str(kvsup.configs), "KVSUP_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == code
    assert key not in done.stdout + done.stderr
    if code:
        assert "set KVSUP_API_KEY to a key of scope manage" in done.stderr


def test_command_line_where_the_file_has_only_sha256_says_what_to_set(
    tmp_path: Path, llama_server: Path, smollm2: Path
) -> None:
    """From a SHA-256 no key can be made."""
    digest = hashlib.sha256(MANAGE.encode()).hexdigest()
    _write_keys(tmp_path / "keys.toml", f'[desk]\nsha256 = "{digest}"\nscope = "manage"\n')
    with RunningKvsup(
        tmp_path / "kvsup",
        models={"smollm2": SMOLLM2.format(path=smollm2)},
        llama_server=llama_server,
        host=f'api_keys = "{tmp_path}/keys.toml"\n',
    ) as running:
        code, message = failure(running, "ps")

    assert code == 1
    assert "send Authorization: Bearer KEY" in message
    assert "set KVSUP_API_KEY to a key of scope manage" in message


def test_reload_takes_up_new_keys_and_a_wrong_file_changes_none(
    tmp_path: Path, llama_server: Path, smollm2: Path
) -> None:
    """A key is withdrawn without an end of kvsup; a slip locks nobody out and opens nothing."""
    path = tmp_path / "keys.toml"
    _write_keys(path)
    with RunningKvsup(
        tmp_path / "kvsup",
        models={"smollm2": SMOLLM2.format(path=smollm2)},
        llama_server=llama_server,
        host=f'host = "0.0.0.0"\nlog_level = "debug"\napi_keys = "{path}"\n',
    ) as running:

        def status(key: str) -> int:
            return running.client.get("/api/tags", headers=_bearer(key)).status_code

        assert (status(INFER), status(OTHER)) == (200, 401)

        path.write_text(KEYS.replace("[phone]", f'[tablet]\nkey = "{OTHER}"\n[phone]\nscop = 1'))
        code, message = failure(running, "reload")
        assert code == 1
        assert "phone.scop: unknown key" in message
        assert (status(INFER), status(OTHER)) == (200, 401)

        path.write_text(f'[tablet]\nkey = "{OTHER}"\n[desk]\nkey = "{MANAGE}"\nscope = "manage"\n')
        running.process.send_signal(signal.SIGHUP)
        eventually(lambda: status(OTHER) == 200)
        assert status(INFER) == 401

        path.chmod(0o644)
        refused = running.client.post("/kvsup/reload", headers=_bearer(MANAGE))
        assert f"is open to others (mode 0644); run chmod 600 {path}" in refused.json()["error"]
        assert status(INFER) == 401

        settings = running.configs / "kvsup.toml"
        settings.write_text(settings.read_text().replace("api_keys", "# api_keys"))
        refused = running.client.post("/kvsup/reload", headers=_bearer(MANAGE))
        assert (refused.status_code, refused.json()) == (400, {"error": OPEN[len("kvsup: ") :]})
        assert status(INFER) == 401
        log = running.log()
    for secret in SECRETS:
        assert secret not in log + message


@pytest.mark.parametrize("variable", [True, False])
def test_run_beyond_loopback_without_keys_is_refused(folder: Path, variable: bool) -> None:  # noqa: FBT001
    """Whether the address comes from kvsup.toml or from Ollama's variable; nothing has started."""
    settings = (folder / "kvsup.toml").read_text().replace("api_keys", "# api_keys")
    if not variable:
        settings += 'host = "0.0.0.0"\n'
    (folder / "kvsup.toml").write_text(settings)
    (folder / "keys.toml").unlink()

    done = run("run", ".", cwd=folder, **({"OLLAMA_HOST": "0.0.0.0"} if variable else {}))

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == OPEN
    assert not address_file(folder / "state").exists()


def test_run_insecure_beyond_loopback_starts_with_a_warning(folder: Path) -> None:
    """Who says so may; the log says it at every start, and reloads go on as without."""
    settings = (folder / "kvsup.toml").read_text().replace("api_keys", "# api_keys")
    (folder / "kvsup.toml").write_text(settings + 'host = "0.0.0.0"\n')
    (folder / "keys.toml").unlink()
    address = address_file(folder / "state")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvsup", "run", "--insecure", "."],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=log,
        )
    try:
        eventually(lambda: address.exists() and address.read_text())
        with httpx.Client(base_url=address.read_text(), trust_env=False) as client:
            assert client.get("/api/tags").status_code == 200
            assert client.post("/kvsup/reload").status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0

    warning = "WARNING whoever reaches 0.0.0.0 can use every model: no API keys"
    assert warning in (folder / "log").read_text()


def test_key_file_in_the_configuration_folder_is_no_model(folder: Path) -> None:
    """Its path is relative to kvsup.toml, and what it holds is not listed."""
    done = run("list", "--json", "-c", ".", cwd=folder)

    assert (done.returncode, done.stderr) == (0, "")
    assert [model["name"] for model in json.loads(done.stdout)] == ["smollm2"]
    assert MANAGE not in done.stdout


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        (KEYS, 0o640, "keys.toml: is open to others (mode 0640); run chmod 600 keys.toml"),
        (KEYS, 0o602, "keys.toml: is open to others (mode 0602); run chmod 600 keys.toml"),
        (f'[x]\nkey = "{MANAGE}', 0o600, "keys.toml: is no TOML: "),
        (f"[x]\nkey = {MANAGE}", 0o600, "keys.toml:2: is no TOML: "),
        ('[x]\nkey = "secret-0"', 0o600, "keys.toml:2: x.key: is shorter than 16 characters; "),
        ("", 0o600, "keys.toml: holds no key; "),
    ],
)
def test_check_of_a_wrong_key_file_tells_it_and_no_key(
    folder: Path, text: str, mode: int, problem: str
) -> None:
    """Keys are checked with all the rest, before anything starts."""
    _write_keys(folder / "keys.toml", text, mode=mode)

    done = run("check", ".", cwd=folder)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(problem)
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


@pytest.mark.parametrize("path", ["gone.toml", "", "a\\u0000b", "state"])
def test_check_where_the_key_file_is_none_tells_its_path(folder: Path, path: str) -> None:
    """A slip in the path is no reason to ask for no key."""
    settings = (folder / "kvsup.toml").read_text()
    (folder / "kvsup.toml").write_text(settings.replace("keys.toml", path))
    (folder / "keys.toml").unlink()

    done = run("check", ".", cwd=folder)

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].partition(": ")[2].startswith("cannot be read: ")
    assert "Traceback" not in done.stderr
