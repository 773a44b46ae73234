"""What kvsup asks a leased llama-server about prompts: their text, their tokens, what fits.

None of these calls takes a slot.
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from kvsup.api.relay import ask
from kvsup.errors import UpstreamError
from kvsup.ollama.to_llama import LlamaCall
from kvsup.ollama.truncation import IMAGE_TOKENS, Message, n_droppable, without_oldest
from kvsup.runtime.instance import Instance


class _Props(msgspec.Struct):
    media_marker: str = "<__media__>"


class _Prompt(msgspec.Struct):
    prompt: str


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Text(msgspec.Struct):
    content: str


T = TypeVar("T")


async def render(instance: Instance, call: LlamaCall) -> str:
    """Return the prompt that a chat call makes; raises as ``relay.ask``."""
    return (await _ask(instance, "/apply-template", call.body, _Prompt)).prompt


async def tokenize(instance: Instance, text: str, *, add_special: bool) -> list[int]:
    """Return the tokens of ``text``; with ``add_special`` those at its ends that it runs with."""
    body = {"content": text, "add_special": add_special, "parse_special": True}
    return (await _ask(instance, "/tokenize", body, _Tokens)).tokens


async def detokenize(instance: Instance, tokens: Sequence[int]) -> str:
    """Return the text of ``tokens``."""
    return (await _ask(instance, "/detokenize", {"tokens": tokens}, _Text)).content


async def media_marker(instance: Instance) -> str:
    """Return the text that stands for an image in a prompt; it differs in each process."""
    upstream = await instance.ready()
    status, answer = await upstream.fetch("GET", "/props")
    return (
        _decoded("/props", answer, _Props).media_marker if status == 200 else _Props().media_marker
    )


async def shortened(instance: Instance, call: LlamaCall, *, n_ctx: int) -> LlamaCall | None:
    """Return a chat call without as many of its oldest messages as do not fit, None if none fits.

    The prompt must leave room for one token at least.
    """
    messages: list[Message] = call.body["messages"]  # type: ignore[assignment]  # to_llama made it
    low, high = 1, n_droppable(messages)
    if not high:
        return None
    while low < high:
        middle = (low + high) // 2
        if await _fits(instance, call, without_oldest(messages, middle), n_ctx):
            high = middle
        else:
            low = middle + 1
    kept = without_oldest(messages, low)
    if not await _fits(instance, call, kept, n_ctx):
        return None
    return LlamaCall(call.path, {**call.body, "messages": kept})


async def _fits(instance: Instance, call: LlamaCall, messages: list[Message], n_ctx: int) -> bool:
    prompt = await render(instance, LlamaCall(call.path, {**call.body, "messages": messages}))
    n_images = sum(
        len([part for part in content if part["type"] == "image_url"])
        for message in messages
        if isinstance(content := message["content"], list)
    )
    n_tokens = len(await tokenize(instance, prompt, add_special=True))
    return n_tokens + n_images * IMAGE_TOKENS < n_ctx


async def _ask(instance: Instance, path: str, body: dict[str, object], kind: type[T]) -> T:
    answer = await ask(instance, path=path, body=msgspec.json.encode(body))
    return _decoded(path, answer, kind)


def _decoded(path: str, answer: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.MsgspecError as error:
        raise UpstreamError(f"llama-server sent an unreadable answer to {path}: {error}") from error
