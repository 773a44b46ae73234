"""Every exception of kvsup, by who must act.

    KvsupError
    ├── ConfigError          the operator: a file, key or flag is wrong
    ├── RequestError         the client: the request is wrong
    │   ├── ModelNotFound    the client: no such model
    │   └── Unsupported      the client: kvsup does not do this
    ├── CapacityError        wait, or free memory
    │   └── QueueFull        wait: too many requests wait already
    ├── InstanceError        the operator: a llama-server does not run
    │   └── InstanceFailed   it will not be tried again by itself
    ├── EngineError          the client, mostly: a llama-server answered with an error
    ├── Poisoned             the client: a llama-server dies of this request
    └── UpstreamError        a llama-server broke off in the middle of an answer
        ├── NotListening     it takes no connection
        └── NotResumed       another process does not go on with it
            └── Diverged     it did not say again what this one had said

Which HTTP status each becomes stands in ``kvsup/api/errors.py`` and nowhere else.
"""

from dataclasses import dataclass


class KvsupError(Exception):
    """The root of the tree."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration, and what to write instead."""

    source: str
    """Path of the file as the operator gave it, or the name of an environment variable."""
    line: int | None
    """Line of the key, from 1; None where the problem has no line."""
    key: str
    """The dotted key, or an empty string where the whole file is meant."""
    message: str
    """What is wrong; what to write instead."""
    evidence: str = ""
    """What is expected, and where that is known from; empty where the message says all."""

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class ConfigError(KvsupError):
    """A configuration cannot be used; carries every problem of every file."""

    def __init__(self, problems: "tuple[Problem, ...] | str") -> None:
        self.problems = () if isinstance(problems, str) else problems
        super().__init__(problems if isinstance(problems, str) else "\n".join(map(str, problems)))


class RequestError(KvsupError):
    """A request is malformed, or asks for what this model cannot do."""


class ModelNotFound(RequestError):  # noqa: N818 - the word clients know
    """No model, alias or variant has this name."""

    def __init__(self, name: str, text: str | None = None) -> None:
        self.name = name
        super().__init__(text or f"model '{name}' not found")


class Unsupported(RequestError):  # noqa: N818 - it says what is
    """Ollama does it, kvsup does not; the message says what to do instead."""


class CapacityError(KvsupError):
    """The model does not fit now; the message says the numbers."""


class QueueFull(CapacityError):  # noqa: N818 - as above
    """As many requests wait as ``max_queue`` allows."""


class InstanceError(KvsupError):
    """A llama-server could not be started or did not become ready."""


class InstanceFailed(InstanceError):  # noqa: N818 - the state's name
    """An instance has given up: its cause is permanent, or it died too often."""


class UpstreamError(KvsupError):
    """A llama-server closed the connection before its answer was complete."""


class NotListening(UpstreamError):  # noqa: N818 - as above
    """A llama-server takes no connection."""


class NotResumed(UpstreamError):  # noqa: N818 - as above
    """A llama-server does not go on with an answer that the client has in part."""


class Diverged(NotResumed):
    """An answer that was begun anew is another than the one that the client has in part."""


class Poisoned(KvsupError):  # noqa: N818 - as above
    """A llama-server died of this request, more than once."""


class EngineError(KvsupError):
    """A llama-server answered a request with an error, before or in the middle of a stream."""

    def __init__(self, message: str, *, status: int = 500, body: bytes | None = None) -> None:
        self.status = status
        self.body = body
        """The answer as it came, where it was a whole one."""
        super().__init__(message)
