"""One llama-server that runs only to be measured, in a folder of its own, gone when it is left."""

import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec

from kvsup.config import ModelConfig
from kvsup.errors import ConfigError, KvsupError, UpstreamError
from kvsup.kvtypes import KVPair
from kvsup.llama.argv import EMPTY_CONFIG_DIR
from kvsup.plan import Plan
from kvsup.runtime import orphans
from kvsup.runtime.logbook import Logbook
from kvsup.runtime.measured import Measured
from kvsup.runtime.paths import made
from kvsup.runtime.process import Child, spawn
from kvsup.runtime.upstream import Upstream
from kvsup.runtime.watch import Watch

_LAST_LINES = 3
_LAST_WORDS_S = 1.0
"""How long the exit and the last lines of a llama-server that broke off are waited for."""


class TrialFailed(KvsupError):  # noqa: N818 - it says what happened
    """A pair could not be measured: its process died, did not load, or answered with an error."""


class Trial:
    """A llama-server that serves; ask it until the ``trial`` that gave it is left."""

    def __init__(self, plan: Plan, child: Child, *, logbook: Logbook) -> None:
        self.plan = plan
        """As it runs: with the pair and the context of the trial."""
        self._child = child
        self._logbook = logbook
        self._news = anyio.Event()
        self._watch = Watch(
            child, socket=plan.socket, name=plan.name, logbook=logbook, notify=self._notify
        )
        self._upstream = Upstream(plan.socket)

    @property
    def pair(self) -> KVPair:
        """Return the pair on trial."""
        return self.plan.model.kv_cache_type

    @property
    def measured(self) -> Measured:
        """Return what its log told of caches and buffers."""
        return self._watch.measured

    @property
    def log_tail(self) -> tuple[str, ...]:
        """Return the last lines of its log that say anything."""
        return tuple(line for line in self._logbook.tail(3 * _LAST_LINES) if line)[-_LAST_LINES:]

    async def ask(self, path: str, body: object, *, shape: Any = Any) -> Any:
        """Return the answer to a POST, decoded as ``shape``.

        Raises:
            TrialFailed: the process died before the answer was complete, or the answer is an
                error or of another shape.
        """
        try:
            status, answer = await self._upstream.fetch(
                "POST", path, body=msgspec.json.encode(body)
            )
        except UpstreamError as error:
            raise await self._broken_off(error) from error
        try:
            if status != 200:
                raise self._failure(f"{path} answered {status}: {_message(answer)}")
            return msgspec.json.decode(answer, type=shape)
        except msgspec.DecodeError as error:
            raise self._failure(f"{path} answered what cannot be read: {error}") from error

    async def run(self) -> None:
        """Read everything that the process tells; ``trial`` runs it beside its body."""
        await self._watch.run()

    async def loaded(self) -> None:
        """Return once it serves.

        Raises:
            TrialFailed: it died first, or told nothing for ``load_timeout`` seconds.
        """
        patience_s = self.plan.model.load_timeout_s or float("inf")  # 0 is for ever, as in Ollama
        while not self._watch.is_ready:
            if self._child.returncode is not None:
                raise await self._broken_off(None)
            remaining_s = self._watch.progress_s + patience_s - time.monotonic()
            if remaining_s <= 0:
                raise self._failure(f"it told nothing for {patience_s:g} s of its load")
            with anyio.move_on_after(remaining_s):
                await self._news.wait()

    async def _broken_off(self, error: Exception | None) -> TrialFailed:
        """Return why it stopped answering, once its last lines have been read."""
        with anyio.move_on_after(_LAST_WORDS_S):
            await self._child.wait()
            await self._watch.is_drained.wait()
        code, failure = self._child.returncode, self.measured.failure
        if failure is not None:
            return self._failure(failure.message)
        if code is None:
            return self._failure(str(error))
        return self._failure(why_ended(code, self.log_tail))

    def _failure(self, reason: str) -> TrialFailed:
        return TrialFailed(f"{self.plan.name} with {self.pair} cannot be measured: {reason}")

    def _notify(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()


@asynccontextmanager
async def trial(
    plan: Plan, pair: KVPair, *, num_ctx: int, num_parallel: int = 1
) -> AsyncIterator[Trial]:
    """Run a llama-server of ``plan``'s model with ``pair`` and yield it once it serves.

    On leaving, by cancellation too, its whole session is killed and reaped. Its socket lies in a
    folder of its own beside the plan's, so it never meets one of a kvsup that runs.

    Args:
        plan: any plan of the model. Batch sizes, threads, devices and the rest are kept; draft
            model, projector and prompt cache, which no measurement needs, are not loaded.
        pair: KV cache types to run with.
        num_ctx: tokens of one slot; clipped to what the model was trained for.
        num_parallel: slots.

    Raises:
        TrialFailed: it cannot be started or did not load.
    """
    reap_trials(Path(plan.run_dir))
    folder = Path(f"{plan.run_dir}-{secrets.token_hex(4)}")
    configured = msgspec.structs.replace(
        plan.configured,
        kv_cache_type=pair,
        kv_is_auto=False,
        num_ctx=num_ctx,
        num_ctx_is_auto=False,
        num_parallel=num_parallel,
        prompt_cache_bytes=0,
        draft_model=None,
        mmproj=None,
    )
    tried = _moved(plan, configured, folder)
    failure: Exception | None = None
    with made(folder), _swept(folder):
        child = await _spawned(tried)
        try:
            orphans.record(child.pid, child.create_time, tried.socket)
            async with anyio.create_task_group() as tasks:
                running = Trial(tried, child, logbook=Logbook())
                tasks.start_soon(running.run)
                try:
                    await running.loaded()
                    yield running
                except Exception as error:  # noqa: BLE001 - a task group would wrap it
                    failure = error
                tasks.cancel_scope.cancel()
        finally:
            child.kill()  # before any await: Ctrl-C cancels through a shield
            await ended(child)
    if failure is not None:
        raise failure


@contextmanager
def _swept(folder: Path) -> Iterator[None]:
    """Leave no socket and no record in ``folder``, wherever a start or an end is interrupted."""
    try:
        yield
    finally:
        for path in folder.glob("*.sock*"):
            path.unlink(missing_ok=True)


async def ended(child: Child) -> None:
    """Kill the session of a child that keeps nothing, and reap it; cancellation waits for that."""
    with anyio.CancelScope(shield=True):
        child.kill()
        await child.wait()
        await child.aclose()


def why_ended(code: int, last_lines: Sequence[str]) -> str:
    """Return what an exit code, negative for a signal, and the end of a log say."""
    how = f"it was killed by {_signal_name(-code)}" if code < 0 else f"it ended with {code}"
    return f"{how}; its last lines: {' | '.join(last_lines)}" if last_lines else how


def reap_trials(run_dir: Path) -> None:
    """Kill what trials of a kvsup that was killed left running, and remove their folders.

    Args:
        run_dir: the folder of sockets beside which their folders lie.
    """
    for folder in run_dir.parent.glob(f"{run_dir.name}-*"):
        if any(folder.glob("*.sock.json")):
            orphans.reap(folder)
            if not any(folder.glob("*.sock.json")):
                orphans.reap_unrecorded(folder)
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder of a trial that has ended."""
    for path in (folder / EMPTY_CONFIG_DIR, folder):
        with suppress(OSError):
            path.rmdir()


def _moved(plan: Plan, configured: ModelConfig, folder: Path) -> Plan:
    """Return the plan of ``configured`` with its socket and its configuration in ``folder``."""
    environment = {**plan.environment, "XDG_CONFIG_HOME": f"{folder}/{EMPTY_CONFIG_DIR}"}
    moved = replace(plan, run_dir=str(folder), kv_dir=None, environment=environment)
    return moved.configured_as(configured)


async def _spawned(plan: Plan) -> Child:
    try:
        return await spawn(plan.argv, environment=plan.environment)
    except (OSError, ConfigError) as error:
        raise TrialFailed(f"{plan.name} cannot be started: {error}") from error


def _message(answer: bytes) -> str:
    """Return the message of an error of llama-server, else the answer itself."""
    try:
        return str(msgspec.json.decode(answer)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return answer.decode("utf-8", "replace")[:200]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
