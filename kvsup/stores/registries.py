"""Where models may come from and go to: the hosts of ``registries`` in ``kvsup.toml``."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from kvsup.ollama.names import quoted

_ENTRY = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*)(?P<port>:\d{1,5})?/?",
    re.ASCII,
)

HUB_HOSTS = ("hf.co", "huggingface.co")
"""Names of Hugging Face, of which one stands for both."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A host that speaks the registry's protocol."""

    host: str
    """As in the names of its models, in lower case: ``registry.ollama.ai``, ``localhost:5000``."""
    url: str
    """Its address, without a path."""

    @property
    def is_hub(self) -> bool:
        """Say whether it is Hugging Face, whose repositories are no registry's."""
        return self.host in HUB_HOSTS


@dataclass(frozen=True, slots=True)
class Registries:
    """Those that are allowed."""

    entries: tuple[Registry, ...]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Registries":
        """Return the registries that a person listed: ``HOST[:PORT]`` or ``http://HOST[:PORT]``.

        One on this machine is asked without TLS unless ``https://`` says otherwise.

        Raises:
            ValueError: a text names no host.
        """
        return cls(tuple(_registry(text) for text in texts))

    def find(self, host: str) -> Registry | None:
        """Return the registry of a model's name, None where it is not allowed."""
        wanted = host.lower()
        if wanted in HUB_HOSTS:
            return next((entry for entry in self.entries if entry.is_hub), None)
        return next((entry for entry in self.entries if entry.host == wanted), None)

    def with_address(self, url: str) -> "Registries":
        """Return these and one more that is addressed by ``url``."""
        host = url.partition("://")[2].partition("/")[0]
        scheme = url.partition("://")[0]
        return Registries((*self.entries, Registry(host.lower(), f"{scheme}://{host}")))

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """Say whether an address is one of a registry, which may lie in a private network."""
        return any(_address(entry.url) == (scheme, host.lower(), port) for entry in self.entries)


def _registry(text: str) -> Registry:
    match = _ENTRY.fullmatch(text.strip())
    if match is None or int((match["port"] or ":1")[1:]) not in range(1, 65536):
        raise ValueError(
            f"{quoted(text)} names no registry; write HOST, HOST:PORT, or http://HOST:PORT for one"
            ' without TLS, e.g. "registry.ollama.ai"'
        )
    host = f"{match['host'].lower()}{match['port'] or ''}"
    scheme = match["scheme"] or ("http" if _is_here(match["host"]) else "https")
    return Registry(host, f"{scheme}://{host}")


def _is_here(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(url: str) -> tuple[str, str, int]:
    scheme, _, rest = url.partition("://")
    host, _, port = rest.partition(":")
    return scheme, host, int(port or (443 if scheme == "https" else 80))
