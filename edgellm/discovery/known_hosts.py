"""Hosts that answered before, kept in a file: a way to them that does not lead through what the DHT says today.

Whoever surrounds a model's key in the DHT can hide its hosts from newcomers, not from those who have met them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from edgellm.p2p.network import PeerAddress
from edgellm.types.advert import HostAdvert

MAX_HOSTS = 64
MAX_ADDRESSES = 8
MAX_BYTES = 1 << 20
KEPT_S = 14 * 86400.0


class _Host(msgspec.Struct, frozen=True):
    peer: str
    addresses: tuple[str, ...]
    keys: tuple[str, ...]
    """Names under which it is found (`edgellm.discovery.keys`)."""
    seen_at: float


class _File(msgspec.Struct, frozen=True):
    swarms: dict[str, tuple[_Host, ...]]


class KnownHosts:
    """Of one swarm, as named by the peers through which it is joined."""

    def __init__(self, path: Path, bootstrap: Sequence[str]) -> None:
        self._path = path
        self._swarm = " ".join(sorted({address.rpartition("/p2p/")[2] for address in bootstrap}))
        self._hosts = {host.peer: host for host in self._read().swarms.get(self._swarm, ())}

    def of(self, key: str, now: float) -> tuple[PeerAddress, ...]:
        """Those that were found under `key`, the last seen first."""
        hosts = [host for host in self._hosts.values() if key in host.keys and now - host.seen_at <= KEPT_S]
        hosts.sort(key=lambda host: -host.seen_at)
        return tuple(PeerAddress(host.peer, host.addresses) for host in hosts)

    def saw(
        self,
        adverts: Iterable[HostAdvert],
        gone: Iterable[str],
        keys_of: Callable[[HostAdvert], tuple[str, ...]],
        now: float,
    ) -> None:
        """Remembers the hosts of `adverts`, forgets those that are `gone`, and writes it down where it can."""
        for peer in gone:
            self._hosts.pop(peer, None)
        for advert in adverts:
            addresses = advert.addresses[:MAX_ADDRESSES]
            self._hosts[advert.peer] = _Host(advert.peer, addresses, keys_of(advert), now)
        newest = sorted(self._hosts.values(), key=lambda host: -host.seen_at)[:MAX_HOSTS]
        self._hosts = {host.peer: host for host in newest}
        self._write(tuple(newest))

    def _read(self) -> _File:
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_BYTES), type=_File)
        except (OSError, ValueError, msgspec.DecodeError):
            # It is a help, and nobody's promise.
            return _File({})

    def _write(self, hosts: tuple[_Host, ...]) -> None:
        swarms = {**self._read().swarms, self._swarm: hosts}
        while len(swarms) > 16:
            swarms.pop(next(iter(swarms)))
        partial = self._path.with_suffix(".new")
        try:
            partial.write_bytes(msgspec.json.encode(_File(swarms)))
            partial.replace(self._path)
        except OSError:
            partial.unlink(missing_ok=True)
