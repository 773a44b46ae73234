"""The composition root: configuration, fleet, HTTP server, signals, and the order of shutdown."""

import errno
import gc
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import anyio
import psutil
import uvicorn
from anyio import to_thread
from anyio.abc import TaskGroup, TaskStatus

from kvsup import __version__, events
from kvsup.api.app import Store, create_app
from kvsup.api.auth import is_loopback
from kvsup.api.protocol import Door, Patience, Protocol
from kvsup.errors import ConfigError, KvsupError, ModelNotFound
from kvsup.eventlines import describe
from kvsup.hostconfig import HostConfig
from kvsup.plan import Plan
from kvsup.runtime import files, orphans, paths, statelock
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.changes import Changes
from kvsup.runtime.chronicle import Chronicle
from kvsup.runtime.configdir import Configuration
from kvsup.runtime.evidence import Witness
from kvsup.runtime.fleet import Fleet
from kvsup.runtime.historyfiles import HistoryFiles
from kvsup.runtime.hubcache import HubCache
from kvsup.runtime.kvfiles import KVFiles
from kvsup.runtime.making import make_instance
from kvsup.runtime.modelworks import ModelWorks
from kvsup.runtime.notifying import Notifier
from kvsup.runtime.ollamastore import OllamaStore
from kvsup.runtime.ownstore import OwnStore
from kvsup.runtime.paths import LLAMA_CONFIG
from kvsup.runtime.reloading import Reloader, tell_left_out, tell_plans
from kvsup.runtime.remembered import Remembered
from kvsup.runtime.stores import hub_cache, readable_stores
from kvsup.runtime.warming import Store as KVStore
from kvsup.runtime.weightsums import WeightSums
from kvsup.runtime.works import Works
from kvsup.stores.registries import Registries
from kvsup.tuning.prober import Prober
from kvsup.tuning.trial import reap_trials
from kvsup.units import format_bytes

logger = logging.getLogger("kvsup")

_BACKLOG = 2048
_LONG_S = 10**9
"""Longer waits than uvloop counts."""

_OPEN = (
    "other machines can reach {host}, and there are no API keys; set api_keys in kvsup.toml, "
    "listen on 127.0.0.1, or start with --insecure"
)


class _Server(uvicorn.Server):
    """uvicorn with its signal handling taken away.

    On leaving ``serve`` uvicorn raises the signal again that it caught, so the fleet's shutdown
    around it would never run and every llama-server would be orphaned (uvicorn server.py, 0.54).
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to ``serve``."""
        yield


class Supervisor:
    """One running kvsup."""

    def __init__(
        self,
        configuration: Configuration,
        environ: Mapping[str, str],
        *,
        keys_needed: bool,
    ) -> None:
        self._keys_needed = keys_needed
        self._environ = environ
        self._store = Remembered(configuration.state_dir)
        history = HistoryFiles(configuration.state_dir)
        self._chronicle = Chronicle(history, version=__version__, emit=self._emit)
        self._kv = KVStore(
            KVFiles(
                paths.kv_dir(configuration.state_dir),
                max_bytes=configuration.host.max_kv_files_bytes,
                emit=self._emit,
            ),
            WeightSums(self._store),
            self._store,
        )
        self._fleet = Fleet(
            configuration.plans,
            configuration.host,
            make=partial(
                make_instance,
                store=self._store,
                kv=self._kv,
                note=Witness(self._chronicle.keep).note,
            ),
            emit=self._emit,
        )
        self._notifier = Notifier(environ)
        self._reloader = Reloader(
            configuration,
            environ,
            fleet=self._fleet,
            check=self._check,
            emit=self._emit,
            notifier=self._notifier,
        )
        self._fleet_ended = anyio.Event()
        self._is_stopping = False

    @property
    def _configuration(self) -> Configuration:
        return self._reloader.configuration

    async def run(self, listener: socket.socket, *, listening: Callable[[], None]) -> None:
        """Serve until a signal ends it, then stop in order.

        Stop accepting → refuse waiters → drain → close upstream connections → exit line or SIGTERM
        → grace → SIGKILL → reap → unlink: the last five are each instance's own.
        """
        host = self._configuration.host
        works, changes = Works(), self._changes()
        store = Store(
            changes,
            self._model_works(changes, works),
            reload=self._reloader.reload,
            refusal=lambda: str(self._reloader.refusal or "") or None,
            kept=self._kv,
            is_stopping=lambda: self._is_stopping,
        )
        app = create_app(
            self._fleet,
            host,
            store=store,
            chronicle=self._chronicle,
            keys=lambda: self._configuration.keys,
            state_dir=self._configuration.state_dir,
        )
        max_files = files.raise_limit()
        server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                http=partial(  # type: ignore[arg-type]  # it is called as the class is
                    Protocol,
                    patience=Patience(host.client_timeout_s, host.slow_reader_timeout_s),
                    door=Door(files.max_connections(max_files), max_files=max_files),
                ),
                ws="none",
                proxy_headers=False,  # who calls is told by the socket alone
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=math.ceil(min(_LONG_S, host.idle_timeout_s)),
                timeout_graceful_shutdown=None,
            )
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._chronicle.run)
            await tasks.start(self._run_fleet, server)
            await tasks.start(self._obey_signals, server, tasks)
            await tasks.start(works.run)
            tasks.start_soon(_collect, changes.store)
            tasks.start_soon(self._prober().run)
            tasks.start_soon(self._reloader.watch)
            tasks.start_soon(self._notifier.keep_alive)
            gc.freeze()  # what was loaded stays: later collections need not look at it
            listening()
            self._notifier.ready(self._reloader.status)
            await server.serve(sockets=[listener])
            self._fleet.close(drain_s=0.0)
            await self._fleet_ended.wait()
            tasks.cancel_scope.cancel()

    def _changes(self) -> Changes:
        return Changes(
            self._configuration.folder,
            OwnStore(self._configuration.models_dir),
            trash=self._configuration.state_dir / "deleted",
            plan_of=self._plan_of,
            reload=self._reloader.reload,
            forget=self._kv.files.clear,
        )

    def _model_works(self, changes: Changes, works: Works) -> ModelWorks:
        return ModelWorks(
            changes,
            works,
            readable=self._readable_stores,
            hub_cache=self._hub_cache,
            registries=lambda: Registries.parse(self._configuration.host.registries),
            llama_server=lambda: default_binary(paths.cache_dir()),
            sums=self._kv.sums,
        )

    def _readable_stores(self) -> list[OllamaStore]:
        configuration = self._configuration
        return readable_stores(configuration.host.sources, self._environ, configuration.folder)

    def _hub_cache(self) -> HubCache:
        configuration = self._configuration
        return hub_cache(configuration.host.sources, self._environ, configuration.folder)

    def _plan_of(self, name: str) -> Plan | None:
        try:
            return self._fleet.instance(name).plan
        except ModelNotFound:
            return None

    def _prober(self) -> Prober:
        return Prober(
            self._fleet,
            self._store,
            idle_s=lambda: self._configuration.host.probe_after_s,
            emit=self._emit,
            reload=self._reloader.reload_or_tell,
        )

    def _check(self, configuration: Configuration) -> None:
        """Raise ConfigError if others could call from then on without a key."""
        if self._keys_needed and configuration.keys is None:
            raise ConfigError(_OPEN.format(host=self._configuration.host.host))

    def _emit(self, event: events.Event) -> None:
        _log_event(event)
        self._chronicle.note(event)

    async def _run_fleet(self, server: uvicorn.Server, *, task_status: TaskStatus[None]) -> None:
        await self._fleet.run(task_status=task_status)
        self._fleet_ended.set()
        server.force_exit = True  # whoever still follows a log does not hold the exit up

    async def _obey_signals(
        self, server: uvicorn.Server, tasks: TaskGroup, *, task_status: TaskStatus[None]
    ) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    tasks.start_soon(self._reloader.reload_or_tell)
                elif self._is_stopping:
                    logger.info("second signal: running requests are cut off")
                    self._fleet.close(drain_s=0.0)
                    server.force_exit = True
                else:
                    self._is_stopping = True
                    logger.info("%s: shutting down", signal.Signals(number).name)
                    self._notifier.stopping()
                    self._reloader.stop()
                    self._fleet.close(drain_s=self._configuration.host.shutdown_timeout_s)
                    server.should_exit = True


def run(
    configuration: Configuration, environ: Mapping[str, str], *, is_insecure: bool = False
) -> None:
    """Serve ``configuration`` until a signal; the address must be free, the state folder ours.

    Args:
        configuration: what to serve.
        environ: the environment, for reloads and children.
        is_insecure: listen beyond this machine even without API keys.

    Raises:
        ConfigError: other machines could call and there are no API keys.
        KvsupError: the port or the state folder is in use; the message says by whom.
    """
    os.umask(0o077)  # what is remembered, and what llama-servers write, is this user's alone
    with statelock.held(configuration.state_dir), paths.made(configuration.run_dir):
        reap_trials(configuration.run_dir)
        left = orphans.reap(configuration.run_dir)
        for pid in left + orphans.reap_unrecorded(configuration.run_dir):
            logger.warning("killed a llama-server of an earlier run (pid %d)", pid)
        host = configuration.host
        listener = bind(host)
        is_reachable = not is_loopback(listener.getsockname()[0])
        if is_reachable and configuration.keys is None and not is_insecure:
            listener.close()
            raise ConfigError(_OPEN.format(host=host.host))
        url = paths.url_of(*listener.getsockname()[:2])
        address = paths.address_file(configuration.state_dir)
        address.unlink(missing_ok=True)  # one that was killed leaves its own

        def listening() -> None:
            try:
                address.write_text(url, "utf-8")
            except OSError as error:
                logger.warning("%s: %s; kvsup ps, stop … will not find this one", address, error)
            names = ", ".join(plan.name for plan in configuration.plans) or "none yet (kvsup pull)"
            shown = url if host.host in url else f"{host.host}:{listener.getsockname()[1]} ({url})"
            logger.info("listening on %s, models: %s", shown, names)
            if configuration.keys is not None:
                scopes = (
                    f"{key.name} ({key.scope.name.lower()})" for key in configuration.keys.keys
                )
                logger.info("API keys: %s", ", ".join(scopes))
            elif is_reachable:
                logger.warning("whoever reaches %s can use every model: no API keys", host.host)
            tell_plans(configuration.plans)
            tell_left_out(configuration)
            if LLAMA_CONFIG.exists():
                logger.warning("every llama-server reads %s, too", LLAMA_CONFIG)

        supervisor = Supervisor(
            configuration, environ, keys_needed=is_reachable and not is_insecure
        )
        try:
            anyio.run(
                lambda: supervisor.run(listener, listening=listening),
                backend_options={"use_uvloop": True},
            )
        finally:
            address.unlink(missing_ok=True)


def bind(host: HostConfig) -> socket.socket:
    """Return a listening socket on the configured address.

    Raises:
        KvsupError: the address is in use or cannot be had.
    """
    where = f"{host.host}:{host.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.host, host.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise KvsupError(f"cannot listen on {where}: {error}; set host in kvsup.toml") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        holder = _holder_of(host.port) if error.errno == errno.EADDRINUSE else ""
        mend = f" by {holder}; stop that program, or set" if holder else "; set"
        raise KvsupError(
            f"cannot listen on {where}: {error.strerror}{mend} port in kvsup.toml (or OLLAMA_HOST)"
        ) from error
    listener.setblocking(False)
    return listener


def _holder_of(port: int) -> str:
    """Return who listens on ``port`` in words, as far as this user may know."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                if connection.pid is None:
                    return "another user's program"
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


async def _collect(store: OwnStore) -> None:
    freed_bytes = await to_thread.run_sync(store.collect)
    if freed_bytes:
        logger.info("%s of unused files removed from %s", format_bytes(freed_bytes), store.root)


def _log_event(event: events.Event) -> None:
    level = logging.WARNING if isinstance(event, events.WARNINGS) else logging.INFO
    logger.log(level, "%s", describe(event))
