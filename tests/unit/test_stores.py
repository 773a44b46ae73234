"""Names of models in stores, manifests, parameters and file names: what is read, what refused."""

import json
from pathlib import Path, PurePath

import pytest

from kvsup.stores.folders import (
    chosen,
    is_model,
    parts_of,
    projector_of,
    quantization_of,
    tagged,
)
from kvsup.stores.jinja import jinja_of, uses_tools
from kvsup.stores.manifest import decode_config, decode_manifest, decode_messages, decode_params
from kvsup.stores.parameters import settings_of
from kvsup.stores.references import HubName, OllamaName, parse_reference
from kvsup.stores.rewritten import suspicion, why_not_stock
from kvsup.stores.stored import Stored, editable, has_file

DIGEST = "sha256:" + "0a" * 32
LIBRARY = ("registry.ollama.ai", "library")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ollama:llama3.2", OllamaName(*LIBRARY, "llama3.2", "latest")),
        ("ollama:library/x:tag", OllamaName(*LIBRARY, "x", "tag")),
        ("ollama:hf.co/a/b-GGUF:Q4_K_M", OllamaName("hf.co", "a", "b-GGUF", "Q4_K_M")),
        ("ollama:localhost:5000/a/b", OllamaName("localhost:5000", "a", "b", "latest")),
        ("hf:org/repo", HubName("org/repo")),
        ("hf:org/repo.v1:Q4_K_M", HubName("org/repo.v1", "Q4_K_M")),
        ("hf:gpt2:gpt2.Q8_0.gguf", HubName("gpt2", "gpt2.Q8_0.gguf")),
        ("/models/x.gguf", None),
        ("ollama/x.gguf", None),
        ("kvsup:x.gguf", None),
        ("", None),
    ],
)
def test_reference_is_told_from_a_path(text: str, expected: object) -> None:
    """Only the two prefixes make a name of a store."""
    assert parse_reference(text) == expected


HOSTILE = (
    "", "..", ".", "../x", "a/../b", "a/..", "/etc/passwd", "a//b", "a/b/c/d/e", "a\\..\\b", "~/x",
    "a b", "a\n", " a", "a ", "a:", ":a", "a:..", "a:../b", "a/b:../../c", "a\0b", "a%2e%2e/b", "ä",
    "a@sha256:00", "-a", "a;b", "$(a)", "a*", "a" * 500, "a/" + "b" * 500,
)  # fmt: skip


@pytest.mark.parametrize("name", [*HOSTILE, "https://a/b/c", "a:local", "x/.hidden", "..:a"])
def test_name_of_ollama_that_could_lead_elsewhere_is_none(name: str) -> None:
    """Each part becomes a folder's name, so none is more than a name."""
    with pytest.raises(ValueError, match="is no model of Ollama"):
        parse_reference(f"ollama:{name}")


@pytest.mark.parametrize("name", [*HOSTILE, "a--b/c", "a/b--c", "a..b/c", "a/b/c", "a/b:c/d"])
def test_name_of_a_repository_that_could_lead_elsewhere_is_none(name: str) -> None:
    """As above; ``--`` parts organisation and repository in the cache, so no name has it."""
    with pytest.raises(ValueError, match="is no repository of Hugging Face"):
        parse_reference(f"hf:{name}")


def _layer(kind: str, digest: str = DIGEST, size: object = 1) -> dict[str, object]:
    return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": size}


def _manifest(*layers: object, **more: object) -> bytes:
    config = {"mediaType": "x", "digest": DIGEST, "size": 2}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": layers, **more}).encode()


def test_manifest_gives_its_layers_by_kind() -> None:
    """Layers of other programs, and members that nobody knows, are passed over."""
    other = {"mediaType": "application/x", "digest": DIGEST, "size": 1, "from": "/a"}

    manifest = decode_manifest(_manifest(_layer("model"), other, _layer("license"), rootfs={}))

    assert [layer.kind for layer in manifest.layers] == ["model", "", "license"]
    assert [blob.file_name for blob in manifest.weights] == ["sha256-" + "0a" * 32]
    assert manifest.config.size_bytes == 2


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "manifest is wrong"),
        (b"\xff\xfe", "manifest is wrong"),
        (b"[" * 100_000, "manifest is wrong"),
        (b"{}", "manifest is wrong"),
        (b'{"config": 1, "layers": []}', "manifest is wrong"),
        (_manifest(1), "manifest is wrong"),
        (_manifest(_layer("model", size="1")), "manifest is wrong"),
        (_manifest(_layer("model", size=1e300)), "manifest is wrong"),
        (_manifest(_layer("model", size=-1)), "a size of -1"),
        *(
            (_manifest(_layer("model", digest)), "for a digest")
            for digest in (
                "", "sha256:", "sha256:../../etc/passwd", "sha512:" + "0" * 64, DIGEST[:-1],
                "sha256:" + "0" * 65, "sha256:" + "G" * 64, "sha256:" + "A" * 64, DIGEST + "\n",
                "sha256:/" + "0" * 63, "sha256:" + "0" * 62 + "/.", "sha256:" + "\u0660" * 64,
            )
        ),
    ],
)  # fmt: skip
def test_manifest_that_is_hostile_or_broken_is_refused(data: bytes, match: str) -> None:
    """A digest is the name of a file: 64 hex digits and nothing else."""
    with pytest.raises(ValueError, match=match):
        decode_manifest(data)


@pytest.mark.parametrize(
    ("kinds", "match"),
    [
        ((), "no weights"),
        (("license",), "no weights"),
        (("tensor", "json"), "safetensors"),
    ],
)
def test_weights_of_a_model_that_llama_server_cannot_load_are_none(
    kinds: tuple[str, ...], match: str
) -> None:
    """Each cause has its word."""
    manifest = decode_manifest(_manifest(*map(_layer, kinds)))

    with pytest.raises(ValueError, match=match):
        _ = manifest.weights


def test_small_layers_are_decoded_or_refused() -> None:
    """What is no JSON of the right form is named by what it was to be."""
    assert decode_config(b'{"renderer": "qwen3-coder", "rootfs": {}}').renderer == "qwen3-coder"
    assert decode_params(b'{"stop": ["x"]}') == {"stop": ["x"]}
    assert decode_messages(b'[{"role": "user"}]')[0].role == "user"
    for decode in (decode_config, decode_params, decode_messages):
        with pytest.raises(ValueError, match="is wrong"):
            decode(b'"text"')


def test_parameters_become_keys_and_options() -> None:
    """Those that act at a load are keys; what Ollama leaves to itself is left open."""
    given = {
        "temperature": 1, "stop": ["a", "b"], "num_ctx": 2, "num_gpu": 99, "num_batch": 0,
        "num_thread": 4, "main_gpu": 1, "use_mmap": False, "draft_num_predict": 3, "mirostat": 2,
        "kv_cache_type": "q8_0:q4_0", "seed": None,
    }  # fmt: skip

    assert settings_of(given) == {
        "num_ctx": 4,
        "gpu_layers": 99,
        "threads": 4,
        "main_gpu": 1,
        "use_mmap": False,
        "kv_cache_type": "q8_0:q4_0",
        "options": {"temperature": 1.0, "stop": ["a", "b"]},
    }
    assert settings_of({"num_gpu": -1}) == {}


def test_parameters_of_a_wrong_type_are_refused() -> None:
    """Ollama fails at each request then; here the model says so once."""
    with pytest.raises(ValueError, match='option "stop" must be of type array'):
        settings_of({"stop": "x"})


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("a-Q4_K_M.gguf", "Q4_K_M"),
        ("a.q8_0.gguf", "Q8_0"),
        ("a-UD-Q2_K_XL-00001-of-00003.gguf", "UD-Q2_K_XL"),
        ("a-IQ4_XS.gguf", "IQ4_XS"),
        ("a_bf16.gguf", "BF16"),
        ("a-mxfp4.gguf", "MXFP4"),
        ("BF16.gguf", "BF16"),
        ("qwen3-8b.gguf", ""),
        ("aQ4_0.gguf", ""),
    ],
)
def test_quantization_is_read_off_a_files_name(name: str, tag: str) -> None:
    """It stands at the end, behind a sign, before the number of a part."""
    assert quantization_of(PurePath(name)) == tag


def test_models_of_a_repository_are_told_apart_by_quantization_or_stem() -> None:
    """Later parts, projectors and importance matrices are no models."""
    names = (
        "Q4_K_M/a-Q4_K_M-00001-of-00002.gguf", "Q4_K_M/a-Q4_K_M-00002-of-00002.gguf", "a-Q8_0.gguf",
        "b-Q8_0.gguf", "mmproj-a-f16.gguf", "imatrix.gguf", ".x.gguf", "README.md",
    )  # fmt: skip

    found = tagged(map(PurePath, names))

    assert {tag: str(file) for tag, file in found.items()} == {
        "Q4_K_M": names[0],
        "a-Q8_0": names[2],
        "b-Q8_0": names[3],
    }
    assert not is_model(PurePath("x.gguf.part"))


def test_parts_of_a_model_are_those_of_its_own_count_and_folder() -> None:
    """A repository may have been split twice; a part that is not there yet is told."""
    files = [
        PurePath(f"{f}/a-{n:05}-of-{c:05}.gguf") for f in "qr" for c in (2, 3) for n in (3, 2, 1)
    ]
    whole = PurePath("a.gguf")

    assert parts_of(whole, [whole, *files]) == [whole]
    assert parts_of(files[2], files) == [files[2], files[1]]
    assert parts_of(files[5], files) == [files[5], files[4], files[3]]
    with pytest.raises(ValueError, match=r"part 2 of 3 .*: q/a-00002-of-00003\.gguf"):
        parts_of(files[5], [files[5], files[3]])


TAGS = {"Q2_K": PurePath("a-Q2_K.gguf"), "Q8_0": PurePath("a-Q8_0.gguf")}


@pytest.mark.parametrize(
    ("tags", "tag", "expected"),
    [
        (TAGS, "q2_k", "Q2_K"),
        (TAGS, "A-q2_k.GGUF", "Q2_K"),
        (TAGS, "", "Q8_0"),
        ({"F16": PurePath("f")}, "", "F16"),
    ],
)
def test_tag_is_found_whatever_its_case(tags: dict[str, PurePath], tag: str, expected: str) -> None:
    """Left open, it is what llama-server would take."""
    assert chosen(tags, tag) == expected


@pytest.mark.parametrize(
    ("tags", "tag", "match"),
    [
        ({}, "", "no GGUF file of it is there"),
        (TAGS, "Q4_0", "no Q4_0 of it is there, only Q2_K, Q8_0"),
        ({"F16": PurePath("f"), "F32": PurePath("g")}, "", "add one of :F16, :F32"),
    ],
)
def test_tag_that_stands_for_nothing_names_those_that_are_there(
    tags: dict[str, PurePath], tag: str, match: str
) -> None:
    """What to write is in the message."""
    with pytest.raises(ValueError, match=match):
        chosen(tags, tag)


def test_projector_is_the_nearest_of_the_best_precision() -> None:
    """One in the same folder goes before one above; another folder's is none."""
    files = [PurePath(f) for f in ("mmproj-F32.gguf", "mmproj-F16.gguf", "q/mmproj-x.gguf")]

    assert projector_of(files, PurePath("a.gguf")) == files[1]
    assert projector_of(files, PurePath("q/a.gguf")) == files[2]
    assert projector_of(files, PurePath("r/a.gguf")) == files[1]
    assert projector_of(files[2:], PurePath("r/a.gguf")) is None


def test_files_that_only_ollama_loads_are_known() -> None:
    """By an architecture of its own, or a projector inside; others are under suspicion only."""
    assert "gptoss" in why_not_stock("gptoss", ())
    assert "projector inside" in why_not_stock("gemma3", ["blk.0.attn_q.weight", "v.patch.weight"])
    assert why_not_stock("gemma3", ["blk.0.attn_v.weight"]) == ""
    assert why_not_stock("clip", ["v.patch.weight"]) == ""
    assert "gemma3" in suspicion("gemma3")
    assert suspicion("qwen3") == ""


def test_model_without_a_file_is_edited_in_one_of_its_own() -> None:
    """Its source is what such a file names it by."""
    stored = Stored("ollama:x:latest", "x:latest", "/blob")

    assert stored.is_ollamas
    assert has_file("configs/x.toml")
    assert not has_file(stored.reference)
    assert editable("configs/x.toml") == "configs/x.toml"
    assert editable(stored.reference) == 'a TOML file of its own (model = "ollama:x:latest")'


CONVERSATIONS = json.loads(
    (Path(__file__).parents[1] / "golden/gotemplate/conversations.json").read_text("utf-8")
)
CONVERTED = {
    "alpaca", "chatml", "chatml-messages", "codellama-fim", "command-r", "deepseek-r1", "gemma",
    "llama3", "mistral", "phi3", "qwen2.5", "response-in-branch", "zephyr",
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS["templates"])
def test_template_becomes_jinja_only_where_it_writes_the_same(name: str) -> None:
    """Those of the common families do; one that drops or doubles a text, or needs a date, not."""
    jinja = jinja_of(CONVERSATIONS["templates"][name])

    assert (jinja is not None) == (name in CONVERTED)


@pytest.mark.parametrize("source", ["{{", "{{ .Nope.Nope }}", "", "{{ currentDate }}{{ .Prompt }}"])
def test_template_that_is_none_or_changes_by_the_day_is_not_converted(source: str) -> None:
    """A word about it is told instead."""
    assert jinja_of(source) is None
    assert not uses_tools(source)


def test_template_with_tools_says_so() -> None:
    """The Jinja one has none, which its owner should know."""
    assert uses_tools(CONVERSATIONS["templates"]["qwen2.5"])
    assert not uses_tools(CONVERSATIONS["templates"]["chatml"])
