"""The configuration in force, and how that of the folder comes into force."""

import logging
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace

import anyio
import anyio.to_thread

from kvsup import events
from kvsup.checks import model_advice
from kvsup.errors import ConfigError, Problem
from kvsup.plan import Plan
from kvsup.runtime.configdir import Configuration, read_configuration
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.notifying import Notifier
from kvsup.runtime.watching import Look, damages, look, names, turns

logger = logging.getLogger(__name__)

SETTLE_S = 0.3
"""How long nothing must change before files count as written to their end."""

RETRY_S = 2.0
"""Time after which what was refused is read again: it may wait for a file that is on its way."""

_CLOCK_NS = 20_000_000
"""How far a file's time may lie behind the clock: the kernel takes that of its last tick."""

_FIXED = {
    "host": "host",
    "port": "port",
    "origins": "origins",
    "state_dir": "state_dir",
    "max_body_bytes": "max_body",
    "max_bodies_memory_bytes": "max_bodies_memory",
    "client_timeout_s": "client_timeout",
    "idle_timeout_s": "idle_timeout",
    "slow_reader_timeout_s": "slow_reader_timeout",
    "image_hosts": "image_hosts",
    "models_dir": "models_dir",
    "log_level": "log_level",
}
"""Fields of the host, and their keys, that hold as they were when kvsup started."""


class Reloader:
    """Takes up the folder when it is asked to, or when its files change."""

    def __init__(
        self,
        configuration: Configuration,
        environ: Mapping[str, str],
        *,
        fleet: Fleet,
        check: Callable[[Configuration], None],
        emit: Callable[[events.Event], None],
        notifier: Notifier,
    ) -> None:
        """Hold ``configuration``, which ``fleet`` serves already.

        Args:
            configuration: in force.
            environ: the environment, for later readings.
            fleet: what serves it.
            check: raises ``ConfigError`` for one that must not come into force.
            emit: takes what happens.
            notifier: told of each reading.
        """
        self.configuration = configuration
        self.refusal: ConfigError | None = None
        """What is wrong with the folder, where it is not what is in force."""
        self._environ = environ
        self._fleet = fleet
        self._check = check
        self._emit = emit
        self._notifier = notifier
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._read_s = time.monotonic()
        self._seen = _before(look(configuration), configuration.read_ns - _CLOCK_NS)
        self._told: set[tuple[str, str, events.Damage]] = set()
        self._stopped = anyio.Event()

    @property
    def status(self) -> str:
        """Return in one line what is in force, and what is not."""
        n_models = len(self.configuration.plans)
        serving = f"serving {n_models} model{'' if n_models == 1 else 's'}"
        if self.refusal is None:
            return serving
        return f"{serving}; configuration not taken up: {str(self.refusal).splitlines()[0]}"

    async def reload(self) -> None:
        """Read the configuration folder again and take up what changed.

        Raises:
            ConfigError: something is wrong in it; nothing has changed.
        """
        self._notifier.reloading()
        try:
            await self._read()
        except BaseException:
            self._notifier.ready(self.status)
            raise

    async def reload_or_tell(self) -> None:
        """As ``reload``; a wrong folder is told by an event."""
        await self._try(self.reload)

    def stop(self) -> None:
        """Take up nothing more by itself."""
        self._stopped.set()

    async def watch(self) -> None:
        """Take up edits as they come, until ``stop``; nothing where the host says so."""
        async with aclosing(turns(lambda: self._seen.folders, stopped=self._stopped)) as moments:
            async for _ in moments:
                if self.configuration.host.watch:
                    await self._try(self._follow, told=self.refusal)

    async def _follow(self) -> None:
        """Look at the files once, and take up what changed."""
        now = await self._look()
        if self._seen.changed(now) and self._seen.changed(await self._settled(now)):
            await self.reload_or_tell()
        elif self.refusal is not None and time.monotonic() - self._read_s > RETRY_S:
            await self._read()
        else:
            self._tell_of_damage(now)

    async def _read(self) -> None:
        before = self._seen
        try:
            before = await self._look()
            new, after = await anyio.to_thread.run_sync(
                _read_and_look, self.configuration, self._environ, limiter=self._one_at_a_time
            )
            self._check(new)
        except Exception as error:
            self.refusal, self._seen = _refusal(error), before
            raise
        finally:
            self._read_s = time.monotonic()
        # From here on nothing awaits: who asked may leave, and all is taken up or nothing.
        changed = self._seen.changed(before)
        old, self.configuration, self.refusal = self.configuration, new, None
        named = {path: before.named.get(path, stamp) for path, stamp in after.named.items()}
        self._seen = replace(after, listed=before.listed, named=named)
        tell_plans(new.plans, told=old.plans)
        tell_left_out(new, told=old.left_out)
        _tell_of_host(old, new)
        failed = {i.plan.name for i in self._fleet.instances() if i.failure is not None}
        self._fleet.replace(new.plans, new.host)
        for plan in new.plans:
            if plan.name in failed and names(plan, changed):
                self._fleet.reset(plan.name)
        self._notifier.ready(self.status)

    async def _try(
        self, read: Callable[[], Awaitable[None]], *, told: ConfigError | None = None
    ) -> None:
        """Tell of an error of ``read``, unless it is ``told``; not even a bug ends what runs."""
        try:
            await read()
        except Exception as error:
            self.refusal = _refusal(error)
            if told is not None and _places(self.refusal) == _places(told):
                return
            if not isinstance(error, ConfigError):
                logger.exception("the configuration cannot be read")
            self._emit(events.ReloadRefused(str(self.refusal)))

    async def _look(self) -> Look:
        loaded = [instance.plan for instance in self._fleet.loaded()]
        return await anyio.to_thread.run_sync(
            look, self.configuration, loaded, abandon_on_cancel=True
        )

    async def _settled(self, now: Look) -> Look:
        """Return the files once they have not changed for ``SETTLE_S``."""
        while True:
            self._tell_of_damage(now, are_settled=False)
            with anyio.move_on_after(SETTLE_S):
                await self._stopped.wait()
            last, now = now, await self._look()
            if not last.changed(now):
                self._tell_of_damage(now)
                return now

    def _tell_of_damage(self, seen: Look, *, are_settled: bool = True) -> None:
        """Tell once of each file that was spoilt under its llama-server, and let that one end.

        A file that is gone may be about to be there again, so that is told when all is calm.
        """
        self._told = {told for told in self._told if told[0] in self._known_keys()}
        for instance in self._fleet.loaded():
            for path, damage in damages(instance.plan, seen):
                news = (instance.key, path, damage)
                if news in self._told or not (are_settled or damage == "written"):
                    continue
                self._told.add(news)
                self._emit(events.ModelFileChanged(instance.plan.name, path, damage))
                if damage == "written":
                    instance.stop("its model file was written to")

    def _known_keys(self) -> set[str]:
        return {i.key for i in (*self._fleet.instances(), *self._fleet.loaded())}


def _read_and_look(old: Configuration, environ: Mapping[str, str]) -> tuple[Configuration, Look]:
    new = read_configuration(old.folder, environ, in_force=old)
    return new, look(new)


def _refusal(error: Exception) -> ConfigError:
    """Return why nothing is taken up: ``error``, in words if its owner can do nothing about it."""
    if isinstance(error, ConfigError):
        return error
    return ConfigError(f"the configuration cannot be read: {error!r}")


def tell_plans(plans: Iterable[Plan], *, told: Iterable[Plan] = ()) -> None:
    """Log what owners should know of how their models were decided, but for what was told."""
    known = {(plan.name, word) for plan in told for word in (*plan.notes, *_warnings(plan))}
    for plan in plans:
        for level, words in ((logging.INFO, plan.notes), (logging.WARNING, _warnings(plan))):
            for word in words:
                if (plan.name, word) not in known:
                    logger.log(level, "%s: %s", plan.name, word)


def tell_left_out(configuration: Configuration, *, told: Container[str] = ()) -> None:
    """Log what of the sources is not served, but for what was told."""
    for line in configuration.left_out:
        if line not in told:
            logger.warning("left out: %s", line)


def _warnings(plan: Plan) -> list[str]:
    draft = plan.file.draft.shape if plan.file.draft else None
    advice = model_advice(plan.model, binary=plan.binary, shape=plan.file.shape, draft_shape=draft)
    slow = plan.refusal or plan.slow_kv
    return [*(f"{key}: {message}" for key, message in advice), *([slow] if slow else [])]


def _tell_of_host(old: Configuration, new: Configuration) -> None:
    """Warn of changed keys that only a new start takes up, and of API keys that are gone."""
    fixed = [
        key for field, key in _FIXED.items() if getattr(old.host, field) != getattr(new.host, field)
    ]
    if fixed:
        logger.warning("%s: takes effect when kvsup starts again", ", ".join(fixed))
    if old.keys is not None and new.keys is None:
        logger.warning("no API key is asked for any more: api_keys was removed")


def _before(seen: Look, time_ns: int) -> Look:
    """Return ``seen`` without the files that were written since ``time_ns``."""
    return replace(
        seen,
        listed={p: s for p, s in seen.listed.items() if s is None or s.modified_ns < time_ns},
        named={p: s for p, s in seen.named.items() if s is None or s.modified_ns < time_ns},
    )


def _places(error: ConfigError) -> set[tuple[str, int | None, str]] | str:
    """Return where the problems are, whatever the sizes in their messages."""
    return {_place(problem) for problem in error.problems} or str(error)


def _place(problem: Problem) -> tuple[str, int | None, str]:
    return (problem.source, problem.line, problem.key)
