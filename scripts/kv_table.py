"""Hold the estimate of KV bytes to a real llama-server, and write the table docs/kv-bytes.md.

For each model (tiny ones of many architectures, and the two real ones) and each of some settings,
every pair of types is loaded once; loading stops when the caches are made. What llama-server says
of them must be what the estimate says, to the two decimals of the log; a pair that it refuses must
be one that ``kvrules`` refuses. Ends with status 1 where anything differs.
Both builds are some 14,000 loads: seven minutes on two cores.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from threading import Timer

from kvsup.gguf import read_metadata_of
from kvsup.kvrules import violation
from kvsup.kvtypes import F16, STOCK_TYPES, KVPair, KVType
from kvsup.memory import Cache, Launch, estimate
from kvsup.modelshape import ModelShape, shape_of
from kvsup.runtime.paths import cache_dir
from tests.architectures import NAMES, write

ROOT = Path(__file__).parents[1]
BUILDS = ("b11434-cpu", "b10434-vulkan")
REAL_MODELS = ("SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf")
PAIRS = tuple(KVPair(KVType(k), KVType(v)) for k, v in product(STOCK_TYPES, repeat=2))
SETTINGS = {
    "unified pool": Launch(2048, 4),
    "a part for each slot": Launch(3000, 3, unified=False, n_ubatch=64),
    "whole cache for windows": Launch(1000, 2, swa_full=True),
    "no flash attention": Launch(777, 1, flash_attention="off"),
}

_HEAD = """# Bytes of K and V: the estimate beside llama-server

Written by `python -m scripts.kv_table`, which loads each model with all 81 pairs of types and
stops when the caches are made. *Equal*: cells, layers, streams, types, and the bytes of K, V and
recurrent state, each to the two decimals of MiB that the log has. *Refused*: llama-server ends, as
the rules of `kvsup check` foresaw. *Different*: anything else. The last column is the largest gap
in MiB. Pairs that load but answer nonsense (`llama-80` with quantized K and no flash attention),
which kvsup refuses of its own accord, count as equal here.

The models are tiny ones of `tests/architectures.py`, and the two real ones. Settings:

"""
_COLUMNS = """| Model | Setting | Equal | Refused | Different | Gap (MiB) |
|---|---|---:|---:|---:|---:|
"""
_MIB = 1 << 20
_ATTEMPTS, _PATIENCE_S = 4, 20
_CACHE = re.compile(
    r"llama_kv_cache: size = .*\( *(?P<cells>\d+) cells, *(?P<layers>\d+) layers, "
    r".*/ *(?P<streams>\d+) seqs\), "
    r"K \((?P<type_k>\w+)\): *(?P<k_mib>[\d.]+) MiB, V \((?P<type_v>\w+)\): *(?P<v_mib>[\d.]+) MiB"
)
_STATE = re.compile(r"(?:llama_memory_recurrent: |layers = \d+, )size = *([\d.]+) MiB")
_OUTPUT = re.compile(r" output buffer size = *([\d.]+) MiB")
CACHES_ARE_MADE = ("sched_reserve: reserving", "compute buffer size", "graph nodes")
"""In the first line after the last cache of the model itself; a draft's come later."""
_REFUSED = re.compile(r" E .*?((?:\S+ cache type|model does not|quantized V|error loading).*)")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What llama-server said of a load; sizes as text with two decimals of MiB."""

    caches: tuple[dict[str, str], ...]
    state_mib: float
    output_mib: str
    refusal: str
    """Its words, or empty."""


def load(
    llama_server: Path,
    model: Path,
    pair: KVPair,
    launch: Launch,
    *arguments: str,
    until: tuple[str, ...] = CACHES_ARE_MADE,
) -> Loaded:
    """Start llama-server, return what it says up to a line with words of ``until``, and kill it.

    b10434 loses its last words, or hangs, in one of some 200 starts that it refuses: a start that
    ends without a cause is made anew.

    Raises:
        RuntimeError: it ended without a cause every time.
    """
    command = [str(llama_server), "-m", str(model), "-ctk", str(pair.k), "-ctv", str(pair.v)]
    command += ["-c", str(launch.n_ctx_tokens), "-np", str(launch.n_parallel)]
    command += ["-b", str(launch.n_batch), "-ub", str(launch.n_ubatch)]
    command += ["-fa", launch.flash_attention, *(["--swa-full"] if launch.swa_full else [])]
    command += ["--kv-unified" if launch.unified else "--no-kv-unified", *arguments]
    command += ["-lv", "4", "-t", "1", "--no-warmup", "-fit", "off", "--port", "0"]
    for _ in range(_ATTEMPTS):
        lines = _lines(command, until)
        loaded = _loaded(lines)
        if loaded.refusal or any(words in lines[-1] for words in until):
            return loaded
    raise RuntimeError(f"{' '.join(command)} ended without a cause")


def _lines(command: Sequence[str], until: tuple[str, ...]) -> list[str]:
    lines = [""]
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        patience = Timer(_PATIENCE_S, process.kill)
        patience.start()
        try:
            for line in process.stderr or ():
                lines.append(line)
                if any(words in line for words in until):
                    break
        finally:
            patience.cancel()
            process.kill()
    return lines


def _loaded(lines: Iterable[str]) -> Loaded:
    caches, state_mib, output_mib, refusal = [], 0.0, "", ""
    for line in lines:
        if match := _CACHE.search(line):
            caches.append(match.groupdict())
        elif match := _STATE.search(line):
            state_mib += float(match[1])
        elif match := _OUTPUT.search(line):
            output_mib = match[1]
        elif match := _REFUSED.search(line):
            refusal = refusal or match[1].strip()
    return Loaded(tuple(caches), state_mib, output_mib, refusal)


def in_words_of_the_log(cache: Cache) -> dict[str, str]:
    """Return what llama-server should say of ``cache``."""
    return {
        "cells": str(cache.cells),
        "layers": str(cache.layers),
        "streams": str(cache.streams),
        "type_k": str(cache.type_k),
        "type_v": str(cache.type_v),
        "k_mib": f"{cache.k_bytes / _MIB:.2f}",
        "v_mib": f"{cache.v_bytes / _MIB:.2f}",
    }


@dataclass(frozen=True, slots=True)
class _Compared:
    is_refused: bool
    gap_mib: float
    trouble: str
    """What differs, or empty."""


def _compare(
    llama_server: Path, model: Path, shape: ModelShape, launch: Launch, pair: KVPair
) -> _Compared:
    loaded = load(llama_server, model, pair, launch)
    broken = violation(pair, launch.flash_attention, shape)
    if loaded.refusal:
        said = "" if broken else f"{pair}: refused with {loaded.refusal!r}, which no rule foresees"
        return _Compared(is_refused=True, gap_mib=0, trouble=said)
    result = estimate(shape, pair, launch, weights_bytes=0)
    if broken and result.is_exact and launch.flash_attention != "off":
        return _Compared(is_refused=False, gap_mib=0, trouble=f"{pair}: loads, against a rule")
    expected = [in_words_of_the_log(cache) for cache in result.caches]
    gap_mib = abs(result.recurrent_bytes / _MIB - loaded.state_mib)
    is_equal = list(loaded.caches) == expected and gap_mib < 0.01 * (1 + len(loaded.caches))
    for told, due in zip(loaded.caches, expected, strict=False):
        gap_mib = max(gap_mib, *(abs(float(told[x]) - float(due[x])) for x in ("k_mib", "v_mib")))
    trouble = "" if is_equal else f"{pair}: {list(loaded.caches)} is not {expected}"
    return _Compared(is_refused=False, gap_mib=gap_mib, trouble=trouble)


def _table(llama_server: Path, models: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Return the rows of one build, and what differs."""
    rows, problems = [], []
    for model in models:
        refusal = load(llama_server, model, F16, Launch(256, 1)).refusal
        if "unknown model architecture" in refusal:
            rows.append(f"| {model.stem} | not known to this build | | | | |")
            continue
        shape = shape_of(read_metadata_of(model))
        for name, launch in SETTINGS.items():
            compare = partial(_compare, llama_server, model, shape, launch)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compared = list(pool.map(compare, PAIRS))
            found = [each.trouble for each in compared if each.trouble]
            problems += [f"{model.stem}, {name}: {trouble}" for trouble in found]
            n_refused = sum(each.is_refused for each in compared)
            n_equal = len(PAIRS) - sum(each.is_refused or bool(each.trouble) for each in compared)
            gap_mib = max(each.gap_mib for each in compared)
            counts = f"{n_equal} | {n_refused} | {len(found)} | {gap_mib:.2f}"
            rows.append(f"| {model.stem} | {name} | {counts} |")
    return rows, problems


def _text(tables: Mapping[str, Sequence[str]]) -> str:
    parts = [_HEAD]
    parts += [f"- {name}: `{_flags(launch)}`\n" for name, launch in SETTINGS.items()]
    for build, rows in tables.items():
        parts.append(f"\n## {build}\n\n{_COLUMNS}")
        parts += [f"{row}\n" for row in rows]
    return "".join(parts)


def _flags(launch: Launch) -> str:
    return (
        f"-c {launch.n_ctx_tokens} -np {launch.n_parallel} -ub {launch.n_ubatch}"
        f" {'--kv-unified' if launch.unified else '--no-kv-unified'} -fa {launch.flash_attention}"
        f"{' --swa-full' if launch.swa_full else ''}"
    )


def main() -> int:
    """Compare, write the table, and print what differs; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--build", choices=BUILDS, action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "kv-bytes.md")
    arguments = parser.parse_args()
    tables, problems = {}, []
    with tempfile.TemporaryDirectory() as folder:
        models = [write(name, Path(folder)) for name in NAMES]
        models += [cache_dir() / "models" / name for name in REAL_MODELS]
        for build in arguments.build or BUILDS:
            llama_server = cache_dir() / "llama-server" / build / "llama-server"
            tables[build], found = _table(llama_server, models)
            problems += [f"{build}: {problem}" for problem in found]
    arguments.out.write_text(_text(tables), "utf-8")
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
