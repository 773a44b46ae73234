"""What a run of the bench found: every reading, as it is kept in JSON."""

from pathlib import Path

import msgspec

FLOOR = "byte copy"
PASSED = "kvsup `/v1`"
TRANSLATED = "kvsup `/api`"
STRAIGHT = "llama-server straight"


class Reading(msgspec.Struct, frozen=True):
    """What one load cost a server."""

    us_per_token: float
    """CPU microseconds (user and system) per token, while all streams run."""
    ms_per_request: float
    """CPU milliseconds of a request beside its tokens: its coming, its end."""
    tokens_per_s: float
    """All streams together, in the window."""
    core_share: float
    """The server's share of one core in the window, 0 to 1."""


class Streamed(msgspec.Struct, frozen=True):
    """The readings of one route at one number of streams; the n-th of each is of one round."""

    route: str
    n_streams: int
    tokens_per_s: float
    """The pace of the source, for each stream."""
    readings: list[Reading]


class FirstTokens(msgspec.Struct, frozen=True):
    """Milliseconds to the first token beside other streams of the same route, turn by turn."""

    route: str
    n_streams: int
    """The one that is timed included."""
    straight_ms: list[float]
    """Of the source itself, asked just before the n-th of ``through_ms``."""
    through_ms: list[float]

    @property
    def added_ms(self) -> list[float]:
        """Return what the route added, each time."""
        return [b - a for a, b in zip(self.straight_ms, self.through_ms, strict=True)]


class Swapped(msgspec.Struct, frozen=True):
    """A conversation after a swap: taken up from its file, and read again."""

    pair: str
    n_tokens: int
    n_bytes: int
    """Of its file."""
    again_s: list[float]
    kept_s: list[float]
    """Both from the request of the next turn to its first text, the model being loaded."""
    phases_ms: dict[str, list[float]]


class Soaked(msgspec.Struct, frozen=True):
    """What became of the requests while llama-servers were killed and stopped."""

    seconds: float
    n_signals: int
    n_whole: int
    n_lost: int
    """Told an error, hung, or truncated in silence."""
    longest_s: float


class Held(msgspec.Struct, frozen=True):
    """Resident MB of kvsup before, while and after so many tokens passed through."""

    route: str
    n_tokens: int
    resident_mb: list[float]


class Peer(msgspec.Struct, frozen=True):
    """What a route is compared with: there with its version, or not measured for a reason."""

    route: str
    version: str = ""
    absent: str = ""
    fault: str = ""
    """Why some of its readings are missing."""


class Run(msgspec.Struct):
    """One run of the bench; what was not asked for is empty."""

    machine: dict[str, str] = {}
    peers: list[Peer] = []
    start: dict[str, list[float]] = {}
    """Milliseconds, or MB, as the name ends."""
    load_s: dict[str, list[float]] = {}
    load_build: str = ""
    first_tokens: list[FirstTokens] = []
    streams: list[Streamed] = []
    swaps: list[Swapped] = []
    soak: Soaked | None = None
    held: list[Held] = []
    took_s: dict[str, float] = {}
    """How long each part took."""
    failed: dict[str, str] = {}
    """Why a part has nothing, or not all."""


def read(path: Path) -> Run:
    """Return the run kept at ``path``.

    Raises:
        OSError: it cannot be read.
        msgspec.DecodeError: it is no run of this bench.
    """
    return msgspec.json.decode(path.read_bytes(), type=Run)


def write(run: Run, path: Path) -> None:
    """Keep ``run`` at ``path``, one line for each thing measured."""
    lines = []
    for name, value in msgspec.to_builtins(run).items():
        entries = value if isinstance(value, list) else [value]
        text = ",\n".join(msgspec.json.encode(_short(entry)).decode() for entry in entries)
        lines.append(f'"{name}": ' + (f"[\n{text}\n]" if isinstance(value, list) else text))
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def _short(value: object) -> object:
    """Return ``value`` with its numbers at five digits: more says nothing and fills the file."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [_short(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _short(entry) for name, entry in value.items()}
    return value
