from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class PassAnswer(Protocol):
    content_type: bytes | None

    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


@dataclass
class Steered:
    body: bytes
    make_answer: Callable[[], PassAnswer]


def steer(path: str, body: bytes) -> Steered | None:
    return None
