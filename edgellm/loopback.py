"""Whose program is at the other end of a connection over loopback.

The kernel says so (proc(5), /proc/net/tcp): the local address of the other end's socket is what is remote here, and with it
stands its owner's user id.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from pathlib import Path

_TABLES = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}


def is_of_same_user(client: tuple[str, int]) -> bool:
    """Whether a client on this machine is this user's or root's, by its own address and port. False where that is not known."""
    return owner_of(client) in (os.getuid(), 0)


def owner_of(client: tuple[str, int]) -> int | None:
    """The user id of the socket with this local address; None where there is none, or the system does not say."""
    address = ipaddress.ip_address(client[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    wanted = {_written(address, client[1])}
    tables = [address.version]
    if isinstance(address, ipaddress.IPv4Address):
        # A socket of version 6 that speaks version 4.
        wanted.add(_written(ipaddress.IPv6Address(f"::ffff:{address}"), client[1]))
        tables.append(6)
    for version in tables:
        try:
            lines = _TABLES[version].read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 7 and fields[1] in wanted:
                return int(fields[7])
    return None


def _written(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    """As the kernel writes it: words of four bytes in this machine's order."""
    packed = address.packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
