"""``kvsup why``: the history of a model, from the kvsup that runs, else from its state folder."""

import json
import os
import time
from typing import Any
from urllib.parse import quote

import msgspec
import typer

from kvsup.cli import client
from kvsup.errors import KvsupError
from kvsup.ollama.names import is_same_name
from kvsup.runtime.configdir import read_host
from kvsup.runtime.historyfiles import HistoryFiles
from kvsup.runtime.paths import config_dir, state_dir
from kvsup.units import format_span
from kvsup.why import NOT_RUNNING, Answer, Present, answer

_LABELS = {"because": "because", "mend": "to do", "lately": "24 hours", "evidence": "evidence"}


def show(model: str | None, *, n_lines: int, as_json: bool) -> None:
    """Print why ``model`` is as it is, or one line for each model.

    Raises:
        KvsupError: there is no such model.
    """
    if model is None:
        found = client.get_if_running("/kvsup/why")
        answers = msgspec.convert(found["models"], list[Answer]) if found else _kept_answers()
        if as_json:
            typer.echo(json.dumps({"models": msgspec.to_builtins(answers)}))
            return
        for each in answers:
            typer.echo(": ".join(word for word in (each.now, each.because) if word))
        return
    found = client.get_if_running(f"/kvsup/why/{quote(model)}?last={n_lines}")
    told = msgspec.convert(found, Answer) if found else _kept_answer(model, n_lines)
    typer.echo(json.dumps(msgspec.to_builtins(told)) if as_json else _text(told, time.time()))


def _kept_answers() -> list[Answer]:
    records = _files().read(now_s=time.time())
    return [_answer(name, records, 0) for name in sorted(name for name in records if name)]


def _kept_answer(model: str, n_lines: int) -> Answer:
    records = _files().read(now_s=time.time())
    names = sorted(name for name in records if name)
    own = next((n for n in names if n == model or is_same_name(n, model)), None)
    if own is None:
        kept = f"there is history of {', '.join(names)}" if names else "there is no history yet"
        raise KvsupError(f"no kvsup runs, and nothing is kept of {model!r}; {kept}")
    return _answer(own, records, n_lines)


def _answer(name: str, records: dict[str | None, list[Any]], n_lines: int) -> Answer:
    both = [*records.get(name, ()), *records.get(None, ())]
    return answer(name, both, Present(NOT_RUNNING), now_s=time.time(), n_lines=n_lines)


def _files() -> HistoryFiles:
    host, problem = read_host(config_dir(None), os.environ)
    if problem is not None:
        raise problem
    return HistoryFiles(state_dir(host.state_dir))


def _text(told: Answer, now_s: float) -> str:
    """Return an answer for a person: first what is so and why, then how it came about."""
    lines = [told.now]
    width = max(map(len, _LABELS.values()))
    for name, label in _LABELS.items():
        if words := getattr(told, name):
            lines.append(f"  {label:{width}}  {words}")
    if told.timeline:
        lines.append("")
    if told.n_earlier:
        n_all = told.n_earlier + len(told.timeline)
        lines.append(f"({told.n_earlier} earlier lines: kvsup why {told.model} --last {n_all})")
    for line in told.timeline:
        ago = f"{format_span(now_s - line.until_s)} ago"
        lines.append(f"{_clock(line.at_s, now_s)}  {ago:>11}  {line.text}")
    return "\n".join(lines)


def _clock(at_s: float, now_s: float) -> str:
    """Return the local time of day; with its date where that is not today's."""
    at, now = time.localtime(at_s), time.localtime(now_s)
    return time.strftime("%H:%M:%S" if at[:3] == now[:3] else "%Y-%m-%d %H:%M:%S", at)
