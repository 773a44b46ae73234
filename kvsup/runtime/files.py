"""How many files this process and its children may open, and how many connections that allows."""

import resource
from contextlib import suppress

ENOUGH_FILES = 65_536
"""The soft limit is raised no further: a hard one of a billion makes programs slow."""

CHILD_FILES = 4096
"""What a llama-server may open: the parts of a model, and a connection for each request."""

_MIN_RESERVE, _MAX_RESERVE = 48, 1024


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one, within reason; return what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return ENOUGH_FILES if soft == resource.RLIM_INFINITY else soft


def limit_child(pid: int) -> None:
    """Give a child a limit of its own, where the system can (Linux)."""
    prlimit = getattr(resource, "prlimit", None)
    if prlimit is None:
        return
    with suppress(ProcessLookupError, PermissionError):
        _, hard = prlimit(pid, resource.RLIMIT_NOFILE)
        soft = CHILD_FILES if hard == resource.RLIM_INFINITY else min(hard, CHILD_FILES)
        prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def max_connections(max_files: int) -> int:
    """Return how many clients may be connected where ``max_files`` may be open.

    The rest is for what their requests need: llama-servers with their pipes, connections to them,
    files of models and of kept requests.
    """
    return max(1, max_files - min(_MAX_RESERVE, max(_MIN_RESERVE, max_files // 4)))
