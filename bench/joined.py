"""How often a resumed answer is the calm one, to the letter, at temperature 0.

    python -m bench.joined LLAMA_SERVER MODEL.gguf [--cuts 12] [--tokens 48]

One llama-server answers in peace. Its stream is cut at so many places, evenly spread, as a death
cuts it, and goes on from a second process whose cache is empty, by a replay and by a continuation.
Printed is how many of the joined texts equal the calm one; of the others, after how many letters
behind the cut they part. ``docs/reliability.md`` has the result.
"""

import argparse
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kvsup.errors import Diverged
from kvsup.llama.resume import obstacle
from kvsup.llama.seam import Seam
from kvsup.llama.transcript import CHAT, TEXT, Transcript
from tests.dying import DyingServer, requested, resumed

NATIVE = "/completion"
PAIRS = (("f16", "f16"), ("q8_0", "q4_0"))

THINKING = r"""
{%- if tools %}<|im_start|>system
Call tools with {"name": NAME, "parameters": ARGUMENTS}.
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
{%- endif %}
{%- if message.content %}{{ message.content }}{% endif %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '{"name": "' + call.function.name + '", "parameters": ' }}
{{- call.function.arguments | tojson }}{{ '}' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
"""Of it llama-server learns how this model would think and call tools."""

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "why": {"type": "string"}},
    "required": ["city", "why"],
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}}
THOUGHT = r'root ::= "<think>\n" [a-z ,.]{60,90} "\n</think>\n\n" [^\x00]*'
CALL = {"tools": [TOOL], "tool_choice": "required", "logit_bias": [['{"', 30]]}


def _asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


STORY, WHY, CITY = "Tell me about a fox.", "Why is the sky blue?", "Name a city to visit, and why."


@dataclass(frozen=True)
class Case:
    """A request, and what is around it."""

    path: str
    fields: dict[str, Any]
    is_second_turn: bool = False
    """Whether the one that died had answered the turn before, so had it in its cache."""
    has_template: bool = False
    """Whether the model gets a chat template with thoughts and tools in place of its own."""
    has_neighbour: bool = False
    """Whether another answer is generated beside the resumed one, in the same batches."""


CASES: Mapping[str, Case] = {
    "chat": Case(CHAT, _asked(STORY)),
    "chat 2": Case(CHAT, _asked(WHY)),
    "chat 3": Case(CHAT, _asked(CITY)),
    "second turn": Case(CHAT, _asked(STORY), is_second_turn=True),
    "beside another": Case(CHAT, _asked(WHY), has_neighbour=True),
    "thinking": Case(CHAT, _asked(WHY, grammar=THOUGHT), has_template=True),
    "schema": Case(CHAT, _asked(CITY, response_format=FORMAT)),
    "tool": Case(CHAT, _asked(CITY, **CALL), has_template=True),
    "no thought": Case(CHAT, _asked(STORY), has_template=True),
    "logprobs": Case(CHAT, _asked(WHY, logprobs=True, top_logprobs=2)),
    "n = 2": Case(CHAT, _asked(STORY, n=2)),
    "text": Case(TEXT, {"prompt": "The capital of France is"}),
    "ids": Case(NATIVE, {"prompt": "Once upon a time"}),
}


@dataclass
class Row:
    """One line of the table."""

    n: int = 0
    n_equal: int = 0
    n_diverged: int = 0
    parted: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.n:
            return "-"
        parted = f", parted after {sorted(self.parted)}" if self.parted else ""
        diverged = f", {self.n_diverged} noticed" if self.n_diverged else ""
        return f"{self.n_equal}/{self.n}{diverged}{parted}"


def _texts(path: str, stream: bytes) -> list[Any]:
    transcript = Transcript(path)
    transcript.add(stream)
    return [
        (
            answer.content.getvalue(),
            answer.reasoning.getvalue(),
            [(call.name, call.arguments.getvalue()) for call in answer.calls.values()],
            answer.finish_reason,
        )
        for _, answer in sorted(transcript.answers.items())
    ]


def _says_anything(path: str, event: bytes) -> bool:
    return any(any(said) for *said, _ in _texts(path, event))


def _cuts(path: str, stream: bytes, n: int) -> Iterator[bytes]:
    events = [event + b"\n\n" for event in stream.split(b"\n\n") if event]
    first = next(i for i, event in enumerate(events) if _says_anything(path, event))
    places = range(first + 1, len(events) - 2)
    for index in range(n):
        yield b"".join(events[: places[index * len(places) // n]])


def _parted(calm: list[Any], joined: list[Any], cut: list[Any]) -> int:
    """Return how many letters behind the cut the two texts part."""
    a, b = (texts[0][1] + texts[0][0] for texts in (calm, joined))
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    return same - len(cut[0][1] + cut[0][0])


def _measure(
    heir: DyingServer, path: str, body: dict[str, Any], cuts: Sequence[bytes], how: str
) -> Row:
    row = Row()
    *cuts, calm = cuts
    whole = _texts(path, calm)
    for cut in cuts:
        seam = Seam(path)
        seam.feed(cut)
        if how == "continue" and obstacle(path, body, seam.transcript) is not None:
            continue
        row.n += 1
        try:
            rest = resumed(heir, seam, path, body, [how])
        except Diverged:
            row.n_diverged += 1
            continue
        joined = _texts(path, cut + rest)
        if joined == whole:
            row.n_equal += 1
        else:
            row.parted += (_parted(whole, joined, _texts(path, cut)),)
    return row


@contextmanager
def _neighbour(server: DyingServer, *, is_there: bool) -> Iterator[None]:
    """Generate another answer on ``server`` for as long as the block runs."""
    has_ended = threading.Event()

    def generate() -> None:
        body = requested({"prompt": "The sea", "n_predict": 1500, "ignore_eos": True})
        while not has_ended.is_set():
            for _ in server.stream(NATIVE, body):
                if has_ended.is_set():
                    break

    neighbour = threading.Thread(target=generate)
    if is_there:
        neighbour.start()
    try:
        yield
    finally:
        has_ended.set()
        if is_there:
            neighbour.join()


def _turn_before(server: DyingServer, body: dict[str, Any]) -> dict[str, Any]:
    """Let ``server`` answer ``body``; return a request that goes on with the conversation."""
    stream = b"".join(server.stream(CHAT, {**body, "cache_prompt": True}))
    said = {"role": "assistant", "content": _texts(CHAT, stream)[0][0]}
    again = {"role": "user", "content": "And then?"}
    return {**body, "cache_prompt": True, "messages": [*body["messages"], said, again]}


def main() -> None:
    """Print the table."""
    flags: tuple[str, ...]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("llama_server", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cuts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=48)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        template = Path(folder) / "template.jinja"
        template.write_text(THINKING)
        for key, value in PAIRS:
            for name, case in CASES.items():
                flags = ("-c", "2048", "-np", "2", "--no-kv-unified", "-ctk", key, "-ctv", value)
                flags += ("-fa", "on")
                flags += ("--chat-template-file", str(template)) if case.has_template else ()
                fixed = {"temperature": 0, "seed": 1, "cache_prompt": False}
                body = requested({**fixed, "n_predict": asked.tokens, **case.fields})
                with DyingServer(asked.llama_server, asked.model, *flags) as server:
                    if case.is_second_turn:
                        body = _turn_before(server, body)
                    calm = b"".join(server.stream(case.path, body))
                body["cache_prompt"] = False
                cuts = [*_cuts(case.path, calm, asked.cuts), calm]
                with (
                    DyingServer(asked.llama_server, asked.model, *flags) as heir,
                    _neighbour(heir, is_there=case.has_neighbour),
                ):
                    rows = [
                        _measure(heir, case.path, body, cuts, how) for how in ("replay", "continue")
                    ]
                print(f"{key}:{value} | {name} | {rows[0]} | {rows[1]}", flush=True)


if __name__ == "__main__":
    main()
