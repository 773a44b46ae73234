"""Tiny models for tests: what each says is known. ``scripts/make_tiny_gguf.py`` writes them."""

import io
import struct
import wave
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.make_tiny_gguf import (
    AFTER_TOOLS,
    END,
    TINY_TEXT,
    WITHOUT_THOUGHT,
    chat_template,
    make_audio,
    make_embedding,
    make_rerank,
    make_scripted,
    make_vision,
)
from tests.adapters import make_lora

ANSWER = "".join(TINY_TEXT)
"""What ``plain``, ``fill_in``, ``vision`` and ``audio`` say."""

ANSWER_TOKENS = len(TINY_TEXT) + 1
"""How many tokens that is, with the one that ends it."""

ADAPTED = "they were told."
"""What ``plain`` says with ``adapter``."""

THOUGHT = "Two and two."
AFTER_THOUGHT = "Four."
_THINKING = ("<think>", "\nTwo and", " two.\n", "</think>", "\n\n", "Four", ".")
_THINKING_STARTS = {WITHOUT_THOUGHT: 5}

AFTER_CALLS = "It is sunny."
_ONE_CALL = (
    "<tool_call>",
    '\n{"name": "get_weather", ',
    '"arguments": {"city": ',
    '"Paris"}}',
    "\n</tool_call>",
)
_SECOND_CALL = (
    "\n<tool_call>\n",
    '{"name": "get_time", "arguments": {"zone": "CET"}}\n</tool_call>',
)
_AFTER = (END, "It is", " sunny", ".")


def _tool(name: str, argument: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
    }
    function = {"name": name, "description": f"Tells of a {argument}.", "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [_tool("get_weather", "city"), _tool("get_time", "zone")]
"""What ``one_call`` calls with city Paris, and ``two_calls`` also with zone CET."""


class Multimodal(NamedTuple):
    """A text model and its projector."""

    model: Path
    mmproj: Path


class TinyModels:
    """Each file is written on first use into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def scripted(
        self,
        name: str,
        script: Sequence[str],
        *,
        template: str | None = None,
        start_after: Mapping[str, int] | None = None,
        **settings: Any,
    ) -> Path:
        """Return a model of its own that says ``script``; the name must be new for a new script."""
        return self._written(
            name,
            lambda path: make_scripted(
                path, script=script, template=template, start_after=start_after, **settings
            ),
        )

    def plain(self) -> Path:
        """Return a model that says ``ANSWER`` and neither thinks nor calls."""
        return self.scripted("plain", TINY_TEXT)

    def thinking(self) -> Path:
        """Return a model that thinks ``THOUGHT`` unless told not to, then says the rest."""
        template = chat_template(thinking=True)
        return self.scripted("thinking", _THINKING, template=template, start_after=_THINKING_STARTS)

    def one_call(self) -> Path:
        """Return a model that calls the first of ``TOOLS``; after a result it says so."""
        return self._calling("one_call", _ONE_CALL)

    def two_calls(self) -> Path:
        """Return a model that calls both ``TOOLS`` at once; after a result it says so."""
        return self._calling("two_calls", _ONE_CALL + _SECOND_CALL)

    def fill_in(self) -> Path:
        """Return a model that fills in the middle."""
        return self.scripted("fill_in", TINY_TEXT, fim=True)

    def embedding(self) -> Path:
        """Return a model for ``--embedding``: 32 numbers, at most 64 tokens, one a letter."""
        return self._written("embedding", make_embedding)

    def rerank(self) -> Path:
        """Return a model for ``--rerank``, at most 64 tokens, one a letter."""
        return self._written("rerank", make_rerank)

    def vision(self) -> Multimodal:
        """Return a model that takes images, 4 tokens each."""
        return self._multimodal("vision", make_vision)

    def audio(self) -> Multimodal:
        """Return a model that takes sound, 25 tokens for 30 s or less."""
        return self._multimodal("audio", make_audio)

    def adapter(self) -> Path:
        """Return a LoRA for ``plain``, with which that says ``ADAPTED``."""
        model = self.plain()
        return self._written("adapter", lambda path: make_lora(path, model, after="", says=" they"))

    def _calling(self, name: str, calls: Sequence[str]) -> Path:
        return self.scripted(
            name,
            [*calls, *_AFTER],
            template=chat_template(tools=True),
            start_after={AFTER_TOOLS: len(calls) + 1},
        )

    def _multimodal(self, name: str, make_projector: Callable[..., int]) -> Multimodal:
        projector = self.folder / f"{name}.mmproj.gguf"

        def write(path: Path) -> None:
            make_projector(projector, width=make_scripted(path))

        return Multimodal(self._written(name, write), projector)

    def _written(self, name: str, write: Callable[[Path], object]) -> Path:
        path = self.folder / f"{name}.gguf"
        if not path.exists():
            write(path)
        return path


def png(width: int = 40, height: int = 30) -> bytes:
    """Return a picture of one colour."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\xff\x80\x00" * width) * height
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def wav(duration_s: float = 1.0) -> bytes:
    """Return near silence, 16 kHz mono."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        sound.writeframes(b"\x01\x00" * int(16000 * duration_s))
    return file.getvalue()
