"""Models that are made: by Modelfiles and the command line, by the API, copied and deleted."""

import hashlib
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tomli

from tests.conftest import StartKvsup
from tests.running import RunningKvsup
from tests.tiny import ANSWER, TinyModels

HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def kvsup(start_kvsup: StartKvsup, tiny: TinyModels) -> RunningKvsup:
    """Return a kvsup with one model that has a file of its own."""
    base = f'model = "{tiny.plain()}"\nnum_ctx = 512\nkv_cache_type = "q8_0:q5_1"\nthreads = 1\n'
    return start_kvsup({"base": base})


def _modelfile(kvsup: RunningKvsup, text: str) -> str:
    path = kvsup.folder / "Modelfile"
    path.write_text(textwrap.dedent(text))
    return str(path)


def _toml(kvsup: RunningKvsup, name: str) -> dict[str, Any]:
    return tomli.loads((kvsup.configs / f"{name}.toml").read_text())


def _post(kvsup: RunningKvsup, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = kvsup.client.post(path, json={"stream": False, **body})
    return answer.status_code, answer.json() if answer.content else {}


def _said(kvsup: RunningKvsup, model: str) -> str:
    status, answer = _post(kvsup, "/api/chat", model=model, messages=HI)
    assert status == 200, answer
    return str(answer["message"]["content"])


def _upload(kvsup: RunningKvsup, path: Path) -> str:
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    kvsup.client.post(f"/api/blobs/{digest}", content=data).raise_for_status()
    return digest


def _files(kvsup: RunningKvsup) -> set[str]:
    """Return every file of the store but its lock."""
    found = {str(p.relative_to(kvsup.store)) for p in kvsup.store.rglob("*") if p.is_file()}
    return found - {"kvsup/lock"}


MARIO = """
    # A plumber.
    FROM base
    PARAMETER kv_cache_type q8_0:q4_0
    PARAMETER num_ctx auto
    PARAMETER temperature 0.3
    PARAMETER stop "<end>"
    PARAMETER stop "<stop>"
    SYSTEM \"\"\"You are Mario.
    Always.\"\"\"
    LICENSE As you like it.
    MESSAGE user Is it you?
    MESSAGE assistant It's me!
"""


def test_modelfile_makes_a_model_with_a_file_that_says_the_same(kvsup: RunningKvsup) -> None:
    """The pair and ``num_ctx auto`` are taken; the TOML file beside it is what a person edits."""
    done = kvsup.cli("create", "mario", "-f", _modelfile(kvsup, MARIO))

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-2:] == ["writing manifest", "success"]
    assert _toml(kvsup, "mario") == {
        "name": "mario",
        "model": "ollama:mario:latest",
        "kv_cache_type": "q8_0:q4_0",
        "num_ctx": "auto",
        "threads": 1,
        "system": "You are Mario.\nAlways.",
        "messages": [
            {"role": "user", "content": "Is it you?"},
            {"role": "assistant", "content": "It's me!"},
        ],
        "options": {"temperature": 0.3, "stop": ["<end>", "<stop>"]},
    }
    assert _said(kvsup, "mario") == ANSWER
    ps = kvsup.client.get("/api/ps").json()["models"][0]
    assert ps["kv_cache_type"] == "q8_0:q4_0"


def test_edit_of_the_file_beside_comes_before_the_store(kvsup: RunningKvsup) -> None:
    """The store's word lies below, as for any model of a store."""
    kvsup.cli("create", "mario", "-f", _modelfile(kvsup, MARIO))
    path = kvsup.configs / "mario.toml"
    path.write_text(path.read_text().replace("q8_0:q4_0", "f16:f16"))

    kvsup.client.post("/kvsup/reload").raise_for_status()

    assert kvsup.models()["mario"]["kv_cache_type"] == "f16:f16"


def test_what_is_shown_of_a_created_model_makes_the_same_again(kvsup: RunningKvsup) -> None:
    """``show`` has every part, and its Modelfile is one."""
    kvsup.cli("create", "mario", "-f", _modelfile(kvsup, MARIO))
    status, shown = _post(kvsup, "/api/show", model="mario")

    again = kvsup.cli("create", "twin", "-f", _modelfile(kvsup, shown["modelfile"]))

    _, twin = _post(kvsup, "/api/show", model="twin")
    assert status == 200
    assert again.returncode == 0, again.stderr
    assert shown["messages"] == [
        {"role": "user", "content": "Is it you?"},
        {"role": "assistant", "content": "It's me!"},
    ]
    assert shown["license"] == "As you like it."
    assert shown["system"] == "You are Mario.\nAlways."
    for part in ("license", "system", "messages", "template"):
        assert twin[part] == shown[part]
    assert twin["details"] == shown["details"]


def test_command_line_makes_models_without_a_kvsup_that_runs(
    kvsup: RunningKvsup, tiny: TinyModels
) -> None:
    """From a file, which is copied into the store; the next run serves it."""
    kvsup.stop()

    text = f"FROM {tiny.plain()}\nPARAMETER num_ctx 512\n"
    done = kvsup.cli("create", "made", "-f", _modelfile(kvsup, text))
    kvsup.start()

    assert done.returncode == 0, done.stderr
    assert _toml(kvsup, "made") == {"name": "made", "model": "ollama:made:latest", "num_ctx": 512}
    assert _said(kvsup, "made") == ANSWER


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no FROM line"),
        ("FROM base\nPARAMETER nonsense 1\n", "unknown parameter 'nonsense'"),
        ("FROM base\nPARAMETER num_ctx many\n", "invalid int value [many]"),
        ("FROM base\nPARAMETER kv_cache_type q8_0:q9_9\n", "q9_9"),
        ("FROM base\nSHOUT hi\n", '(line 2): command must be one of "from", "license"'),
        ("FROM base\nMESSAGE tool x\n", "(line 2): message role must be one of"),
        ("FROM base\nTEMPLATE {{ if }}\n", "template error: "),
        ("FROM ./gone.gguf\n", "gone.gguf: no such file"),
        ("FROM base\nADAPTER ./gone.gguf\n", "gone.gguf: no such file"),
        ("FROM base\nFROM other\n", "a model is built on one other"),
        ("FROM ../../../etc/passwd\n", "etc/passwd"),
    ],
)
def test_wrong_modelfile_is_told_and_changes_nothing(
    kvsup: RunningKvsup, text: str, told: str
) -> None:
    """Before anything is written."""
    done = kvsup.cli("create", "mario", "-f", _modelfile(kvsup, text))

    assert done.returncode == 1
    assert told in done.stderr
    assert [path.name for path in sorted(kvsup.configs.iterdir())] == ["base.toml", "kvsup.toml"]
    assert not [name for name in _files(kvsup) if name.startswith("manifests")]


def test_model_that_could_not_be_served_is_not_made(kvsup: RunningKvsup) -> None:
    """The cause is told, and what had the name before is there again."""
    kvsup.cli("create", "mario", "-f", _modelfile(kvsup, MARIO))
    before = (kvsup.configs / "mario.toml").read_text(), _files(kvsup)
    bad = {"kv_cache_type": "q4_0:q4_0", "num_ctx": 512}
    kvsup.write("base", (kvsup.configs / "base.toml").read_text() + 'flash_attention = "off"\n')
    kvsup.write(
        "base",
        (kvsup.configs / "base.toml").read_text().replace('"q8_0:q5_1"', '"f16:f16"'),
    )

    status, answer = _post(kvsup, "/api/create", model="mario", parameters=bad, **{"from": "base"})

    assert status == 400
    assert "flash" in answer["error"]
    assert (kvsup.configs / "mario.toml").read_text() == before[0]
    assert before[1] <= _files(kvsup)
    assert _said(kvsup, "mario") == ANSWER


def test_files_make_a_model_by_the_api(kvsup: RunningKvsup, tiny: TinyModels) -> None:
    """Uploaded once; a second upload is answered without being stored."""
    digest = _upload(kvsup, tiny.plain())
    here = kvsup.client.head(f"/api/blobs/{digest}")
    again = kvsup.client.post(f"/api/blobs/{digest}", content=tiny.plain().read_bytes())

    status, answer = _post(
        kvsup, "/api/create", model="made", files={"m.gguf": digest}, parameters={"num_ctx": 512}
    )

    assert here.status_code == 200
    assert again.status_code == 200
    assert (status, answer) == (200, {"status": "success"})
    assert _said(kvsup, "made") == ANSWER


def test_blob_that_is_not_what_it_says_is_kept_under_what_it_is(kvsup: RunningKvsup) -> None:
    """As Ollama does; malformed digests are refused."""
    data = b"GGUF no more"
    true = hashlib.sha256(data).hexdigest()
    wrong = kvsup.client.post(f"/api/blobs/sha256:{'0' * 64}", content=data)
    absent = kvsup.client.head(f"/api/blobs/sha256:{'0' * 64}")
    present = kvsup.client.head(f"/api/blobs/sha256-{true}")
    forms = ["sha256:12", "md5:" + "0" * 64, "sha256:" + "g" * 64, "..%2f..%2fetc"]

    assert wrong.status_code == 400
    assert wrong.json()["error"] == (
        f'digest mismatch, expected "sha256:{"0" * 64}", got "sha256:{true}"'
    )
    assert (absent.status_code, present.status_code) == (404, 200)
    for form in forms:
        assert kvsup.client.post(f"/api/blobs/{form}", content=b"x").status_code in {400, 404}
    assert _files(kvsup) == {f"blobs/sha256-{true}"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "neither 'from' or 'files' was specified"),
        ({"files": {"../m.gguf": "sha256:" + "0" * 64}}, "file path must be relative"),
        ({"files": {"/m.gguf": "sha256:" + "0" * 64}}, "file path must be relative"),
        ({"files": {"m.gguf": "sha256:../../etc/passwd"}}, "invalid digest format"),
        ({"files": {"m.gguf": ""}}, "invalid digest format"),
        ({"files": {"m.gguf": "sha256:" + "0" * 64}}, "no such file or directory"),
        ({"files": {"model.safetensors": "sha256:" + "0" * 64}}, "convert_hf_to_gguf.py"),
        ({"from": "../../x"}, "invalid model name"),
        ({"from": "base", "remote_host": "ollama.com"}, "leave remote_host out"),
        ({"from": "base", "quantize": "Q9_Z"}, "unsupported quantization type Q9_Z"),
        ({"from": "base", "parameters": {"temperature": "hot"}}, "temperature"),
        ({"from": "gone"}, "registry.ollama.ai is none of the registries"),
    ],
)
def test_wrong_creation_is_told(kvsup: RunningKvsup, body: dict[str, Any], told: str) -> None:
    """With what is wrong, and nothing of it stays."""
    status, answer = _post(kvsup, "/api/create", model="made", **body)

    assert status in {400, 500}
    assert told in answer["error"]
    assert "made" not in kvsup.models()
    assert not [name for name in _files(kvsup) if name.startswith("manifests")]


@pytest.mark.parametrize("name", ["", "../x", "a/b/c/d", "x:", "evil\x00", "a" * 100, "x@sha256:0"])
def test_name_that_is_none_is_refused(kvsup: RunningKvsup, name: str) -> None:
    """By Ollama's grammar, before anything is looked at."""
    status, answer = _post(kvsup, "/api/create", model=name, **{"from": "base"})

    assert (status, answer) == (400, {"error": "invalid model name"})


def test_fields_of_a_creation_are_taken(kvsup: RunningKvsup, tiny: TinyModels) -> None:
    """Over what the base says: the store has each, and what llama-server can do is done."""
    adapter, draft = _upload(kvsup, tiny.adapter()), _upload(kvsup, tiny.plain())
    first = {
        "model": "first",
        "from": "base",
        "parameters": {"top_k": 5, "temperature": 0.1},
        "license": "one",
        "system": "Old.",
        "messages": [{"role": "user", "content": "Old"}],
    }
    second = {
        "name": "second",
        "from": "first",
        "parameters": {"temperature": 0.2, "num_ctx_auto": True},
        "adapters": {"a.gguf": adapter},
        "draft_files": {"d.gguf": draft},
        "license": ["two", "three"],
        "system": "New.",
        "messages": [{"role": "assistant", "content": "New"}],
        "renderer": "qwen3",
        "parser": "qwen3",
        "requires": "0.14.0",
        "info": {"model_family": "other"},
    }
    made = [_post(kvsup, "/api/create", **body) for body in (first, second)]

    _, shown = _post(kvsup, "/api/show", model="second")
    manifests = kvsup.store / "manifests/registry.ollama.ai/library"
    manifest = json.loads((manifests / "second/latest").read_text())
    config = kvsup.store / "blobs" / manifest["config"]["digest"].replace(":", "-")
    told = json.loads(config.read_text())
    assert made == [(200, {"status": "success"})] * 2
    assert _toml(kvsup, "second")["options"] == {"top_k": 5, "temperature": 0.2}
    assert _toml(kvsup, "second")["num_ctx"] == "auto"
    assert shown["license"] == "one\ntwo\nthree"
    assert shown["system"] == "New."
    assert shown["messages"] == [{"role": "assistant", "content": "New"}]
    assert (told["renderer"], told["parser"], told["requires"]) == ("qwen3", "qwen3", "0.14.0")
    assert told["model_family"] == "llama"
    argv = kvsup.cli("argv", "second").stdout
    assert adapter[7:] in argv
    assert f"--model-draft {kvsup.store}/blobs/sha256-{draft[7:]}" in argv
    assert _said(kvsup, "second") == ANSWER


def test_weights_are_quantized_by_llama_cpp(kvsup: RunningKvsup, tiny: TinyModels) -> None:
    """From F16 or F32 alone; the type is shown, and the model speaks."""
    quantized = kvsup.cli(
        "create", "small", "-q", "q8_0",
        "-f", _modelfile(kvsup, f"FROM {tiny.plain()}\nPARAMETER num_ctx 512\n"),
    )  # fmt: skip
    twice = kvsup.cli("create", "again", "-q", "Q4_0", "-f", _modelfile(kvsup, "FROM small\n"))
    _, shown = _post(kvsup, "/api/show", model="small")

    assert quantized.returncode == 0, quantized.stderr
    assert "quantizing F16 model to Q8_0" in quantized.stderr
    assert shown["details"]["quantization_level"] == "Q8_0"
    assert _said(kvsup, "small") == ANSWER
    assert twice.returncode == 1
    assert "only supported for F16, BF16 and F32 models" in twice.stderr


def test_adapter_becomes_a_key_and_an_argument(kvsup: RunningKvsup, tiny: TinyModels) -> None:
    """A LoRA of the same architecture is loaded; a file that is none is refused."""
    text = f"FROM base\nADAPTER {tiny.adapter()}\n"

    made = kvsup.cli("create", "tuned", "-f", _modelfile(kvsup, text))
    wrong = kvsup.cli(
        "create", "bad", "-f", _modelfile(kvsup, f"FROM base\nADAPTER {tiny.plain()}")
    )

    assert made.returncode == 0, made.stderr
    assert _said(kvsup, "tuned") == ANSWER
    argv = kvsup.cli("argv", "tuned").stdout
    assert f"--lora {kvsup.store}/blobs/sha256-" in argv
    assert wrong.returncode == 1
    assert "is no adapter" in wrong.stderr


def test_template_of_a_modelfile_replaces_that_of_the_gguf(kvsup: RunningKvsup) -> None:
    """Go text that can be said in Jinja; what cannot is told, and the GGUF's serves."""
    go = 'TEMPLATE """{{ if .System }}<s>{{ .System }}</s>{{ end }}<u>{{ .Prompt }}</u>"""\n'
    odd = 'TEMPLATE """{{ range $i, $m := .Messages }}{{ if eq $i 7 }}x{{ end }}{{ end }}"""\n'

    made = kvsup.cli("create", "tagged", "-f", _modelfile(kvsup, f"FROM base\n{go}"))
    unsaid = kvsup.cli("create", "odd", "-f", _modelfile(kvsup, f"FROM base\n{odd}"))
    rendered = _post(kvsup, "/api/chat", model="tagged", messages=HI, _debug_render_only=True)[1][
        "_debug_info"
    ]["rendered_template"]

    assert made.returncode == 0, made.stderr
    assert _toml(kvsup, "tagged")["template"] == "store"
    assert "<u>Hi</u>" in rendered
    assert unsaid.returncode == 0, unsaid.stderr
    assert "template not converted" in unsaid.stderr
    assert "template" not in _toml(kvsup, "odd")


def test_messages_stand_before_each_conversation(kvsup: RunningKvsup) -> None:
    """In chats of both APIs and in prompts, unless those go on from a context."""
    kvsup.cli("create", "mario", "-f", _modelfile(kvsup, MARIO))

    def rendered(path: str, **body: Any) -> str:
        answer = _post(kvsup, path, model="mario", _debug_render_only=True, **body)[1]
        return str(answer["_debug_info"]["rendered_template"])

    chat = rendered("/api/chat", messages=HI)
    prompt = rendered("/api/generate", prompt="Hi")
    own = rendered("/api/chat", messages=[{"role": "system", "content": "Other."}, *HI])
    before = [_position(chat, text) for text in ("You are Mario", "Is it you?", "It's me!", "Hi")]
    counted = kvsup.client.post("/v1/chat/completions", json={"model": "mario", "messages": HI})
    _, native = _post(kvsup, "/api/chat", model="mario", messages=HI)

    assert before == sorted(before)
    assert "It's me!" in prompt
    assert "You are Mario" not in own
    assert "It's me!" in own
    assert counted.json()["usage"]["prompt_tokens"] == native["prompt_eval_count"]


def _position(text: str, part: str) -> int:
    assert part in text
    return text.index(part)


def test_copy_of_a_store_model_outlives_it(kvsup: RunningKvsup) -> None:
    """A manifest, no second copy of the weights; each goes with its own files."""
    kvsup.cli("create", "mario", "-f", _modelfile(kvsup, MARIO))
    n_blobs = len(_files(kvsup))

    copied = kvsup.cli("cp", "mario", "luigi:v2")
    n_copied = len(_files(kvsup))
    removed = kvsup.cli("rm", "mario")
    said = _said(kvsup, "luigi:v2")
    kvsup.cli("rm", "luigi:v2")

    assert (copied.returncode, removed.returncode) == (0, 0), copied.stderr
    assert n_copied == n_blobs + 1
    assert said == ANSWER
    assert _files(kvsup) == set()
    assert set(kvsup.models()) == {"base"}
    trash = [path.read_text() for path in (kvsup.state / "deleted").iterdir()]
    assert any("mario" in text for text in trash)


def test_model_that_another_is_made_of_stays(kvsup: RunningKvsup) -> None:
    """Its deletion would leave a file that names nothing; the error names that file."""
    kvsup.cli("create", "mario", "-f", _modelfile(kvsup, MARIO))
    kvsup.write("bros", 'model = "ollama:mario"\nnum_ctx = 512\n')
    kvsup.client.post("/kvsup/reload").raise_for_status()

    done = kvsup.cli("rm", "mario")

    assert done.returncode == 1
    assert "bros.toml is made of mario:latest" in done.stderr
    assert _said(kvsup, "bros") == ANSWER


def test_second_creation_replaces_the_first(kvsup: RunningKvsup) -> None:
    """Its file goes to the trash, its files out of the store."""
    kvsup.cli("create", "mario", "-f", _modelfile(kvsup, MARIO))
    path = kvsup.configs / "mario.toml"
    path.write_text("# mine\n" + path.read_text())
    kvsup.client.post("/kvsup/reload").raise_for_status()

    done = kvsup.cli("create", "MARIO", "-f", _modelfile(kvsup, "FROM base\nSYSTEM Other.\n"))

    _, shown = _post(kvsup, "/api/show", model="mario")
    assert done.returncode == 0, done.stderr
    assert shown["system"] == "Other."
    assert any("# mine" in p.read_text() for p in (kvsup.state / "deleted").iterdir())
    manifests = [name for name in _files(kvsup) if name.startswith("manifests")]
    assert manifests == ["manifests/registry.ollama.ai/library/mario/latest"]
    named = json.loads((kvsup.store / manifests[0]).read_text())
    digests = {one["digest"].replace(":", "-") for one in (named["config"], *named["layers"])}
    assert {Path(name).name for name in _files(kvsup) if name.startswith("blobs")} == digests
