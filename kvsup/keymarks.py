"""Marks of configuration fields: how the value of a key is written, and what the key means."""

from typing import Literal

from msgspec import Meta

Kind = Literal["duration", "timeout", "size", "pair"]
"""A timeout is a duration that may not be 0."""


def kind(kind: Kind, description: str, *, auto: str | None = None) -> Meta:
    """Mark a field whose TOML value is a text that ``decode.py`` parses."""
    return Meta(description=description, extra={"kind": kind, **({"auto": auto} if auto else {})})


def doc(description: str, *, auto: str | None = None) -> Meta:
    """Describe a field; ``auto`` names the field that is true where its value is "auto"."""
    return Meta(description=description, extra={"auto": auto} if auto else None)


HIDDEN = Meta(extra={"hidden": True})
"""Marks a field that is no key."""
