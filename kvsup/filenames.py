"""File names for names that people chose."""

import hashlib
import re

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def file_name(model: str) -> str:
    """Return a name that no other model has, whatever is in it, and that a person knows."""
    digest = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{_UNSAFE.sub('_', model)[:60]}-{digest}"
