"""Divergence by llama.cpp's own ``llama-perplexity``, where it lies beside a llama-server.

It reads a plain text in chunks of ``n_ctx`` tokens and scores the second half of each: first with
f16:f16, whose logits it keeps in a file of 2 * (vocabulary + 4) bytes a scored token, then with the
pair against that file (tools/perplexity/perplexity.cpp, b11434). Whole chunks go through the cache
in one batch, so it tells nothing of decoding.
"""

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio

from kvsup.divergence import interval
from kvsup.kvtypes import F16, KVPair
from kvsup.llama.binary import Binary
from kvsup.measures import Quality
from kvsup.plan import Plan
from kvsup.runtime.logbook import Logbook
from kvsup.runtime.process import Child, spawn
from kvsup.tuning.trial import TrialFailed, ended, why_ended

PROGRAM = "llama-perplexity"

_TRIES = 2
"""It sometimes ends without having written all of its output (b11434: 2 of 10 short runs)."""

_NORMAL_95 = 1.96
"""Standard errors on either side of a mean that hold 95 % of a normal distribution."""

_NUMBER = r"(-?(?:[\d.]+(?:e[-+]?\d+)?|nan|inf))"
_CHUNK = re.compile(rf"^\s*\d+((?:\s+{_NUMBER} ±\s+{_NUMBER}(?: %)?){{5}})", re.MULTILINE)
_MEAN = re.compile(rf"{_NUMBER} ±")
_FINAL = {
    "mean": re.compile(rf"^Mean +KLD: +{_NUMBER}", re.MULTILINE),
    "error": re.compile(rf"^Mean +KLD: +\S+ ± +{_NUMBER}", re.MULTILINE),
    "max": re.compile(rf"^Maximum KLD: +{_NUMBER}", re.MULTILINE),
    "p999": re.compile(rf"^99\.9% +KLD: +{_NUMBER}", re.MULTILINE),
    "ratio": re.compile(rf"^Mean PPL\(Q\)/PPL\(base\) +: +{_NUMBER}", re.MULTILINE),
    "same_top": re.compile(rf"^Same top p: +{_NUMBER}", re.MULTILINE),
}


def find(binary: Binary) -> Path | None:
    """Return the llama-perplexity of the same build, beside the llama-server or in its ``bin``."""
    folder = Path(binary.path).parent
    for path in (folder / PROGRAM, folder / "bin" / PROGRAM):
        if path.is_file():
            return path
    return None


async def base(
    tool: Path, plan: Plan, text_file: Path, out_file: Path, *, n_ctx: int, n_chunks: int
) -> None:
    """Write the logits of f16:f16 over ``text_file`` into ``out_file``.

    Args:
        tool: what ``find`` found.
        plan: of the model; threads, devices, flash attention and environment are as there.
        text_file: at least two chunks of text.
        out_file: n_chunks * n_ctx * (vocabulary + 4) bytes.
        n_ctx: tokens of a chunk.
        n_chunks: at most so many.

    Raises:
        TrialFailed: it did not end well.
    """
    await _run(tool, plan, F16, out_file, "--file", str(text_file), n_ctx=n_ctx, n_chunks=n_chunks)


async def divergence(
    tool: Path, plan: Plan, pair: KVPair, base_file: Path, *, n_ctx: int, n_chunks: int
) -> Quality:
    """Return what ``pair`` loses against what ``base`` wrote; f16:f16 gives the method's floor.

    Raises:
        TrialFailed: it did not end well, or its output is not as b11434's.
    """
    why: ValueError | None = None
    for _ in range(_TRIES):
        output = await _run(
            tool, plan, pair, base_file, "--kl-divergence", n_ctx=n_ctx, n_chunks=n_chunks
        )
        try:
            return parse_divergence(output, n_ctx=n_ctx)
        except ValueError as error:
            why = error
    raise TrialFailed(f"{plan.name} with {pair} cannot be measured: {why}") from why


def parse_divergence(output: str, *, n_ctx: int) -> Quality:
    """Return what the output of ``llama-perplexity --kl-divergence`` says.

    A chunk's line has the mean over all chunks so far, so the means of single chunks are
    differences; they are told to 1e-5. The interval of the mean is by bootstrap over the chunks,
    and holds the one of the tool's own standard error: that takes tokens to be independent, which
    is too narrow, but says something where there is one chunk or all are equal.

    Raises:
        ValueError: a number is missing, or is not finite.
    """
    found = {}
    for name, pattern in _FINAL.items():
        match = pattern.search(output)
        if match is None or match[1] in {"nan", "inf", "-nan", "-inf"}:
            raise ValueError(f"{PROGRAM} told no {name} of the divergence")
        found[name] = float(match[1])
    means = list(_chunk_means(output))
    if not means:
        raise ValueError(f"{PROGRAM} told of no chunk")
    n_scored = n_ctx - 1 - n_ctx // 2
    low, high = interval([(mean, 1) for mean in means])
    mean = max(0.0, found["mean"])
    margin = _NORMAL_95 * found["error"]
    return Quality(
        n_tokens=n_scored * len(means),
        mean_kld_nats=mean,
        low_kld_nats=max(0.0, min(low, mean - margin)),
        high_kld_nats=max(high, mean + margin),
        p999_kld_nats=found["p999"],
        max_kld_nats=found["max"],
        same_top=found["same_top"] / 100,
        perplexity_ratio=found["ratio"],
    )


def _chunk_means(output: str) -> Iterator[float]:
    """Yield the mean divergence of each chunk."""
    total = 0.0
    for count, match in enumerate(_CHUNK.finditer(output), start=1):
        mean = float(_MEAN.findall(match[1])[2])
        yield count * mean - total
        total = count * mean


async def _run(
    tool: Path,
    plan: Plan,
    pair: KVPair,
    base_file: Path,
    *arguments: str,
    n_ctx: int,
    n_chunks: int,
) -> str:
    """Return what the tool printed."""
    words = (
        str(tool),
        *_arguments(plan, pair),
        *("--ctx-size", str(n_ctx), "--batch-size", str(n_ctx), "--chunks", str(n_chunks)),
        *("--kl-divergence-base", str(base_file)),
        *arguments,
    )
    told: list[str] = []
    logbook = Logbook()

    async def read(lines: AsyncIterator[bytes], *, keep: bool) -> None:
        async for line in lines:
            text = line.decode("utf-8", "replace")
            logbook.append(text)
            if keep:
                told.append(text)

    async with _child(words, plan) as child:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(read, child.stdout_lines(), keep=True))
            tasks.start_soon(partial(read, child.stderr_lines(), keep=False))
        code = await child.wait()
    if code != 0:
        reason = why_ended(code, logbook.tail(3))
        raise TrialFailed(f"{plan.name} with {pair} cannot be measured by {PROGRAM}: {reason}")
    return "\n".join(told)


@asynccontextmanager
async def _child(words: Sequence[str], plan: Plan) -> AsyncIterator[Child]:
    """Run ``words`` in a session of its own that is killed and reaped on leaving."""
    try:
        child = await spawn(words, environment=plan.environment)
    except OSError as error:
        raise TrialFailed(f"{words[0]} cannot be started: {error}") from error
    try:
        yield child
    finally:
        await ended(child)


def _arguments(plan: Plan, pair: KVPair) -> Iterator[str]:
    """Yield what decides how the model computes; the same flags as llama-server's (b11434)."""
    model = plan.model
    yield from ("--model", model.model)
    yield from ("--cache-type-k", str(pair.k), "--cache-type-v", str(pair.v))
    yield from ("--flash-attn", model.flash_attention)
    if {"--no-repack", "-nr"} & set(model.extra_args):
        yield "--no-repack"
    if model.threads is not None:
        yield from ("--threads", str(model.threads))
    if model.gpu_layers is not None:
        yield from ("--gpu-layers", str(model.gpu_layers))
    if model.main_gpu is not None:
        yield from ("--split-mode", "none", "--main-gpu", str(model.main_gpu))
    if model.ubatch_size is not None:
        yield from ("--ubatch-size", str(model.ubatch_size))
