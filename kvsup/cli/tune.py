"""``kvsup tune``: runs a study with a progress bar, shows what was found, and writes it down."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import anyio
import msgspec
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from kvsup.cli import plot
from kvsup.cli.tables import new_table, plain_console
from kvsup.cli.writing import write_pair
from kvsup.errors import ConfigError
from kvsup.kvtypes import F16, KVPair, parse_kv_pair
from kvsup.measures import PairMeasurement, Speed
from kvsup.pareto import GOALS, size_bytes
from kvsup.plan import Plan
from kvsup.runtime.remembered import Remembered
from kvsup.stores.stored import editable, has_file
from kvsup.tuning.greedy import ToolCase
from kvsup.tuning.report import COMMENT, StudyResult, comment, toml_line
from kvsup.tuning.scope import Wishes
from kvsup.tuning.stages import Event, Noted, PairDone, PairFailed
from kvsup.tuning.stages import Progress as Stand
from kvsup.tuning.study import study
from kvsup.units import format_bytes, format_duration, parse_bytes, parse_duration

ENDINGS = (signal.SIGTERM, signal.SIGHUP)
"""What else ends a study as Ctrl-C does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line as it was typed."""

    goal: str = "balanced"
    max_kld: float | None = None
    context: int | None = None
    memory: str | None = None
    pairs: str | None = None
    text: Path | None = None
    tools: Path | None = None
    method: str = "server"
    budget_time: str = "10m"
    fresh: bool = False
    write: bool = False
    as_json: bool = False
    plot: Path | None = None


def tune(plan: Plan, options: Options, *, store: Remembered, folder: Path | None) -> int:
    """Run a study of ``plan``'s model, print what was found, and return the exit code.

    Args:
        plan: the model.
        options: as typed.
        store: where measurements are kept.
        folder: that of the configuration, for ``--write``; None where the model is a mere file.

    Raises:
        ConfigError: an option is wrong, or the file cannot be written.
        KvsupError: f16:f16 cannot be run, or the plot cannot be written.
    """
    wishes = wishes_of(plan, options)
    if options.plot is not None:
        plot.check(options.plot)
    if options.write and folder is None:
        raise ConfigError("--write needs a configured model, not a mere file")
    if options.write and not has_file(plan.model.source):
        raise ConfigError(f"--write needs {editable(plan.model.source)} in {folder}")
    with _interruptible() as ended_by:
        try:
            result = _run(plan, wishes, store)
        except KeyboardInterrupt:
            again = going_on(is_fresh=options.fresh)
            typer.echo(
                f"{plan.name}: interrupted; what was measured is kept, and {again}", err=True
            )
            return 128 + (ended_by or [signal.SIGINT])[0]
    if options.as_json:
        typer.echo(msgspec.json.encode(result).decode())
    else:
        show(result, is_fresh=options.fresh)
    if options.plot is not None:
        plot.save(result, options.plot)
        typer.echo(f"plot: {options.plot}", err=True)
    if options.write and folder is not None and result.pick is not None:
        path = folder / Path(plan.model.source).name
        write_pair(path, plan.name, result.pick, comment(result), mark=COMMENT)
        typer.echo(f"{path}: {toml_line(result)}", err=True)
    return 0 if result.pick is not None else 1


def wishes_of(plan: Plan, options: Options) -> Wishes:
    """Return what a command line asks for.

    Raises:
        ConfigError: an option is wrong; the message says what to write.
    """
    goal: Any = _one_of("--goal", options.goal, GOALS)
    method: Any = _one_of("--method", options.method, ("server", "perplexity"))
    tools = _read("--tools", options.tools)
    return Wishes(
        goal=goal,
        max_kld=options.max_kld,
        num_ctx=options.context,
        memory_bytes=_parsed("--memory", parse_bytes, options.memory),
        pairs=_pairs(plan, options.pairs),
        text=_read("--text", options.text),
        tool_cases=() if tools is None else _parsed("--tools", tool_cases, tools),
        method=method,
        budget_s=_parsed("--budget-time", parse_duration, options.budget_time),
        is_fresh=options.fresh,
    )


def tool_cases(text: str) -> tuple[ToolCase, ...]:
    """Return the bodies of ``/v1/chat/completions`` that a file holds, as one JSON array.

    Raises:
        ValueError: it is none.
    """
    try:
        cases = msgspec.json.decode(text, type=tuple[ToolCase, ...])
    except msgspec.DecodeError as error:
        raise ValueError(
            f"{error}; write a JSON array of bodies of /v1/chat/completions, each with tools"
        ) from error
    if not all(case.get("messages") and case.get("tools") for case in cases):
        raise ValueError("each case must have messages and tools")
    return cases


def _one_of(option: str, word: str, words: tuple[str, ...]) -> str:
    if word not in words:
        raise ConfigError(f"{option} {word}: write {', '.join(words[:-1])} or {words[-1]}")
    return word


def _parsed(option: str, parse: Callable[[Any], Any], text: str | None) -> Any:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def _pairs(plan: Plan, text: str | None) -> tuple[KVPair, ...] | Literal["all"] | None:
    if text is None or text == "all":
        return "all" if text else None
    try:
        return tuple(parse_kv_pair(p, allowed=plan.binary.kv_types) for p in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--pairs: {error}") from error


def _read(option: str, path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option} {path}: cannot be read: {error}") from error


def going_on(*, is_fresh: bool) -> str:
    """Return how a study goes on that was broken off."""
    how = "with --resume instead of --fresh" if is_fresh else "again"
    return f"the same command {how} goes on"


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Take SIGTERM and SIGHUP for Ctrl-C, and yield which came; what is ignored stays ignored."""
    ended_by: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        ended_by.append(number)
        handle = signal.getsignal(signal.SIGINT)
        if callable(handle):
            handle(signal.SIGINT, frame)

    before = {number: signal.getsignal(number) for number in ENDINGS}
    taken = {number: how for number, how in before.items() if how is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield ended_by
    finally:
        for number, how in taken.items():
            signal.signal(number, how)


def _run(plan: Plan, wishes: Wishes, remembered: Remembered) -> StudyResult:
    with _bar(plan.name) as emit:

        async def work() -> StudyResult:
            return await study(plan, wishes, remembered=remembered, emit=emit)

        return anyio.run(work)


@contextmanager
def _bar(name: str) -> Iterator[Callable[[Event], None]]:
    """Show a bar on a terminal's stderr, lines elsewhere."""
    console = plain_console(stderr=True)
    columns = (
        TextColumn(f"{name} {{task.description}}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None, left="")

        def emit(event: Event) -> None:
            match event:
                case Stand():
                    progress.update(
                        task,
                        description=f"{event.stage} {event.what}",
                        completed=event.done_s,
                        total=event.total_s,
                        left=f"{format_duration(round(event.left_s))} left",
                    )
                case PairDone() if not console.is_terminal:
                    typer.echo(f"{event.stage} {event.pair}: {event.mean_kld_nats:.2g}", err=True)
                case Noted():
                    progress.console.print(event.text, soft_wrap=True)
                case PairFailed():
                    progress.console.print(
                        f"{event.stage} {event.pair} failed: {event.reason}", soft_wrap=True
                    )

        yield emit


def show(result: StudyResult, *, is_fresh: bool = False) -> None:
    """Print the table, the finding, the pick, and what to write for it."""
    console = plain_console()
    console.print(table_of(result))
    for line in lines_of(result, is_fresh=is_fresh):
        console.print(line, soft_wrap=True)
    if sys.stdout.isatty() and (text := plot.show(result)):
        typer.echo(text)


def table_of(result: StudyResult) -> Table:
    """Return one row for each pair that was measured, the smallest loss first."""
    measured = [m for m in result.pairs if m.quality is not None]
    depths = sorted({speed.depth_tokens for m in measured for speed in m.speeds})
    names = ("PAIR", "K + V", "OF F16", "MEAN KLD", "95 %", "99.9 %", "MAX")
    more = ("SAME TOP", "PPL RATIO", "GREEDY PARTS AT")
    at = "/".join(map(str, depths))
    table = new_table(*names, *more, f"PROMPT T/S AT {at}", f"GENERATION T/S AT {at}", "")
    whole = next((size_bytes(m) for m in measured if m.pair == str(F16)), 0)
    for m in measured:
        table.add_row(*_row(m, result, whole_bytes=whole))
    return table


def _row(m: PairMeasurement, result: StudyResult, *, whole_bytes: int) -> tuple[str, ...]:
    quality = m.quality
    if quality is None:
        return (m.pair,)
    return (
        m.pair,
        format_bytes(size_bytes(m)),
        f"{size_bytes(m) / whole_bytes:.0%}" if whole_bytes else "-",
        f"{quality.mean_kld_nats:.2g}",
        f"{quality.low_kld_nats:.2g}-{quality.high_kld_nats:.2g}",
        f"{quality.p999_kld_nats:.2g}",
        f"{quality.max_kld_nats:.2g}",
        f"{quality.same_top:.1%}",
        f"{quality.perplexity_ratio:.4f}",
        parting(m),
        _speeds(m.speeds, lambda speed: speed.prompt_tokens_per_s),
        _speeds(m.speeds, lambda speed: speed.generation_tokens_per_s),
        _remark(m, result),
    )


def parting(m: PairMeasurement) -> str:
    """Return where greedy answers part from f16:f16's: the median, and how many never do."""
    if m.trajectory is None:
        return "-"
    places = m.trajectory.first_difference
    parted = sorted(place for place in places if place is not None)
    same = f"{len(places) - len(parted)} of {len(places)} same"
    return f"{parted[len(parted) // 2]}, {same}" if parted else same


def _speeds(speeds: tuple[Speed, ...], of: Callable[[Speed], float]) -> str:
    return "/".join(f"{of(s):.3g}" for s in sorted(speeds, key=lambda s: s.depth_tokens)) or "-"


def _remark(m: PairMeasurement, result: StudyResult) -> str:
    words = []
    if m.pair == result.pick:
        words.append(f"the pick ({result.goal})")
    if m.pair == str(F16):
        words.append("the floor: f16:f16 against itself")
    if m.pair in result.at_floor:
        words.append("at the floor")
    ties = next((group for group in result.ties if m.pair in group), ())
    if ties and ties[0] != m.pair:
        words.append(f"equal to {ties[0]}")
    if m.verdict not in {"", "fast"}:
        words.append(f"attention: {m.verdict}")
    if m.trajectory and not all(m.trajectory.same_tool_calls):
        calls = m.trajectory.same_tool_calls
        words.append(f"{len(calls) - sum(calls)} of {len(calls)} tool calls differ")
    if m.pair not in result.front:
        words.append("dominated")
    return ", ".join(words)


def lines_of(result: StudyResult, *, is_fresh: bool = False) -> Iterator[str]:
    """Yield what is said below the table."""
    environment = result.environment
    yield from result.notes
    for m in result.pairs:
        if m.failure is not None:
            yield f"{m.pair}: {m.failure}"
    n_predicted = sum(m.quality is None and m.failure is None for m in result.pairs)
    yield (
        f"{environment.full_tokens} scored tokens of {', '.join(environment.text_kinds)}; "
        f"bytes at {environment.num_parallel} x {environment.num_ctx} tokens; "
        f"{n_predicted} pairs were judged by prediction alone, {len(result.refused)} cannot run"
    )
    if environment.unrotated:
        halves = " and ".join(half.upper() for half in environment.unrotated)
        yield f"{halves} is quantized without rotation: losses are larger than they could be"
    if result.rank_agreement is not None:
        yield f"llama-perplexity ranks them alike: Spearman {result.rank_agreement:.2f}"
    if not result.is_complete:
        yield f"time was up before every pair was measured; {going_on(is_fresh=is_fresh)}"
    if result.sentence:
        yield result.sentence
    if result.pick is None:
        yield f"no pair for {result.goal}: {result.reason}"
        return
    yield f"{result.goal}: {result.pick}, since {result.reason}"
    yield toml_line(result)
