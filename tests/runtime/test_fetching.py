"""Files that come in ranges: faults of the server, and what a kill has left, on a real registry."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from kvsup.errors import KvsupError
from kvsup.runtime import fetching, outside
from kvsup.runtime.fetching import FetchError, fetch
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.registry import Repository
from kvsup.stores.manifest import Blob, blob_of
from kvsup.stores.references import OllamaName
from kvsup.stores.registries import Registries
from tests.between import Between, Fault, Rule, Seen
from tests.registries import DockerRegistry

MIB = 1 << 20
DATA = os.urandom(5 * MIB + 123)
BLOB = blob_of(DATA)


class Setting(NamedTuple):
    """A registry that has one file, what stands before it, and an empty store."""

    between: Between
    store: OwnStore
    told: list[int]

    async def fetch(self, blob: Blob = BLOB) -> None:
        """Fetch the file."""
        registries = Registries.parse([self.between.host])
        found = registries.find(self.between.host)
        assert found is not None
        name = OllamaName(self.between.host, "me", "m", "latest")
        async with outside.client(registries) as http:
            await fetch(Repository(found, name, http), blob, self.store, self.told.append)

    def data(self) -> bytes:
        """Return what is in the store now."""
        return self.store.blob_path(BLOB).read_bytes()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """Return a registry that has ``DATA``."""
    with DockerRegistry(tmp_path_factory.mktemp("r") / "registry") as registry:
        base = f"http://{registry.host}/v2/me/m/blobs"
        where = httpx.post(f"{base}/uploads/").headers["location"]
        put = httpx.put(f"{where}&digest={BLOB.oci_digest}", content=DATA)
        assert put.status_code == 201
        yield registry


@pytest.fixture
def setting(
    upstream: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setting]:
    """Return a setting with small parts and short waits."""
    monkeypatch.setattr(fetching, "PART_BYTES", MIB)
    monkeypatch.setattr(fetching, "KEPT_BYTES", MIB // 2)
    monkeypatch.setattr(fetching, "_READ_BYTES", MIB // 4)
    monkeypatch.setattr(fetching, "_FIRST_WAIT_S", 0.001)
    store = OwnStore(tmp_path / "store")
    store.make()
    with Between(upstream.host) as between:
        yield Setting(between, store, [])


def _on_range(first: int, fault: Fault, *, times: int = 1) -> list[Rule]:
    left = [times]

    def rule(seen: Seen) -> Fault | None:
        if seen.range.startswith(f"bytes={first}-") and left[0]:
            left[0] -= 1
            return fault
        return None

    return [rule]


async def test_file_comes_in_ranges_that_each_come_once(setting: Setting) -> None:
    """The first is small, the rest go side by side; what is told grows up to the whole."""
    await setting.fetch()

    ranges = sorted(setting.between.ranges())
    assert setting.data() == DATA
    assert ranges[0] == (0, MIB - 1)
    assert [first for first, _ in ranges[1:]] == [last + 1 for _, last in ranges[:-1]]
    assert ranges[-1][1] == len(DATA) - 1
    assert len(ranges) == 6
    assert setting.told[-1] == len(DATA)
    assert list(setting.store.incoming.iterdir()) == []


async def test_server_without_ranges_gives_the_whole(setting: Setting) -> None:
    """One answer, taken from its begin to its end."""
    setting.between.rules.append(lambda seen: Fault(whole=True) if seen.range else None)

    await setting.fetch()

    assert setting.data() == DATA
    assert len(setting.between.seen) == 1


async def test_server_without_ranges_gives_the_whole_although_a_part_is_there(
    setting: Setting,
) -> None:
    """What came before is fetched once more; there is no other way."""
    path = setting.store.incoming / BLOB.file_name
    path.write_bytes(DATA[: 2 * MIB])
    path.with_name(f"{path.name}.done").write_text(f"0-{2 * MIB}\n")
    setting.between.rules.append(lambda seen: Fault(whole=True) if seen.range else None)

    await setting.fetch()

    assert setting.data() == DATA
    assert len(setting.between.seen) == 1


async def test_whole_file_in_the_place_of_a_part_is_asked_for_again(setting: Setting) -> None:
    """Once a server has shown that it gives ranges."""
    setting.between.rules += _on_range(2 * MIB, Fault(whole=True))

    await setting.fetch()

    assert setting.data() == DATA
    assert [first for first, _ in setting.between.ranges()].count(2 * MIB) == 2


async def test_token_that_cannot_be_had_for_a_moment_ends_nothing(setting: Setting) -> None:
    """It runs out in the middle of a large file, and its server is as busy as any."""
    challenge = (("www-authenticate", f'Bearer realm="http://{setting.between.host}/token"'),)
    setting.between.rules += _on_range(MIB, Fault(status=401, headers=challenge))
    left = [3]

    def token(seen: Seen) -> Fault | None:
        if not seen.path.startswith("/token"):
            return None
        left[0] -= 1
        return Fault(status=503) if left[0] >= 0 else Fault(status=200, body=b'{"token": "t"}')

    setting.between.rules.append(token)

    await setting.fetch()

    assert setting.data() == DATA


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_part_that_fails_is_asked_for_again(setting: Setting, status: int) -> None:
    """A burst of failures shorter than the last try costs nothing but time."""
    setting.between.rules += _on_range(MIB, Fault(status=status), times=4)

    await setting.fetch()

    assert setting.data() == DATA


async def test_answer_that_breaks_off_goes_on_where_it_did(setting: Setting) -> None:
    """What came is kept; the next request asks for the rest alone."""
    cut = Fault(cut_after_bytes=MIB // 2 + 5)
    setting.between.rules += _on_range(2 * MIB, cut)

    await setting.fetch()

    assert setting.data() == DATA
    again = [first for first, last in setting.between.ranges() if last == 3 * MIB - 1]
    assert again[0] == 2 * MIB
    assert again[1] >= 2 * MIB + MIB // 2


async def test_server_that_always_fails_is_given_up(setting: Setting) -> None:
    """Six tries without a byte, in Ollama's words."""
    setting.between.rules.append(lambda seen: Fault(status=503) if seen.range else None)

    with pytest.raises(FetchError, match="max retries exceeded: the registry answered 503"):
        await setting.fetch()

    assert len(setting.between.seen) == 6


@pytest.mark.parametrize("status", [400, 403, 410])
async def test_refusal_is_told_at_once(setting: Setting, status: int) -> None:
    """It would be refused again."""
    setting.between.rules.append(lambda seen: Fault(status=status) if seen.range else None)

    with pytest.raises(FetchError, match=f"the registry answered {status}"):
        await setting.fetch()

    assert len(setting.between.seen) == 1


async def test_file_that_is_gone_is_told(setting: Setting) -> None:
    """A digest that the registry has not."""
    with pytest.raises(FetchError, match="file does not exist"):
        await setting.fetch(Blob("0" * 64, 10))


@pytest.mark.parametrize(
    "headers",
    [
        (("content-range", f"bytes 0-{MIB - 1}/{len(DATA) + 1}"),),
        (("content-range", f"bytes 0-{MIB - 1}/10"),),
    ],
)
async def test_file_of_another_length_has_changed_upstream(
    setting: Setting, headers: tuple[tuple[str, str], ...]
) -> None:
    """What the manifest says of it is no more true."""
    setting.between.rules += _on_range(0, Fault(headers=headers))

    with pytest.raises(FetchError, match="it has changed there; pull again"):
        await setting.fetch()


@pytest.mark.parametrize("content_range", ["", "bytes */5", "bytes 0-5", "pages 0-5/6"])
async def test_range_that_says_nothing_is_refused(setting: Setting, content_range: str) -> None:
    """206 without a range that can be read."""
    fault = Fault(status=206, headers=(("content-range", content_range),), body=b"x")
    setting.between.rules += _on_range(0, fault)

    with pytest.raises(FetchError, match="the registry answered 206"):
        await setting.fetch()


async def test_bytes_that_are_not_the_file_are_told_and_forgotten(setting: Setting) -> None:
    """In Ollama's words; the next try begins anew and succeeds."""
    good = httpx.Headers({"content-range": f"bytes 0-{MIB - 1}/{len(DATA)}"})
    fault = Fault(status=206, headers=tuple(good.items()), body=b"\0" * MIB)
    setting.between.rules += _on_range(0, fault)
    wrong = hashlib.sha256(b"\0" * MIB + DATA[MIB:]).hexdigest()

    with pytest.raises(FetchError) as told:
        await setting.fetch()

    assert str(told.value) == (
        "digest mismatch, file must be downloaded again:"
        f" want {BLOB.oci_digest}, got sha256:{wrong}"
    )
    assert list(setting.store.incoming.iterdir()) == []
    await setting.fetch()
    assert setting.data() == DATA


async def test_more_bytes_than_the_range_are_refused(setting: Setting) -> None:
    """A body without end fills no disk."""
    headers = (("content-range", f"bytes 0-{MIB - 1}/{len(DATA)}"),)
    fault = Fault(status=206, headers=headers, body=b"\0" * (3 * MIB))
    setting.between.rules += _on_range(0, fault)

    with pytest.raises(FetchError, match="more than its manifest says"):
        await setting.fetch()


async def test_what_the_journal_has_is_not_fetched_again(setting: Setting) -> None:
    """Lines that are torn, or say more than is there, count for nothing."""
    path = setting.store.incoming / BLOB.file_name
    path.write_bytes(DATA[: 3 * MIB])
    path.with_name(f"{path.name}.done").write_text(
        f"0-{2 * MIB}\n{MIB}-{3 * MIB}\n{3 * MIB}-{4 * MIB}\n7-3\nnonsense\n{4 * MIB}-"
    )

    await setting.fetch()

    assert setting.data() == DATA
    assert min(first for first, _ in setting.between.ranges()) == 3 * MIB
    assert setting.told[0] == 3 * MIB


async def test_file_that_is_there_is_not_fetched(setting: Setting) -> None:
    """Another process had it meanwhile."""
    setting.store.put(DATA)

    await setting.fetch()

    assert setting.between.seen == []


async def test_disk_that_fills_up_keeps_what_came(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by its path; once there is room, only the rest is fetched."""
    write, n_written = os.pwrite, 0

    def pwrite(file: int, data: bytes, offset: int) -> int:
        nonlocal n_written
        n_written += len(data)
        if n_written > 3 * MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data, offset)

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", pwrite)
        with pytest.raises(KvsupError, match="store cannot be written: No space left on device"):
            await setting.fetch()
    begin = len(setting.between.seen)
    setting.told.clear()

    await setting.fetch()

    assert setting.data() == DATA
    assert setting.told[0] >= MIB
    ranges = setting.between.ranges()[begin:]
    assert sum(last + 1 - first for first, last in ranges) == len(DATA) - setting.told[0]


async def test_store_that_cannot_be_written_is_told(setting: Setting) -> None:
    """By its path, not by a traceback."""
    path = setting.store.incoming / BLOB.file_name
    path.mkdir()

    with pytest.raises(KvsupError, match=r"store cannot be written: Is a directory"):
        await setting.fetch()
