"""The peers that are on this machine, each started with the least of a configuration.

Each gets the token source of ``routes`` in the place of its engine, so that all carry the same
tokens at the same pace, and what is measured is the peer alone:

- llama-swap runs it as a model's ``cmd``.
- llama-server's router and Ollama start the path that they themselves were started from (b11434
  ``get_server_exec_path`` in ``server-models.cpp``; Ollama v0.17.4 ``StartRunner`` in
  ``llm/server.go``). Each is started from a copy in a folder of the bench, where the source then
  takes its place.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from bench.record import Peer
from bench.routes import CHAT, DEMO_MODEL, OLLAMA_CHAT, Route, model_name, source_script
from kvsup.runtime.binaries import default_binary
from kvsup.runtime.paths import cache_dir

ROUTER, LLAMA_SWAP = "llama-server's router", "llama-swap"
OLLAMA_TRANSLATED, OLLAMA_PASSED = "Ollama `/api`", "Ollama `/v1`"
PROGRAMS = {"router": ROUTER, "llama-swap": LLAMA_SWAP, "ollama": OLLAMA_TRANSLATED}
"""What a peer is called on the command line, and its (first) route."""

PEER_HELP = "NAME=PATH of one that is not on PATH: router, llama-swap, ollama; repeatable"

START_TIMEOUT_S = 60.0
_STOP_S = 15.0
_GO_MODULE = re.compile(rb"\nmod\t[^\t\n]+\t(v[^\t\n]+)")
OLLAMA_CTX = 512
"""Tokens of a stream's context: small, since Ollama reckons with the memory of all of them."""


class PeerError(Exception):
    """A peer cannot be measured; the text says why."""


_FAULTS = (PeerError, OSError, httpx.HTTPError, subprocess.SubprocessError, ValueError)
"""What a peer of another version than those that were tried may end in."""


def given_peers(texts: Sequence[str]) -> dict[str, Path]:
    """Return the programs that the command line names.

    Raises:
        ValueError: a text is no ``NAME=PATH`` of a peer that there is.
    """
    found = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in PROGRAMS or not Path(path).is_file():
            raise ValueError(f"--peer {text}: no {PEER_HELP}")
        found[name] = Path(path).resolve()
    return found


def find(given: Mapping[str, Path]) -> dict[str, Path | None]:
    """Return the program of each peer: as given, else as ``PATH`` has it."""
    router = default_binary(cache_dir())
    found = {"router": router, "llama-swap": shutil.which("llama-swap")}
    found["ollama"] = shutil.which("ollama")
    return {name: given.get(name) or (Path(path) if path else None) for name, path in found.items()}


@contextmanager
def peer_routes(
    folder: Path, paces: Mapping[int, float], given: Mapping[str, Path]
) -> Iterator[tuple[dict[int, list[Route]], list[Peer]]]:
    """Yield the routes of every peer that is there, and of each whether it is.

    One process of a peer serves one pace: what it starts has its environment.
    """
    routes: dict[int, list[Route]] = {n: [] for n in paces}
    peers = []
    with ExitStack() as stack:
        for name, program in find(given).items():
            if program is None:
                peers.append(Peer(PROGRAMS[name], absent="not found on this machine"))
                continue
            try:
                found = _started(stack, name, program, folder / name, paces)
            except _FAULTS as error:
                peers.append(Peer(PROGRAMS[name], absent=f"cannot be measured: {_first(error)}"))
                continue
            for n, there in found.items():
                routes[n] += there
            version = _version(program)
            peers += [Peer(route.name, version) for route in found[min(paces)]]
        yield routes, peers


def _started(
    stack: ExitStack, name: str, program: Path, folder: Path, paces: Mapping[int, float]
) -> dict[int, list[Route]]:
    """Start a peer for every pace, or for none."""
    starter = {"router": _router, "llama-swap": _llama_swap, "ollama": _ollama}[name]
    found = {}
    with ExitStack() as starting:
        for n, tokens_per_s in paces.items():
            own = folder / str(n)
            own.mkdir(parents=True)
            found[n] = starting.enter_context(starter(program, own, n, tokens_per_s))
        stack.push(starting.pop_all())
    return found


def _first(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0][:200]


def _version(program: Path) -> str:
    """Return the version that ``--version`` tells, or that Go noted when it built the module."""
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "version" in line.lower()]
    told = lines[-1].partition("version")[2].removeprefix(":").removeprefix(" is").strip()
    if told.startswith("0.0.0"):
        noted = _GO_MODULE.search(program.read_bytes())
        told = noted[1].decode() if noted else told
    return told


@contextmanager
def _running(
    command: list[str], folder: Path, url: str, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` in a session of its own until the block ends; wait until ``url`` answers.

    Raises:
        PeerError: it ended, or does not answer in time.
    """
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            _await(process, url, folder / "log")
            yield process
        finally:
            _end(process)


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if httpx.get(url, timeout=START_TIMEOUT_S, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline_s:
            said = log.read_text("utf-8", "replace").strip().splitlines()
            raise PeerError(said[-1] if said else f"exit code {process.returncode}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and what it started."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _ask(port: int, path: str, model: str) -> None:
    """Have one token from it, by which it loads the model.

    Raises:
        PeerError: it has none.
    """
    said = {"messages": [{"role": "user", "content": "Hi"}], "stream": False}
    body = {"model": model, "max_tokens": 1, "options": {"num_predict": 1}, **said, "stream": True}
    answer = httpx.post(
        f"http://127.0.0.1:{port}{path}", json=body, timeout=START_TIMEOUT_S, trust_env=False
    )
    if not answer.is_success or '"content":" the"' not in answer.text:
        raise PeerError(f"it answers with {answer.status_code}: {answer.text[:200]}")


def _copied(program: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """Return a copy of ``program`` that can be replaced, and where it finds its libraries."""
    path = folder / program.name
    try:
        path.hardlink_to(program.resolve())
    except OSError:  # another file system
        shutil.copy2(program.resolve(), path)
    return path, {"LD_LIBRARY_PATH": str(program.resolve().parent)}


def _give_way(path: Path, module: str) -> None:
    """Put the token source where a peer's program was that has started."""
    source_script(path.with_suffix(".source"), module).replace(path)


@contextmanager
def _router(
    program: Path, folder: Path, n_streams: int, tokens_per_s: float
) -> Iterator[list[Route]]:
    name, port = model_name(n_streams), _free_port()
    preset = folder / "models.ini"
    preset.write_text(f"[{name}]\nmodel = {cache_dir() / 'models' / DEMO_MODEL}\n")
    path, environment = _copied(program, folder)
    command = [str(path), "--models-preset", str(preset), "--host", "127.0.0.1"]
    # By default it lets streams wait that come together after a pause of some seconds (b11434).
    command += ["--port", str(port), "--threads-http", str(n_streams + 8)]
    environment |= {"TOKENS_PER_S": str(tokens_per_s), "LLAMA_CACHE": str(folder)}
    url = f"http://127.0.0.1:{port}"
    with _running(command, folder, f"{url}/health", environment) as process:
        _give_way(path, "token_source")
        _ask(port, CHAT, name)
        (model,) = httpx.get(f"{url}/models", trust_env=False).json()["data"]
        words = model["status"]["args"]
        behind = words[words.index("--port") + 1]
        yield [Route(ROUTER, CHAT, name, port, process.pid, behind)]


@contextmanager
def _llama_swap(
    program: Path, folder: Path, n_streams: int, tokens_per_s: float
) -> Iterator[list[Route]]:
    name, port, behind = model_name(n_streams), _free_port(), _free_port()
    source = source_script(folder / "llama-server")
    model = {
        "cmd": f"{source} --host 127.0.0.1 --port {behind} --alias {name}",
        "proxy": f"http://127.0.0.1:{behind}",
        "env": [f"TOKENS_PER_S={tokens_per_s}"],
        "concurrencyLimit": 2 * n_streams,  # its default is 10
    }
    config = folder / "config.yaml"
    config.write_text(json.dumps({"models": {name: model}}))  # JSON is YAML
    command = [str(program), "--config", str(config), "--listen", f"127.0.0.1:{port}"]
    with _running(command, folder, f"http://127.0.0.1:{port}/v1/models", {}) as process:
        _ask(port, CHAT, name)
        yield [Route(LLAMA_SWAP, CHAT, name, port, process.pid, str(behind))]


@contextmanager
def _ollama(
    program: Path, folder: Path, n_streams: int, tokens_per_s: float
) -> Iterator[list[Route]]:
    name, port = model_name(n_streams), _free_port()
    path, environment = _copied(program, folder)
    environment |= {
        "HOME": str(folder),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(folder.parent / "models"),  # one copy of the weights for all
        "OLLAMA_NUM_PARALLEL": str(n_streams),
        "OLLAMA_CONTEXT_LENGTH": str(OLLAMA_CTX),
        "OLLAMA_KEEP_ALIVE": "-1",
        "TOKENS_PER_S": str(tokens_per_s),
    }
    url = f"http://127.0.0.1:{port}"
    with _running([str(path), "serve"], folder, f"{url}/api/version", environment) as process:
        _create(path, folder, name, environment)
        _give_way(path, "ollama_source")
        _ask(port, OLLAMA_CHAT, name)
        words = next(
            words
            for child in psutil.Process(process.pid).children()
            if "bench.ollama_source" in (words := child.cmdline())
        )
        behind = words[words.index("--port") + 1]
        yield [
            Route(OLLAMA_TRANSLATED, OLLAMA_CHAT, name, port, process.pid, behind),
            Route(OLLAMA_PASSED, CHAT, name, port, process.pid, behind),
        ]


def _create(path: Path, folder: Path, name: str, environment: Mapping[str, str]) -> None:
    """Make the demo model known to Ollama."""
    modelfile = folder / "Modelfile"
    modelfile.write_text(f"FROM {cache_dir() / 'models' / DEMO_MODEL}\n")
    subprocess.run(
        [path, "create", name, "-f", modelfile],
        env={**os.environ, **environment},
        capture_output=True,
        check=True,
        timeout=START_TIMEOUT_S,
    )
