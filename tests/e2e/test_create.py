"""Models that are made by Modelfiles, on the command line."""

from typing import Any

import pytest

from tests.conftest import StartKvsup
from tests.creating import HI, MARIO, modelfile, post, said, store_files, toml_of
from tests.running import RunningKvsup
from tests.tiny import ADAPTED, ANSWER, TinyModels


@pytest.fixture
def kvsup(start_kvsup: StartKvsup, tiny: TinyModels) -> RunningKvsup:
    """Return a kvsup with one model that has a file of its own."""
    base = f'model = "{tiny.plain()}"\nnum_ctx = 512\nkv_cache_type = "q8_0:q5_1"\nthreads = 1\n'
    return start_kvsup({"base": base})


def test_modelfile_makes_a_model_with_a_file_that_says_the_same(kvsup: RunningKvsup) -> None:
    """The pair and ``num_ctx auto`` are taken; the TOML file beside it is what a person edits."""
    done = kvsup.cli("create", "mario", "-f", modelfile(kvsup, MARIO))

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-2:] == ["writing manifest", "success"]
    assert toml_of(kvsup, "mario") == {
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
    assert said(kvsup, "mario") == ANSWER
    ps = kvsup.client.get("/api/ps").json()["models"][0]
    assert ps["kv_cache_type"] == "q8_0:q4_0"


def test_edit_of_the_file_beside_comes_before_the_store(kvsup: RunningKvsup) -> None:
    """The store's word lies below, as for any model of a store."""
    kvsup.cli("create", "mario", "-f", modelfile(kvsup, MARIO))
    path = kvsup.configs / "mario.toml"
    path.write_text(path.read_text().replace("q8_0:q4_0", "f16:f16"))

    kvsup.client.post("/kvsup/reload").raise_for_status()

    assert kvsup.models()["mario"]["kv_cache_type"] == "f16:f16"


def test_what_is_shown_of_a_created_model_makes_the_same_again(kvsup: RunningKvsup) -> None:
    """``show`` has every part, and its Modelfile is one."""
    kvsup.cli("create", "mario", "-f", modelfile(kvsup, MARIO))
    status, shown = post(kvsup, "/api/show", model="mario")

    again = kvsup.cli("create", "twin", "-f", modelfile(kvsup, shown["modelfile"]))

    _, twin = post(kvsup, "/api/show", model="twin")
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
    done = kvsup.cli("create", "made", "-f", modelfile(kvsup, text))
    kvsup.start()

    assert done.returncode == 0, done.stderr
    assert toml_of(kvsup, "made") == {"name": "made", "model": "ollama:made:latest", "num_ctx": 512}
    assert said(kvsup, "made") == ANSWER


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
    done = kvsup.cli("create", "mario", "-f", modelfile(kvsup, text))

    assert done.returncode == 1
    assert told in done.stderr
    assert [path.name for path in sorted(kvsup.configs.iterdir())] == ["base.toml", "kvsup.toml"]
    assert not [name for name in store_files(kvsup) if name.startswith("manifests")]


def test_model_that_could_not_be_served_is_not_made(kvsup: RunningKvsup) -> None:
    """The cause is told, and what had the name before is there again."""
    kvsup.cli("create", "mario", "-f", modelfile(kvsup, MARIO))
    before = (kvsup.configs / "mario.toml").read_text(), store_files(kvsup)
    bad = {"kv_cache_type": "q4_0:q4_0", "num_ctx": 512}
    kvsup.write("base", (kvsup.configs / "base.toml").read_text() + 'flash_attention = "off"\n')
    kvsup.write(
        "base",
        (kvsup.configs / "base.toml").read_text().replace('"q8_0:q5_1"', '"f16:f16"'),
    )

    status, answer = post(kvsup, "/api/create", model="mario", parameters=bad, **{"from": "base"})

    assert status == 400
    assert "flash" in answer["error"]
    assert (kvsup.configs / "mario.toml").read_text() == before[0]
    assert before[1] <= store_files(kvsup)
    assert said(kvsup, "mario") == ANSWER


def test_weights_are_quantized_by_llama_cpp(kvsup: RunningKvsup, tiny: TinyModels) -> None:
    """From F16 or F32 alone; the type is shown, and the model speaks."""
    quantized = kvsup.cli(
        "create", "small", "-q", "q8_0",
        "-f", modelfile(kvsup, f"FROM {tiny.plain()}\nPARAMETER num_ctx 512\n"),
    )  # fmt: skip
    twice = kvsup.cli("create", "again", "-q", "Q4_0", "-f", modelfile(kvsup, "FROM small\n"))
    _, shown = post(kvsup, "/api/show", model="small")

    assert quantized.returncode == 0, quantized.stderr
    assert "quantizing F16 model to Q8_0" in quantized.stderr
    assert shown["details"]["quantization_level"] == "Q8_0"
    assert said(kvsup, "small") == ANSWER
    assert twice.returncode == 1
    assert "only supported for F16, BF16 and F32 models" in twice.stderr


def test_adapter_becomes_a_key_and_an_argument(kvsup: RunningKvsup, tiny: TinyModels) -> None:
    """A LoRA of the same architecture is loaded; a file that is none is refused."""
    text = f"FROM base\nADAPTER {tiny.adapter()}\n"

    made = kvsup.cli("create", "tuned", "-f", modelfile(kvsup, text))
    wrong = kvsup.cli("create", "bad", "-f", modelfile(kvsup, f"FROM base\nADAPTER {tiny.plain()}"))

    assert made.returncode == 0, made.stderr
    assert said(kvsup, "tuned").strip() == ADAPTED
    argv = kvsup.cli("argv", "tuned").stdout
    assert f"--lora {kvsup.store}/blobs/sha256-" in argv
    assert wrong.returncode == 1
    assert "is no adapter" in wrong.stderr


def test_template_of_a_modelfile_replaces_that_of_the_gguf(kvsup: RunningKvsup) -> None:
    """Go text that can be said in Jinja; what cannot is told, and the GGUF's serves."""
    go = 'TEMPLATE """{{ if .System }}<s>{{ .System }}</s>{{ end }}<u>{{ .Prompt }}</u>"""\n'
    odd = 'TEMPLATE """{{ range $i, $m := .Messages }}{{ if eq $i 7 }}x{{ end }}{{ end }}"""\n'

    made = kvsup.cli("create", "tagged", "-f", modelfile(kvsup, f"FROM base\n{go}"))
    unsaid = kvsup.cli("create", "odd", "-f", modelfile(kvsup, f"FROM base\n{odd}"))
    rendered = post(kvsup, "/api/chat", model="tagged", messages=HI, _debug_render_only=True)[1][
        "_debug_info"
    ]["rendered_template"]

    assert made.returncode == 0, made.stderr
    assert toml_of(kvsup, "tagged")["template"] == "store"
    assert "<u>Hi</u>" in rendered
    assert unsaid.returncode == 0, unsaid.stderr
    assert "template not converted" in unsaid.stderr
    assert "template" not in toml_of(kvsup, "odd")


def test_messages_stand_before_each_conversation(kvsup: RunningKvsup) -> None:
    """In chats of both APIs and in prompts, unless those go on from a context."""
    kvsup.cli("create", "mario", "-f", modelfile(kvsup, MARIO))

    def rendered(path: str, **body: Any) -> str:
        answer = post(kvsup, path, model="mario", _debug_render_only=True, **body)[1]
        return str(answer["_debug_info"]["rendered_template"])

    chat = rendered("/api/chat", messages=HI)
    prompt = rendered("/api/generate", prompt="Hi")
    own = rendered("/api/chat", messages=[{"role": "system", "content": "Other."}, *HI])
    before = [_position(chat, text) for text in ("You are Mario", "Is it you?", "It's me!", "Hi")]
    counted = kvsup.client.post("/v1/chat/completions", json={"model": "mario", "messages": HI})
    _, native = post(kvsup, "/api/chat", model="mario", messages=HI)

    assert before == sorted(before)
    assert "It's me!" in prompt
    assert "You are Mario" not in own
    assert "It's me!" in own
    assert counted.json()["usage"]["prompt_tokens"] == native["prompt_eval_count"]


def _position(text: str, part: str) -> int:
    assert part in text
    return text.index(part)
