"""The folder taken up by itself: what counts as a change, and what is told of it."""

import contextlib
import errno
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from kvsup import events
from kvsup.errors import ConfigError
from kvsup.runtime.configdir import Configuration, read_configuration
from kvsup.runtime.notifying import Notifier
from kvsup.runtime.reloading import Reloader
from kvsup.runtime.watching import Look
from tests.runtime.supervised import Folder, Running, running, until

ALL = events.Reloaded


@contextlib.asynccontextmanager
async def watching(
    configuration: Configuration, *, edit: str = ""
) -> AsyncIterator[tuple[Running, Reloader]]:
    """Run a fleet whose configuration is watched; ``edit`` replaces model ``a`` before."""
    async with running(configuration) as now:
        if edit:
            (configuration.folder / "a.toml").write_text(edit)
        reloader = Reloader(
            configuration,
            os.environ,
            fleet=now.fleet,
            check=lambda _configuration: None,
            emit=now.told.append,
            notifier=Notifier({}),
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reloader.watch)
            yield now, reloader
            reloader.stop()


def asks_for_keys(folder: Folder) -> Path:
    """Have the configuration name a file of API keys, and return that."""
    keys = folder.path / "keys.toml"
    keys.write_text('[ada]\nkey = "0123456789abcdef0123456789abcdef"\n')
    keys.chmod(0o600)
    folder.host += f'api_keys = "{keys}"\n'
    return keys


async def test_edit_between_the_reading_and_the_watch_is_taken_up(folder: Folder) -> None:
    """A folder is read some time before it can be watched."""
    folder.write(a="")
    configuration = folder.read()
    text = (configuration.folder / "a.toml").read_text()

    async with watching(configuration, edit=f"{text}batch_size = 32\n") as (now, _):
        await until(lambda: now.fleet.instance("a").plan.model.batch_size == 32)


async def test_reading_that_someone_asked_for_is_not_done_again_by_the_watch(
    folder: Folder,
) -> None:
    """``kvsup reload`` right after an edit: one reading, one line in the log."""
    folder.write(a="")

    async with watching(folder.read()) as (now, reloader):
        folder.write(a="batch_size = 32")
        await reloader.reload()
        folder.write(a="batch_size = 48")
        await until(lambda: len(now.of_kind(events.Reloaded)) > 1)

    assert now.of_kind(events.Reloaded) == [ALL(("a",), (), ())] * 2


async def test_refusal_is_told_once_however_often_it_is_read(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused is read again and again, as it may wait for a file; then it is in force."""
    monkeypatch.setattr("kvsup.runtime.reloading.RETRY_S", 0.01)
    folder.write(a="")
    elsewhere = folder.path / "later.gguf"

    async with watching(folder.read()) as (now, reloader):
        (folder.path / "configs" / "b.toml").write_text(f'model = "{elsewhere}"\n')
        await until(lambda: reloader.refusal)
        first = reloader.refusal
        await until(lambda: reloader.refusal is not first)
        half = folder.model.read_bytes()[: folder.model.stat().st_size // 2]
        elsewhere.write_bytes(half)
        await until(lambda: "truncated" in str(reloader.refusal))
        elsewhere.write_bytes(folder.model.read_bytes())
        await until(lambda: reloader.refusal is None)

    assert len(now.of_kind(events.ReloadRefused)) == 1
    assert now.of_kind(events.Reloaded) == [ALL((), ("b",), ())]


async def test_configuration_that_must_not_come_into_force_does_not(folder: Folder) -> None:
    """The composition root may refuse what reads well."""
    folder.write(a="")

    def refuse(_configuration: Configuration) -> None:
        raise ConfigError("no keys")

    async with running(folder.read()) as now:
        configuration = folder.read()
        reloader = Reloader(
            configuration,
            os.environ,
            fleet=now.fleet,
            check=refuse,
            emit=now.told.append,
            notifier=Notifier({}),
        )
        folder.write(a="batch_size = 32")

        with pytest.raises(ConfigError, match="no keys"):
            await reloader.reload()

        assert reloader.configuration is configuration
        assert reloader.status == "serving 1 model; configuration not taken up: no keys"
        assert now.of_kind(events.Reloaded) == []


async def test_key_file_that_is_opened_to_others_is_refused(folder: Folder) -> None:
    """A change of mode is a change, though nothing was written."""
    keys = asks_for_keys(folder)
    folder.write(a="")

    async with watching(folder.read()) as (_, reloader):
        keys.chmod(0o644)
        await until(lambda: "is open to others (mode 0644)" in str(reloader.refusal))
        in_force = reloader.configuration.keys
        keys.chmod(0o600)
        await until(lambda: reloader.refusal is None)

    assert in_force is not None


def test_plan_of_a_program_with_another_library_is_another(folder: Folder, tmp_path: Path) -> None:
    """A build replaces ``libllama.so`` and leaves the small program that loads it as it is."""
    folder.llama_server = Path(shutil.copy(folder.llama_server, tmp_path / "llama-server"))
    folder.write(a="")
    before = folder.plan("a")

    (tmp_path / "libllama.so").write_bytes(b"")
    after = folder.plan("a")

    assert after.argv[1:3] == before.argv[1:3]
    assert after.identity != before.identity
    assert after.digest == before.digest


async def test_edit_is_seen_where_the_system_has_no_more_watches(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``fs.inotify.max_user_watches`` may be used up by others: then the looks alone must do."""

    async def full(*_paths: Path, **_options: object) -> AsyncGenerator[None, None]:
        raise OSError(errno.ENOSPC, "OS file watch limit reached")
        yield

    monkeypatch.setattr("kvsup.runtime.watching.awatch", full)
    folder.write(a="")

    async with watching(folder.read()) as (now, _):
        folder.write(a="batch_size = 32")
        await until(lambda: now.fleet.instance("a").plan.model.batch_size == 32)


async def test_new_program_at_the_same_path_counts_as_a_change(
    folder: Folder, tmp_path: Path
) -> None:
    """The log names the models whose llama-server it is, although their files are as they were."""
    folder.llama_server = Path(shutil.copy(folder.llama_server, tmp_path / "llama-server"))
    folder.write(a="", b=f'llama_server = "{folder.llama_server.parent}/other"')
    shutil.copy(folder.llama_server, tmp_path / "other")
    copy = Path(shutil.copy(folder.llama_server, tmp_path / "copy"))

    async with watching(folder.read()) as (now, _):
        copy.rename(folder.llama_server)  # noqa: ASYNC240 - a test may block
        await until(lambda: now.of_kind(events.Reloaded))

    assert now.of_kind(events.Reloaded) == [ALL(("a",), (), ())]


async def test_link_that_setup_moves_is_taken_up(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no llama_server is configured it is that of ``current``, wherever that leads now."""
    servers = tmp_path / "cache" / "kvsup" / "llama-server"
    for name in ("one", "two"):
        (servers / name).mkdir(parents=True)
        shutil.copy(folder.llama_server, servers / name)
    current, following = servers / "current", servers / "next"
    current.symlink_to("one")
    following.symlink_to("two")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder.write(a="")
    folder.read()
    host = folder.path / "configs" / "kvsup.toml"
    host.write_text(f'state_dir = "{folder.path}/state"\n')

    async with watching(read_configuration(host.parent, os.environ)) as (now, _):
        before = now.fleet.instance("a").plan.binary.path
        following.rename(current)
        await until(lambda: now.fleet.instance("a").plan.binary.path != before)

        assert before == str(servers / "one" / "llama-server")
        assert now.fleet.instance("a").plan.argv[0] == str(servers / "two" / "llama-server")


async def test_keys_are_not_given_up_since_their_file_has_gone(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """A deployment that deletes and then copies opens nothing; who removes the key means it."""
    asks_for_keys(folder)
    folder.write(a="")

    async with watching(folder.read()) as (_, reloader):
        host_file = reloader.configuration.folder / "kvsup.toml"
        text = host_file.read_text()
        host_file.write_text("")
        with pytest.raises(ConfigError, match="named the API keys"):
            await reloader.reload()
        host_file.unlink()
        with pytest.raises(ConfigError, match="named the API keys"):
            await reloader.reload()
        assert reloader.configuration.keys is not None

        host_file.write_text(text.replace("api_keys", "# api_keys"))
        await reloader.reload()

        assert reloader.configuration.keys is None
    assert "no API key is asked for any more" in caplog.text


async def test_state_folder_stays_until_kvsup_starts_again(folder: Folder) -> None:
    """Sockets in another one would be under nobody's lock."""
    folder.write(a="")

    async with watching(folder.read()) as (_, reloader):
        before = reloader.configuration
        host_file = before.folder / "kvsup.toml"
        host_file.write_text(host_file.read_text().replace("/state", "/elsewhere"))
        await reloader.reload()

        assert reloader.configuration.state_dir == before.state_dir
        assert reloader.configuration.run_dir == before.run_dir
        assert not (folder.path / "elsewhere").exists()


async def test_look_that_fails_ends_nothing_and_is_told_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread is left for it, say; what changed meanwhile is taken up later."""
    monkeypatch.setattr("kvsup.runtime.reloading.RETRY_S", 0.01)
    folder.write(a="")
    n_failed = 0

    def failing(*_arguments: object) -> Look:
        nonlocal n_failed
        n_failed += 1
        raise RuntimeError("can't start new thread")

    async with watching(folder.read()) as (now, reloader):
        with monkeypatch.context() as patch:
            patch.setattr("kvsup.runtime.reloading.look", failing)
            folder.write(a="batch_size = 32")
            await until(lambda: n_failed > 2)
            assert "can't start new thread" in str(reloader.refusal)
        await until(lambda: now.fleet.instance("a").plan.model.batch_size == 32)
        assert reloader.refusal is None

    assert len(now.of_kind(events.ReloadRefused)) == 1


async def test_folder_that_cannot_be_listed_is_told_once_and_taken_up_when_it_can(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is a link that leads to itself."""
    monkeypatch.setattr("kvsup.runtime.reloading.RETRY_S", 0.01)
    configs, real = folder.path / "configs", folder.path / "real"
    folder.write(a="")
    configs.rename(real)
    configs.symlink_to(real)

    def lead_to(target: Path) -> None:
        """Let the folder lead elsewhere, without a moment in which it is not there."""
        link = folder.path / "link"
        link.symlink_to(target)
        link.replace(configs)

    async with watching(folder.read()) as (now, reloader):
        lead_to(configs)
        await until(lambda: reloader.refusal)
        first = reloader.refusal
        await until(lambda: reloader.refusal is not first)
        lead_to(real)
        await until(lambda: reloader.refusal is None)

    assert "cannot be listed" in str(first)
    assert len(now.of_kind(events.ReloadRefused)) == 1


async def test_keys_stay_when_their_file_was_away_while_it_was_read(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However soon it is back: what counts is what the reading saw."""
    asks_for_keys(folder)
    folder.write(a="")
    configuration = folder.read()
    host_file = configuration.folder / "kvsup.toml"

    def back_after_reading(*arguments: Any, **named: Any) -> Configuration:
        text = host_file.read_text()
        host_file.unlink()
        try:
            return read_configuration(*arguments, **named)
        finally:
            host_file.write_text(text)

    monkeypatch.setattr("kvsup.runtime.reloading.read_configuration", back_after_reading)
    async with watching(configuration) as (_, reloader):
        with pytest.raises(ConfigError, match="named the API keys"):
            await reloader.reload()

        assert reloader.configuration.keys is not None


async def test_bug_in_reading_is_a_refusal_that_everyone_sees(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not an error at each turn, with all well in ``kvsup ps``."""
    monkeypatch.setattr("kvsup.runtime.reloading.RETRY_S", 0.01)
    folder.write(a="")

    def wrong(*_arguments: object) -> None:
        raise RuntimeError("a slip")

    async with watching(folder.read()) as (now, reloader):
        with monkeypatch.context() as patch:
            patch.setattr("kvsup.runtime.reloading._read_and_look", wrong)
            await reloader.reload_or_tell()
            first = reloader.refusal
            assert "a slip" in str(first)
            await until(lambda: reloader.refusal is not first)
        await until(lambda: reloader.refusal is None)

    assert caplog.text.count("Traceback") == 1
    assert len(now.of_kind(events.ReloadRefused)) == 1
