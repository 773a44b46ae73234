"""The input items of ``/v1/responses``, as llama-server can read them.

It tells the kind of an item by its members and refuses what OpenAI's own examples send (b10434,
b11434: server-chat.cpp, ``convert_responses_to_chatcmpl``; ran): an assistant's message without
``type``, and reasoning without ``content``, which is how the AI SDK sends it back.
"""

from typing import Any

import msgspec

from kvsup.errors import RequestError


class _Part(msgspec.Struct, frozen=True):
    text: str = ""


class _Item(msgspec.Struct, frozen=True):
    type: str | None = None
    role: str | None = None
    content: msgspec.Raw = msgspec.Raw(b"")
    summary: list[_Part] | None = None


_item = msgspec.json.Decoder(_Item).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_NO_CONTENT = (b"", b"null", b"[]")


def mended_items(items: list[msgspec.Raw]) -> list[Any] | None:
    """Return the items to send in place of ``items``, or None where they can stay.

    Raises:
        RequestError: an item refers to one that only a server with a memory could know.
    """
    mended: list[Any] = []
    for index, raw in enumerate(items):
        mended += _mended(raw, index)
    return mended if mended != items else None


def _mended(raw: msgspec.Raw, index: int) -> list[Any]:
    try:
        item = _item(raw)
    except msgspec.ValidationError:
        return [raw]
    if item.type == "item_reference":
        raise RequestError(
            f"Invalid 'input[{index}]': nothing is stored here that an item could refer to; "
            "send the item itself, as clients do with 'store' false."
        )
    if item.type is None and item.role == "assistant":
        return [{**_members(raw), "type": "message"}]
    if item.type == "reasoning" and bytes(item.content) in _NO_CONTENT:
        text = "\n\n".join(part.text for part in item.summary or [])
        part = {"type": "reasoning_text", "text": text}
        return [{**_members(raw), "content": [part]}] if text else []
    return [raw]
