"""Tell systemd how the service is: sd_notify(3), by datagrams to ``$NOTIFY_SOCKET``."""

import logging
import os
import socket
import time
from collections.abc import Mapping

import anyio

logger = logging.getLogger(__name__)

_SEND_S = 1.0
"""Longest wait for room in the manager's queue, which it empties at once."""


class Notifier:
    """Speaks to the service manager; where there is none, it says nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read where to speak, and how often the watchdog wants to hear something.

        ``NOTIFY_SOCKET`` is a path, or ``@NAME`` for an abstract socket; ``vsock:`` is of virtual
        machines as a whole. ``WATCHDOG_PID`` says whom ``WATCHDOG_USEC`` is meant for.
        """
        named = environ.get("NOTIFY_SOCKET", "")
        self._address = named.replace("@", "\0", 1) if named[:1] in {"/", "@"} else ""
        wanted, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        is_meant = wanted.isdecimal() and pid in {"", str(os.getpid())}
        self._watchdog_s = int(wanted) / 1e6 if is_meant else 0.0

    def ready(self, status: str) -> None:
        """Say that it serves, after a start or a reload."""
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that it reads its configuration; ``ready`` must follow.

        ``Type=notify-reload`` knows by the time that this is no answer to an earlier signal.
        """
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say("RELOADING=1", f"MONOTONIC_USEC={now_us}", "STATUS=reading its configuration")

    def stopping(self) -> None:
        """Say that it lets running requests end, and then ends."""
        self._say("STOPPING=1", "STATUS=letting running requests end")

    async def keep_alive(self) -> None:
        """Tell the watchdog, twice in its time, that the event loop turns; for ever."""
        while self._address and self._watchdog_s:
            self._say("WATCHDOG=1")
            await anyio.sleep(self._watchdog_s / 2)

    def _say(self, *fields: str) -> None:
        if not self._address:
            return
        lines = (field.replace("\n", " ") for field in fields)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
                manager.settimeout(_SEND_S)
                manager.connect(self._address)
                manager.send("\n".join(lines).encode())
        except (OSError, ValueError) as error:
            logger.warning("systemd cannot be told %s: %s", fields[0], error)
