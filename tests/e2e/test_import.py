"""``kvsup import`` on the real llama-server: what it writes is checked and served."""

from pathlib import Path

import httpx
import pytest

from kvsup.runtime.paths import cache_dir
from tests.conftest import StartKvsup
from tests.e2e.commands import run
from tests.importing import SWAP
from tests.stores import OllamaLayout

FILES = (
    "Qwen3-8B-Q4_K_M", "gpt-oss-20b-mxfp4", "Mistral-Small-24B", "Coder-32B", "Coder-0.5B",
    "nomic-embed", "bge-reranker", "gemma-3-270m", "Qwen3-30B-A3B", "tiny",
)  # fmt: skip


@pytest.fixture
def there(tmp_path: Path, smollm2: Path) -> Path:
    """Return a folder with a configuration of llama-swap, whose models are all one small one."""
    models = tmp_path / "models"
    models.mkdir()
    for name in FILES:
        (models / f"{name}.gguf").symlink_to(smollm2)
    (tmp_path / "llama-swap.yaml").write_text(SWAP)
    return tmp_path


def environment(there: Path, llama_server: Path) -> dict[str, str]:
    """Return what the configuration's macros name, and a state of its own."""
    return {
        "MODELS": str(there / "models"),
        "BIN": str(llama_server.parent),
        "XDG_STATE_HOME": str(there / "state"),
        "XDG_CACHE_HOME": str(cache_dir().parent),
    }


def test_ten_models_of_llama_swap_check_clean_and_serve(
    there: Path, llama_server: Path, start_kvsup: StartKvsup
) -> None:
    """The whole way: imported, checked, and one of them asked, under its alias."""
    names = environment(there, llama_server)

    done = run("import", "llama-swap.yaml", "--to", "new", cwd=there, **names)
    checked = run("check", "new", cwd=there, **names)

    assert done.returncode == 0, done.stderr
    assert "10 of 10 models imported" in done.stdout
    assert "llama-swap.yaml:86: --frobnicate 3: is no argument of this llama-server" in done.stderr
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.count(": fine\n") == 10

    text = (there / "new" / "tiny.toml").read_text()
    kvsup = start_kvsup({"tiny": text})
    body = {
        "model": "smallest",
        "prompt": "The sea",
        "stream": False,
        "options": {"num_predict": 4},
    }
    answer = httpx.post(f"{kvsup.url}/api/generate", json=body, timeout=30)
    assert answer.json()["eval_count"] == 4


def test_import_is_repeated_only_by_force(there: Path, llama_server: Path) -> None:
    """What was edited since is not lost by a second import; of kvsup.toml only keys change."""
    names = environment(there, llama_server)
    run("import", "llama-swap.yaml", "--to", "new", cwd=there, **names)
    (there / "new" / "tiny.toml").write_text("# edited\n")
    (there / "new" / "kvsup.toml").write_text("# mine\nport = 1\n")
    before = {path: path.read_text() for path in (there / "new").iterdir()}

    again = run("import", "llama-swap.yaml", "--to", "new", cwd=there, **names)
    after = {path: path.read_text() for path in (there / "new").iterdir()}
    forced = run("import", "llama-swap.yaml", "--to", "new", "--force", cwd=there, **names)

    assert again.returncode == 2
    assert "tiny.toml" in again.stderr
    assert "kvsup.toml: log_level: is there already; write log_level = 'warning'" in again.stderr
    assert after == before
    assert forced.returncode == 0, forced.stderr
    assert "num_ctx = 512" in (there / "new" / "tiny.toml").read_text()
    host = (there / "new" / "kvsup.toml").read_text()
    assert host.startswith("# mine\n")
    assert "port = 1\n" in host
    assert 'log_level = "warning"' in host


def test_models_that_would_not_start_are_left_out_and_the_rest_is_written(
    there: Path, llama_server: Path
) -> None:
    """No file, no head that the pair divides, or a name that is taken: told, with the line."""
    names = environment(there, llama_server)
    (there / "new").mkdir()
    (there / "new" / "other.toml").write_text(
        'model = "x.gguf"\nname = "EMBED"\naliases = ["chat"]'
    )
    (there / "models" / "tiny.gguf").unlink()

    done = run("import", "llama-swap.yaml", "--to", "new", cwd=there, **names)

    assert done.returncode == 0, done.stderr
    assert "8 of 10 models imported" in done.stdout
    assert "llama-swap.yaml:95: model: no such file" in done.stderr
    assert (
        "llama-swap.yaml:75: name: 'embed' is the name of a model in new/other.toml" in done.stderr
    )
    assert "'chat' is the name of a model in new" in done.stderr
    assert not (there / "new" / "tiny.toml").exists()
    assert not (there / "new" / "embed.toml").exists()


def test_dry_run_prints_the_files_and_writes_nothing(there: Path, llama_server: Path) -> None:
    """To read before anything happens."""
    names = environment(there, llama_server)

    done = run("import", "llama-swap.yaml", "--to", "new", "--dry-run", cwd=there, **names)

    assert done.returncode == 0
    assert "#### new/qwen3-8b.toml\n# Imported from" in done.stdout
    assert not (there / "new").exists()


def test_llama_server_of_the_commands_is_kept(
    there: Path, older_llama_server: Path, smollm2: Path
) -> None:
    """One that all models have is the host's; what it takes is asked of it, not of kvsup's own."""
    text = f"models:\n  m:\n    cmd: {older_llama_server} -m {smollm2} -c 64 --direct-io\n"
    names = environment(there, older_llama_server)
    (there / "s.yml").write_text(text)

    run("import", "s.yml", "--to", "one", cwd=there, **names)
    (there / "s.yml").write_text(f"{text}  n:\n    cmd: /gone/llama-server -m {smollm2} -c 64\n")
    done = run("import", "s.yml", "--to", "two", cwd=there, **names)

    line = f'llama_server = "{older_llama_server}"'
    assert line in (there / "one" / "kvsup.toml").read_text()
    assert line in (there / "two" / "m.toml").read_text()
    assert "llama_server" not in (there / "two" / "n.toml").read_text()
    assert "s.yml:4: /gone/llama-server: is not on this machine" in done.stderr


def test_presets_of_the_router_check_clean(there: Path, llama_server: Path, smollm2: Path) -> None:
    """An INI is known by its sections, whatever it is called."""
    text = f"version = 1\n[*]\nctx-size = 256\n[m]\nmodel = {smollm2}\ncache-type-v = q5_1\n"
    (there / "presets.txt").write_text(text)
    names = environment(there, llama_server)

    done = run("import", "presets.txt", "--to", "new", cwd=there, **names)
    checked = run("check", "new", cwd=there, **names)

    assert done.returncode == 0, done.stderr
    assert "m: f16:q5_1, 256 tokens: fine" in checked.stdout


def test_installation_of_ollama_serves_its_own_files(
    there: Path, llama_server: Path, smollm2: Path, start_kvsup: StartKvsup
) -> None:
    """Its store is read, not copied; its variables are the host's keys."""
    store = OllamaLayout(there / "store")
    store.add(
        "smollm2:135m",
        store.file("model", smollm2),
        store.text("params", '{"num_ctx": 256, "temperature": 0, "num_thread": 1}'),
        store.text("system", "You answer\nin one word."),
        store.text("template", "{{ .Prompt }}"),
        config={"model_family": "llama"},
    )
    drop_in = f'[Service]\nEnvironment="OLLAMA_MODELS={store.root}" OLLAMA_NUM_PARALLEL=2\n'
    (there / "override.conf").write_text(drop_in)
    names = environment(there, llama_server)

    done = run("import", "ollama", "--env-file", "override.conf", "--to", "new", cwd=there, **names)
    checked = run("check", "new", cwd=there, **names)

    assert done.returncode == 0, done.stderr
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "num_parallel = 2" in (there / "new" / "kvsup.toml").read_text()
    kvsup = start_kvsup({"smollm2-135m": (there / "new" / "smollm2-135m.toml").read_text()})
    body = {"model": "smollm2:135m", "stream": False, "options": {"num_predict": 4}}
    messages = [{"role": "user", "content": "Is the sea wet?"}]
    answer = httpx.post(f"{kvsup.url}/api/chat", json={**body, "messages": messages}, timeout=30)
    assert answer.json()["done"]
    assert store.root.name in kvsup.cli("argv", "smollm2:135m").stdout


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "models: [", (2, "a.yaml:1: is no YAML")),
        ("a.txt", "hello", (2, "a.txt: is neither a configuration of llama-swap")),
        ("a.toml", "", (2, "a.toml: is TOML")),
        ("a.ini", "[m]\n", (1, "a.ini: none of 1 models can be served")),
        ("a.yaml", "\xff", (2, "cannot be read")),
    ],
)
def test_what_cannot_be_imported_is_told(
    there: Path, llama_server: Path, name: str, text: str, expected: tuple[int, str]
) -> None:
    """By exit code and in words; no folder is made."""
    (there / name).write_bytes(text.encode("latin-1"))

    done = run("import", name, "--to", "new", cwd=there, **environment(there, llama_server))

    assert (done.returncode, done.stdout) == (expected[0], "")
    assert expected[1] in done.stderr
    assert "Traceback" not in done.stderr
    assert not (there / "new").exists()
