"""Which addresses are of the public Internet, and what a host's addresses are."""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence

import anyio

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that has been given out for the public Internet (IANA, RFC 4291 section 2.4)."""
_RESERVED = tuple(ipaddress.ip_network(text) for text in ("192.0.0.0/24", "3fff::/20"))
"""What Python 3.11 takes for global, and IANA does not."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


def is_public(address: Address) -> bool:
    """Say whether an address is one of the public Internet, seen through every tunnel."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo:
            inner = address.teredo[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_UNICAST:
            return False
    is_reserved = any(address in network for network in _RESERVED)
    return address.is_global and not address.is_multicast and not is_reserved


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, the preferred first.

    Raises:
        OSError: there is none.
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


def all_public(addresses: Sequence[str]) -> bool:
    """Say whether every one of some addresses, of which there is at least one, is public."""
    return bool(addresses) and all(
        is_public(ipaddress.ip_address(text.partition("%")[0])) for text in addresses
    )
