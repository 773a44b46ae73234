"""What a token can go through: kvsup, a byte copy; each before a token source of the same kind."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.record import FLOOR, PASSED, TRANSLATED
from kvsup.runtime.configdir import read_configuration
from kvsup.runtime.paths import cache_dir
from tests.running import RunningKvsup

CHAT = "/v1/chat/completions"
OLLAMA_CHAT = "/api/chat"
DEMO_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_TOML = """\
model = "{model}"
llama_server = "{source}"
num_ctx = {num_ctx}
num_parallel = {n_streams}
keep_alive = -1
preload = true
env = {{ TOKENS_PER_S = "{tokens_per_s}" }}
"""


@dataclass(frozen=True)
class Route:
    """Where a proxy listens and what it is asked there, for one number of streams."""

    name: str
    path: str
    model: str
    port: int
    pid: int
    """Of the process whose CPU time counts."""
    straight: str
    """Where the source behind it listens: a UNIX socket, or a port of 127.0.0.1."""


def model_name(n_streams: int) -> str:
    """Return the name of the source for so many streams."""
    return f"streams{n_streams}"


def source_script(path: Path, module: str = "token_source") -> Path:
    """Write an executable that is the token source, at ``path``."""
    root = Path(__file__).parents[1]
    run = f'PYTHONPATH="{root}" exec "{sys.executable}" -m bench.{module} "$@"'
    path.write_text(f"#!/bin/sh\n{run}\n")
    path.chmod(0o755)
    return path


@contextmanager
def supervised(
    folder: Path, paces: Mapping[int, float], *, num_ctx: int = 2048
) -> Iterator[RunningKvsup]:
    """Yield a kvsup that supervises one token source for each number of streams."""
    folder.mkdir(exist_ok=True)
    source = source_script(folder / "llama-server")
    model = cache_dir() / "models" / DEMO_MODEL
    models = {
        model_name(n): MODEL_TOML.format(
            model=model, source=source, num_ctx=num_ctx, n_streams=n, tokens_per_s=tokens_per_s
        )
        for n, tokens_per_s in paces.items()
    }
    with RunningKvsup(
        folder, models=models, llama_server=source, host='memory = "64GiB"'
    ) as running:
        yield running


@contextmanager
def byte_copy(socket: str) -> Iterator[tuple[int, int]]:
    """Yield port and pid of a byte copy to ``socket``."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.bytecopy", socket],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def own_routes(folder: Path, paces: Mapping[int, float]) -> Iterator[dict[int, list[Route]]]:
    """Yield the byte copy and both routes of one kvsup, for each number of streams."""
    with ExitStack() as stack:
        kvsup = stack.enter_context(supervised(folder, paces))
        at_kvsup = int(kvsup.url.rsplit(":", 1)[1]), kvsup.process.pid
        sockets = {p.name: p.socket for p in read_configuration(kvsup.configs, {}).plans}
        found = {}
        for n in paces:
            name = model_name(n)
            socket = sockets[name]
            copy = stack.enter_context(byte_copy(socket))
            found[n] = [
                Route(FLOOR, CHAT, name, *copy, socket),
                Route(PASSED, CHAT, name, *at_kvsup, socket),
                Route(TRANSLATED, OLLAMA_CHAT, name, *at_kvsup, socket),
            ]
        yield found
