"""Compare two answers of llama-server to the same request."""

import json
from typing import Any

VARYING = {"id", "call_id", "item_id", "created", "created_at", "completed_at"}


def comparable(value: Any) -> Any:
    """Return ``value`` without what differs between two answers: ids, dates, durations."""
    if isinstance(value, dict):
        return {
            key: sorted(part)
            if key == "timings"
            else type(part).__name__
            if key in VARYING
            else comparable(part)
            for key, part in value.items()
        }
    return [comparable(part) for part in value] if isinstance(value, list) else value


def events(stream: bytes) -> list[str]:
    """Return the comparable events of a stream."""
    return [
        json.dumps(comparable(json.loads(line[6:])))
        for line in stream.decode().split("\n")
        if line.startswith("data: {")
    ]
