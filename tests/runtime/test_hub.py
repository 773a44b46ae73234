"""What goes wrong between kvsup and Hugging Face, against a stand-in of its hub."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest
from huggingface_hub import constants

from kvsup.errors import KvsupError
from kvsup.runtime import fetching
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.works import Works
from tests.between import Fault, Seen
from tests.hub import Hub
from tests.modelworks import changes_of, works_of
from tests.stores import HubLayout
from tests.tiny import TinyModels

COMMITS = ("a" * 40, "b" * 40)
NAME = "hf.co/org/m-GGUF"


class Setting(NamedTuple):
    """A hub, an empty store, and an empty cache of ``huggingface_hub``."""

    hub: Hub
    store: OwnStore
    cache: HubLayout

    def add(self, file: Path, *, commit: str = COMMITS[0]) -> None:
        """Let the hub have one model."""
        self.hub.add("org/m-GGUF", {"m-Q8_0.gguf": file}, commit=commit)

    async def pull(self, name: str = NAME) -> list[str]:
        """Pull a model, and return what is said."""
        changes = changes_of(self.store.root, self.store.root, lambda _name: None)
        running = Works()
        lines: list[str] = []
        failed: KvsupError | None = None
        async with anyio.create_task_group() as tasks:
            await tasks.start(running.run)
            hosts = ("hf.co", self.hub.cdn.host)
            works = works_of(changes, running, *hosts, hub_cache=self.cache.root)
            try:
                with works.pull(name) as work:
                    lines = [str(line["status"]) async for line in work.lines()]
            except KvsupError as error:
                failed = error
            tasks.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return lines

    def blob(self, file: Path) -> Path:
        """Return where the store has a file."""
        return self.store.root / "blobs" / f"sha256-{_sha256(file)}"

    def has(self, file: Path) -> bool:
        """Say whether the store has a file, as it is."""
        return self.blob(file).is_file() and self.blob(file).read_bytes() == file.read_bytes()


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    """Return such a setting, asked by nobody."""
    monkeypatch.setattr(fetching, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "")
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield Setting(hub, OwnStore(tmp_path / "models"), HubLayout(tmp_path / "cache"))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _page(_seen: Seen) -> Fault:
    return Fault(status=200, headers=(("content-type", "text/html"),), body=b"<p>Sign in")


def _unknown_token(_seen: Seen) -> Fault:
    said = (("x-error-message", "Invalid credentials in Authorization header"),)
    return Fault(status=401, headers=said, body=b"{}")


def _failing(_seen: Seen) -> Fault:
    return Fault(status=500)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (_page, "does not tell of org/m-GGUF: "),
        (_failing, "does not tell of org/m-GGUF: .*500"),
        (_unknown_token, "unauthorized: access denied to org/m-GGUF.*set HF_TOKEN, or hf auth"),
    ],
)
async def test_hub_that_does_not_tell_of_a_repository_is_told(
    setting: Setting, rule: Callable[[Seen], Fault], told: str
) -> None:
    """Whatever its library makes of that."""
    setting.hub.api.rules.insert(0, rule)

    with pytest.raises(KvsupError, match=f"pull model manifest: .*{told}"):
        await setting.pull()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "hub.example"])
async def test_hub_that_cannot_be_asked_is_told(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    """A machine without a network is no bug, and neither is an address that is none."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)

    with pytest.raises(KvsupError, match=f"{endpoint} does not tell of org/m-GGUF: "):
        await setting.pull()


async def test_name_that_the_hub_cannot_have_is_told(setting: Setting) -> None:
    """Ollama's grammar has it, the library does not."""
    with pytest.raises(KvsupError, match=r"does not tell of org/a--b: .*--"):
        await setting.pull("hf.co/org/a--b")


async def test_gated_file_of_a_repository_that_is_shown_is_told(
    setting: Setting, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub has it: everybody sees what there is, and only who may gets it."""
    setting.add(tiny.plain())
    setting.hub.token, setting.hub.is_gated = "hf_secret", True

    with pytest.raises(KvsupError, match="access denied to org/m-GGUF; accept its conditions at"):
        await setting.pull()
    assert not setting.hub.cdn.seen
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    await setting.pull()

    assert setting.has(tiny.plain())


async def test_refusal_by_the_cdn_says_nothing_of_the_users_rights(
    setting: Setting, tiny: TinyModels
) -> None:
    """A link that ran out is refused there, too."""
    setting.add(tiny.plain())
    setting.hub.cdn.rules.insert(0, lambda _seen: Fault(status=403))

    with pytest.raises(KvsupError, match="answered 403") as told:
        await setting.pull()

    assert "access denied" not in str(told.value)


async def test_pull_that_breaks_off_goes_on_where_it_was(
    setting: Setting, tiny: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a link of its own for each range; nothing that came is fetched again."""
    monkeypatch.setattr(fetching, "KEPT_BYTES", 1)
    monkeypatch.setattr(fetching, "_READ_BYTES", 1024)
    file = tiny.plain()
    size_bytes = file.stat().st_size
    setting.add(file)
    n_cut_bytes = size_bytes // 2

    def breaks_off(seen: Seen) -> Fault | None:
        if seen.range.startswith("bytes=0-"):
            return setting.hub.file(seen)._replace(cut_after_bytes=n_cut_bytes)
        return Fault(status=503)

    setting.hub.cdn.rules.insert(0, breaks_off)
    with pytest.raises(KvsupError, match="max retries exceeded"):
        await setting.pull()
    assert not setting.store.names()
    setting.hub.cdn.rules.remove(breaks_off)
    setting.hub.cdn.seen.clear()

    await setting.pull()

    first, last = setting.hub.cdn.ranges()[0]
    assert 0 < first <= n_cut_bytes
    assert last == size_bytes - 1
    assert len(setting.hub.cdn.seen) == 1
    assert setting.has(file)


async def test_file_of_the_hubs_own_cache_is_not_fetched(
    setting: Setting, tiny: TinyModels
) -> None:
    """It is linked, whatever repository has it; the cache stays as it is."""
    file = tiny.plain()
    setting.add(file)
    cached = setting.cache.add("other/repo", "x.gguf", file, digest=_sha256(file)).resolve()

    await setting.pull()

    assert not setting.hub.cdn.seen
    assert setting.has(file)
    assert setting.blob(file).samefile(cached)


async def test_file_that_is_spoilt_in_the_cache_is_fetched(
    setting: Setting, tiny: TinyModels, tmp_path: Path
) -> None:
    """Of the right name and length, and with other bytes."""
    file, spoilt = tiny.plain(), tmp_path / "spoilt"
    spoilt.write_bytes(bytes(file.stat().st_size))
    setting.add(file)
    setting.cache.add("org/m-GGUF", "m-Q8_0.gguf", spoilt, digest=_sha256(file))

    await setting.pull()

    assert setting.has(file)


async def test_change_upstream_is_said(setting: Setting, tiny: TinyModels) -> None:
    """From which commit to which, where another file came; not for a commit with the same one."""
    setting.add(tiny.plain())
    first = await setting.pull()
    setting.add(tiny.fill_in(), commit=COMMITS[1])
    second = await setting.pull()
    setting.add(tiny.fill_in(), commit="c" * 40)
    third = await setting.pull()

    said = "upstream changed: aaaaaaaaaaaa -> bbbbbbbbbbbb"
    assert [said in lines for lines in (first, second, third)] == [False, True, False]
    assert not any("upstream" in line for line in (*first, *third))
    assert setting.has(tiny.fill_in())
