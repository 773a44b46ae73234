"""File names for names that people chose."""

import hashlib
import re
from collections.abc import Collection
from itertools import count

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_MAX_STEM_CHARACTERS = 100


def file_name(model: str) -> str:
    """Return a name that no other model has, whatever is in it, and that a person knows."""
    digest = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{_UNSAFE.sub('_', model)[:60]}-{digest}"


def toml_name(model: str, taken: Collection[str]) -> str:
    """Return a name of a TOML file for a model that is none of ``taken``, all in lower case."""
    stem = re.sub(r"[^a-z0-9_.-]", "-", model.lower())[:_MAX_STEM_CHARACTERS]
    names = (f"{stem}.toml" if n == 1 else f"{stem}-{n}.toml" for n in count(1))
    return next(name for name in names if name not in taken)
