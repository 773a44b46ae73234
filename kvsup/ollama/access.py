"""Who may call: Ollama's CORS and Host rules (server/routes.go, gin-contrib/cors 1.7.2, 2026-08).

Both refuse with 403 and no body, CORS first, then Host, then routing.
"""

import ipaddress
from collections.abc import Collection, Sequence

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - allowed origins, not a bind
_ALWAYS = (
    *(
        f"{scheme}://{host}{port}"
        for host in _LOCAL_HOSTS
        for scheme in ("http", "https")
        for port in ("", ":*")
    ),
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)
_SCHEMES = (
    "http://",
    "https://",
    "chrome-extension://",
    "safari-extension://",
    "moz-extension://",
    "ms-browser-extension://",
)
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")

_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_STAINLESS = (
    "Arch",
    "Async",
    "Custom-Poll-Interval",
    "Helper-Method",
    "Lang",
    "Os",
    "Package-Version",
    "Poll-Helper",
    "Retry-Count",
    "Runtime",
    "Runtime-Version",
    "Timeout",
)
_HEADERS = ",".join(
    (
        "Authorization",
        "Content-Type",
        "User-Agent",
        "Accept",
        "X-Requested-With",
        "Openai-Beta",
        *(f"X-Stainless-{name}" for name in _STAINLESS),
    )
)
_PREFLIGHT_VARY = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


class OriginRules:
    """Which web pages may call; local ones and desktop shells always may.

    Raises:
        ValueError: an entry has two ``*``, or neither a ``*`` nor a scheme that browsers send.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        entries = [entry.strip().lower() for entry in origins if entry.strip()]
        for entry in entries:
            _check(entry)
        self._allows_all = "*" in entries
        self._exact = frozenset(entry for entry in (*entries, *_ALWAYS) if "*" not in entry)
        wildcards = (entry.partition("*") for entry in (*entries, *_ALWAYS) if "*" in entry)
        self._around = tuple((prefix, suffix) for prefix, _, suffix in wildcards)

    def allows(self, origin: str, host: str) -> bool:
        """Say whether a page of ``origin`` may call this server, called by the name ``host``."""
        return is_same_origin(origin, host) or self.lists(origin)

    def lists(self, origin: str) -> bool:
        """Say whether ``origin`` may call by its own name, whatever this server is called by."""
        if self._allows_all or origin in self._exact:
            return True
        return any(
            origin.startswith(prefix)
            and origin.endswith(suffix)
            and len(origin) >= len(prefix) + len(suffix)
            for prefix, suffix in self._around
        )

    def headers(self, origin: str, host: str) -> list[tuple[str, str]]:
        """Return what an answer to an allowed ``origin`` carries; nothing for the same origin."""
        if is_same_origin(origin, host):
            return []
        if self._allows_all:
            return [("Access-Control-Allow-Origin", "*")]
        return [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]

    def preflight_headers(self, origin: str) -> list[tuple[str, str]]:
        """Return the headers of the 204 that answers OPTIONS of an allowed foreign ``origin``."""
        allowed = "*" if self._allows_all else origin
        vary = [] if self._allows_all else [("Vary", _PREFLIGHT_VARY)]
        return [
            ("Access-Control-Allow-Origin", allowed),
            *vary,
            ("Access-Control-Allow-Methods", _METHODS),
            ("Access-Control-Allow-Headers", _HEADERS),
            ("Access-Control-Max-Age", "43200"),
        ]


def is_same_origin(origin: str, host: str) -> bool:
    """Say whether ``origin`` is this server itself, for which CORS does nothing."""
    return origin in {f"http://{host}", f"https://{host}"}


def host_allowed(
    host_header: str,
    *,
    bound_to_loopback: bool,
    own_names: Collection[str],
    own_addresses: Collection[str],
) -> bool:
    """Say whether a request's ``Host`` may be one of this machine, against DNS rebinding.

    A server that listens on more than loopback takes any. ``own_names`` are lower-case.
    """
    if not bound_to_loopback:
        return True
    try:
        address = ipaddress.ip_address(_without_port(host_header))
    except ValueError:
        return is_own_name(host_header, own_names)
    return (
        address.is_loopback
        or address.is_private
        or address.is_unspecified
        or str(address) in own_addresses
    )


def is_own_name(host_header: str, own_names: Collection[str]) -> bool:
    """Say whether a ``Host`` is a name, no address, that can only be this machine's."""
    name = _without_port(host_header).lower()
    return name in {"", "localhost", *own_names} or name.endswith(_LOCAL_SUFFIXES)


def could_be_rebound(host_header: str, own_names: Collection[str]) -> bool:
    """Say whether a ``Host`` is a name that anyone could lead to this machine by DNS.

    Addresses and this machine's own names are none, nor are names without a dot: no public DNS has
    them, and containers call each other so.
    """
    name = _without_port(host_header)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." in name.rstrip(".") and not is_own_name(host_header, own_names)
    return False


def _without_port(host_header: str) -> str:
    if host_header.startswith("["):
        return host_header[1:].partition("]")[0]
    return host_header.partition(":")[0] if host_header.count(":") == 1 else host_header


def _check(entry: str) -> None:
    if entry.count("*") > 1:
        raise ValueError(f"origin {entry!r} has two '*'; write one at most")
    if "*" not in entry and not entry.startswith(_SCHEMES):
        raise ValueError(f"origin {entry!r} has no scheme; write e.g. 'https://{entry}'")
