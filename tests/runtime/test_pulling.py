"""Manifests that lie: what is refused of a registry that means harm, before it is listed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from kvsup.errors import KvsupError
from kvsup.runtime import fetching
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.works import Line, Works
from kvsup.stores.manifest import Blob, blob_of
from tests.between import Between, Fault, Seen
from tests.modelworks import changes_of, works_of
from tests.tiny import TinyModels

OLLAMA = "application/vnd.ollama.image."
CONFIG = b'{"model_format":"gguf"}'


class Setting(NamedTuple):
    """A registry that says whatever it is told to say, and an empty store."""

    between: Between
    store: OwnStore
    files: dict[str, bytes]

    def says(self, manifest: bytes) -> None:
        """Let the registry have a manifest, and ``files`` by their digests."""

        def rule(seen: Seen) -> Fault:
            if "/manifests/" in seen.path:
                return Fault(status=200, body=manifest)
            data = self.files.get(seen.path.rpartition("/")[2])
            if data is None:
                return Fault(status=404)
            return Fault(status=200, body=data)

        self.between.rules[:] = [rule]

    def layer(self, kind: str, data: bytes, **more: object) -> dict[str, object]:
        """Return a layer with its file in the registry."""
        blob = blob_of(data)
        self.files[blob.oci_digest] = data
        described = {"digest": blob.oci_digest, "size": blob.size_bytes}
        return {"mediaType": f"{OLLAMA}{kind}", **described, **more}

    def manifest(self, *layers: dict[str, object], config: bytes = CONFIG) -> bytes:
        """Return a manifest."""
        head = self.layer("config", config)
        return json.dumps({"schemaVersion": 2, "config": head, "layers": layers}).encode()

    async def pull(self, name: str = "me/m") -> list[Line]:
        """Pull the model, and return what is said."""
        changes = changes_of(self.store.root, self.store.root, lambda _name: None)
        running = Works()
        lines: list[Line] = []
        failed: KvsupError | None = None
        async with anyio.create_task_group() as tasks:
            await tasks.start(running.run)
            works = works_of(changes, running, self.between.host)
            try:
                with works.pull(f"{self.between.host}/{name}") as work:
                    lines = [line async for line in work.lines()]
            except KvsupError as error:
                failed = error
            tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return lines


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    """Return such a setting."""
    monkeypatch.setattr(fetching, "_FIRST_WAIT_S", 0.001)
    with Between() as between:
        yield Setting(between, OwnStore(tmp_path / "models"), {})


def _fetched(setting: Setting) -> list[str]:
    return [seen.path.rpartition("/")[2] for seen in setting.between.seen if "/blobs/" in seen.path]


async def test_manifest_is_kept_byte_for_byte(setting: Setting, tiny: TinyModels) -> None:
    """With members that nobody here knows, since its digest is the model's."""
    weights = setting.layer("model", tiny.plain().read_bytes())
    head = setting.layer("config", CONFIG)
    odd = {"schemaVersion": 2, "config": head, "layers": [weights], "annotations": {"a": [1]}}
    manifest = json.dumps(odd, indent=3).encode() + b"\n"
    setting.says(manifest)

    lines = await setting.pull()

    assert lines[-1] == {"status": "success"}
    (name,) = setting.store.names()
    assert setting.store.manifest_data(name) == manifest


async def test_parts_of_a_split_model_are_all_fetched(setting: Setting, tiny: TinyModels) -> None:
    """And a file that two layers name once."""
    first, second = tiny.plain().read_bytes(), tiny.thinking().read_bytes()
    layers = [setting.layer("model", data) for data in (first, second, first)]
    setting.says(setting.manifest(*layers))

    lines = await setting.pull()

    assert len({str(one["status"]) for one in lines if "digest" in one}) == 3
    assert len(set(_fetched(setting))) == 3


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        (b"", "its manifest is wrong"),
        (b"<html>", "its manifest is wrong"),
        (b"[]", "its manifest is wrong"),
        (b"{}", "its manifest is wrong"),
        (b'{"layers":[],"config":{"digest":"sha256:1","size":1}}', "for a digest"),
        (b"[" * 100_000, "its manifest is wrong"),
        (b" " * (5 << 20), "sends more than"),
    ],
)
async def test_manifest_that_is_none_is_told(setting: Setting, manifest: bytes, told: str) -> None:
    """By what is wrong with it, and nothing is fetched."""
    setting.says(manifest)

    with pytest.raises(KvsupError, match=told):
        await setting.pull()

    assert _fetched(setting) == []
    assert setting.store.names() == []


DIGESTS = [
    "", "sha256:", "sha256:..", "sha256:../../../../etc/passwd", "sha256-../" + "a" * 61,
    "md5:" + "a" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "A" * 64,
    "sha256:" + "a" * 63 + "\n", "sha256:" + "a" * 63 + "\x00", "/etc/passwd", "a" * 64,
    "sha256:" + "a" * 32 + "/" + "a" * 31, "sha256:%2e%2e%2f" + "a" * 55,
]  # fmt: skip


@pytest.mark.parametrize("digest", DIGESTS)
async def test_digest_that_is_none_names_no_file(setting: Setting, digest: str) -> None:
    """It would be the name of one; nothing is fetched or written."""
    layer = {"mediaType": f"{OLLAMA}model", "digest": digest, "size": 5}
    setting.says(setting.manifest(layer))

    with pytest.raises(KvsupError, match="for a digest"):
        await setting.pull()

    assert _fetched(setting) == []
    assert {path.name for path in setting.store.root.parent.iterdir()} <= {"models", "trash"}


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (-1, "a size of -1 bytes"),
        (10**18, "do not fit"),
        (2**63, "its manifest is wrong|do not fit"),
        (1.5, "its manifest is wrong"),
        ("5", "its manifest is wrong"),
        (None, "its manifest is wrong"),
    ],
)
async def test_size_that_cannot_be_is_told(setting: Setting, size: Any, told: str) -> None:
    """Before a byte of it is fetched."""
    layer = {"mediaType": f"{OLLAMA}model", "digest": "sha256:" + "a" * 64, "size": size}
    setting.says(setting.manifest(layer))

    with pytest.raises(KvsupError, match=told):
        await setting.pull()

    assert _fetched(setting) == []


@pytest.mark.parametrize("kind", ["license", "template", "system", "params", "messages", "odd"])
async def test_text_that_is_large_is_refused(setting: Setting, tiny: TinyModels, kind: str) -> None:
    """All but GGUF files are texts, those that nobody reads too."""
    large = {"mediaType": f"{OLLAMA}{kind}", "digest": "sha256:" + "a" * 64, "size": 2 << 20}
    setting.says(setting.manifest(setting.layer("model", tiny.plain().read_bytes()), large))

    with pytest.raises(KvsupError, match="and what it is 1048576 at most"):
        await setting.pull()

    assert _fetched(setting) == []


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (b'{"model_format":"safetensors"}', "llama-server reads GGUF only"),
        (b'{"remote_host":"https://ollama.com"}', "runs in a cloud"),
        (b"nonsense", "its config is wrong"),
    ],
)
async def test_model_that_cannot_be_served_is_refused_before_its_weights(
    setting: Setting, tiny: TinyModels, config: bytes, told: str
) -> None:
    """Its small config is all that is fetched."""
    weights = setting.layer("model", tiny.plain().read_bytes())
    setting.says(setting.manifest(weights, config=config))

    with pytest.raises(KvsupError, match=told):
        await setting.pull()

    assert set(_fetched(setting)) == {blob_of(config).oci_digest}
    assert setting.store.names() == []


@pytest.mark.parametrize(
    ("kind", "data", "told"),
    [
        ("model", b"GGUF but no more", "its model is no GGUF"),
        ("model", b"\x7fELF" + b"\0" * 100, "its model is no GGUF"),
        ("projector", b"<html>", "its projector is no GGUF"),
        ("adapter", b"PK\x03\x04", "its adapter is no GGUF"),
        ("params", b"[1]", "its layer of parameters is wrong"),
        ("messages", b"{}", "its layer of messages is wrong"),
    ],
)
async def test_file_that_is_not_what_it_is_for_is_not_listed(
    setting: Setting, tiny: TinyModels, kind: str, data: bytes, told: str
) -> None:
    """Its digest may be right; its header is not."""
    layers = [setting.layer(kind, data)]
    if kind != "model":
        layers.insert(0, setting.layer("model", tiny.plain().read_bytes()))
    setting.says(setting.manifest(*layers))

    with pytest.raises(KvsupError, match=told):
        await setting.pull()

    assert setting.store.names() == []


async def test_file_of_another_digest_is_not_taken(setting: Setting, tiny: TinyModels) -> None:
    """Whatever the registry sends under its name."""
    layer = setting.layer("model", tiny.plain().read_bytes())
    setting.files[str(layer["digest"])] = tiny.thinking().read_bytes()[: int(str(layer["size"]))]
    setting.says(setting.manifest(layer))

    with pytest.raises(KvsupError, match=r"digest mismatch|changed there"):
        await setting.pull()

    assert setting.store.names() == []
    assert not setting.store.has(Blob(str(layer["digest"])[7:], int(str(layer["size"]))))


@pytest.mark.parametrize(
    "name",
    [
        "..", "../m", "a/../m", "m:..", "m:../x", "-m", ".m", "m\x00", "m\n", "a/b/c/d",
        "m@sha256:aa",
        "%2e%2e/m", "m?x=1", "m#x", "a b", "m:" + "t" * 81, "é", "m\\..\\x", "me/m:",
    ],
)  # fmt: skip
async def test_name_that_leads_elsewhere_is_none(setting: Setting, name: str) -> None:
    """Nothing is asked for, nor written."""
    setting.says(setting.manifest())

    with pytest.raises(KvsupError, match=r"is invalid|none of the registries"):
        await setting.pull(name)

    assert setting.between.seen == []
