"""Quantize a GGUF file by llama.cpp's own ``llama-quantize``."""

import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from kvsup.errors import KvsupError, RequestError
from kvsup.ggufnames import FILE_TYPES, UNKNOWN
from kvsup.runtime.bringing import Told

PROGRAM = "llama-quantize"
_ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q3_K": "Q3_K_M"}
_SOURCES = ("F16", "BF16", "F32")
_STEP = re.compile(rb"^\[\s*(\d+)/\s*(\d+)\]")
_N_TOLD_LINES = 5


def checked_type(name: str) -> str:
    """Return the type of file that is asked for, in capitals.

    Raises:
        RequestError: there is none of that name.
    """
    wanted = _ALIASES.get(name.upper(), name.upper())
    known_types = set(FILE_TYPES) - {UNKNOWN}
    if wanted not in known_types:
        known = ", ".join(sorted(known_types))
        raise RequestError(f"unsupported quantization type {name} - supported types are {known}")
    return wanted


def check_source(file_type: str) -> None:
    """Raise RequestError where a file of that type has lost too much to be quantized again."""
    if file_type not in _SOURCES:
        raise RequestError("quantization is only supported for F16, BF16 and F32 models")


def program_beside(llama_server: str | None) -> str:
    """Return the path of ``llama-quantize``: beside the llama-server in use, else on PATH.

    Raises:
        KvsupError: there is none.
    """
    beside = Path(llama_server).resolve().with_name(PROGRAM) if llama_server else None
    if beside is not None and os.access(beside, os.X_OK):
        return str(beside)
    if found := shutil.which(PROGRAM):
        return found
    raise KvsupError(
        f"no {PROGRAM} beside the llama-server in use, nor on PATH; build it with llama.cpp"
        " (kvsup setup --build cpu), or quantize the file elsewhere"
    )


async def quantize(program: str, source: Path, target: Path, file_type: str, told: Told) -> None:
    """Write ``source`` to ``target`` in another type.

    Args:
        program: ``llama-quantize``.
        source: a GGUF file.
        target: a file that is not there yet.
        file_type: as ``checked_type`` has it.
        told: takes how many bytes of ``source`` are done, as far as tensors tell.

    Raises:
        KvsupError: it failed; the message has its last lines.
    """
    size_bytes = (await anyio.Path(source).stat()).st_size
    last: deque[bytes] = deque(maxlen=_N_TOLD_LINES)
    libraries = str(Path(program).parent)
    path = ":".join(filter(None, (libraries, os.environ.get("LD_LIBRARY_PATH"))))
    async with await anyio.open_process(
        [program, str(source), str(target), file_type],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LD_LIBRARY_PATH": path},
    ) as process:
        async for line in _lines(process):
            last.append(line)
            if match := _STEP.match(line):
                told(size_bytes * int(match[1]) // max(1, int(match[2])))
    if process.returncode:
        said = b" / ".join(last).decode("utf-8", "replace")
        raise KvsupError(f"{PROGRAM} failed ({process.returncode}): {said}")


async def _lines(process: Process) -> AsyncIterator[bytes]:
    assert process.stdout is not None  # noqa: S101 - it is piped
    buffered = BufferedByteReceiveStream(process.stdout)
    with suppress(anyio.IncompleteRead, anyio.DelimiterNotFound):
        while True:
            yield (await buffered.receive_until(b"\n", 1 << 16)).strip()
