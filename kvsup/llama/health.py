"""What ``GET /health`` means: 503 while the model loads, 200 once it serves (b10434, b11434)."""

from enum import Enum


class Health(Enum):
    """The answer of a llama-server to "are you ready?"."""

    LOADING = "loading"
    READY = "ready"
    BROKEN = "broken"


def parse_health(status: int) -> Health:
    """Return the health that an HTTP status tells."""
    if status == 200:
        return Health.READY
    return Health.LOADING if status == 503 else Health.BROKEN
