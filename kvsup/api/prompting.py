"""What kvsup asks a leased llama-server about prompts: their text, their tokens, what fits.

None of these calls takes a slot.
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from kvsup.api.relay import ask
from kvsup.errors import RequestError, UpstreamError
from kvsup.ggufnames import FIM_KEYS, FIM_TEXTS
from kvsup.ollama.to_llama import LlamaCall
from kvsup.ollama.truncation import IMAGE_TOKENS, Message, cut_around, turn_cuts, without_oldest
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


async def tokenize(
    instance: Instance, text: str, *, add_special: bool, parse_special: bool = True
) -> list[int]:
    """Return the tokens of ``text``; with ``add_special`` those at its ends that it runs with."""
    body = {"content": text, "add_special": add_special, "parse_special": parse_special}
    return (await _ask(instance, "/tokenize", body, _Tokens)).tokens


async def detokenize(instance: Instance, tokens: Sequence[int]) -> str:
    """Return the text of ``tokens``."""
    return (await _ask(instance, "/detokenize", {"tokens": tokens}, _Text)).content


async def fill_in(
    instance: Instance, prefix: str, suffix: str, *, room: int | None = None
) -> list[int]:
    """Return the prompt that makes the model write what stands between two texts.

    As llama-server's ``/infill`` (server-common.cpp, b11434), which cuts both to its batch; here
    they are whole, or together at most ``room`` tokens.
    """
    before = await tokenize(instance, prefix, add_special=False, parse_special=False)
    behind = await tokenize(instance, suffix, add_special=False, parse_special=False)
    if room is not None:
        before, behind = map(list, cut_around(before, behind, room=room))
    start = await tokenize(instance, "", add_special=True)
    pre, suf, mid = [await _mark(instance, place) for place in range(3)]
    return [*start[:1], *pre, *before, *suf, *behind, *mid]


async def _mark(instance: Instance, place: int) -> list[int]:
    """Return the token for prefix, suffix or middle, in this order of places."""
    metadata = instance.plan.file.metadata
    for keys in FIM_KEYS:
        if (token := metadata.integer(f"tokenizer.ggml.{keys[place]}")) is not None:
            return [token]
    for texts in FIM_TEXTS:
        tokens = await tokenize(instance, texts[place], add_special=False)
        if len(tokens) == 1:
            return tokens
    raise RequestError(f"{instance.plan.name} has no tokens to fill in with")


async def media_marker(instance: Instance) -> str:
    """Return the text that stands for an image in a prompt; it differs in each process."""
    upstream = await instance.ready()
    status, answer = await upstream.fetch("GET", "/props")
    return (
        _decoded("/props", answer, _Props).media_marker if status == 200 else _Props().media_marker
    )


async def shortened(instance: Instance, call: LlamaCall, *, n_ctx: int) -> LlamaCall | None:
    """Return a chat call without as many of its oldest turns as do not fit; None without any.

    The prompt should leave room for one token at least; with nothing more to leave out it is tried
    as it is, since images are only guessed.
    """
    messages: list[Message] = call.body["messages"]  # type: ignore[assignment]  # to_llama made it
    cuts = turn_cuts(messages)
    if not cuts:
        return None
    low, high = 0, len(cuts) - 1
    while low < high:
        middle = (low + high) // 2
        if await _fits(instance, call, without_oldest(messages, cuts[middle]), n_ctx):
            high = middle
        else:
            low = middle + 1
    kept = without_oldest(messages, cuts[low])
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
