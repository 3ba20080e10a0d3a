"""Peers on the local network, found by multicast (libp2p's mDNS specification, in a name space of our own).

zeroconf is used directly: libp2p's own discovery announces 0.0.0.0, blocks the node while it registers, and
changes the peerstore from another thread.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from edgellm.errors import UsageError
from edgellm.p2p.addresses import split_peer

log = logging.getLogger(__name__)

_NONCE_BYTES = 12
SERVICE_TYPE = "_p2p-edgellm._udp.local."
QUEUED_PEERS = 64
LOOKUP_TIMEOUT_MS = 3000
MAX_TXT_BYTES = 255  # RFC 6763
END_S = 1.0


@asynccontextmanager
async def on_local_network(
    peer: str, addresses: Iterable[str], key: bytes | None = None
) -> AsyncIterator[trio.MemoryReceiveChannel[str]]:
    """Announces this peer's addresses while the context is open, and gives those of others as they are seen.

    A peer that listens nowhere only looks. With a `key`, who is announced can be read only by those who have it, and nobody
    else is seen; that something announces itself from this address is for all to see. Raises UsageError when there is no
    network to multicast on.
    """
    own = [address for address in addresses if "/p2p-circuit" not in address]
    token = trio.lowlevel.current_trio_token()
    send, receive = trio.open_memory_channel[str](QUEUED_PEERS)

    def seen(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            return
        info = zeroconf.get_service_info(service_type, name, timeout=LOOKUP_TIMEOUT_MS)
        for address in _addresses_of(info, key):
            if not address.endswith(peer):
                token.run_sync_soon(_offer, send, address)

    browser: ServiceBrowser | None = None
    try:
        zeroconf = await trio.to_thread.run_sync(Zeroconf)
    except OSError as error:
        raise UsageError(f"cannot look for peers on the local network: {error.strerror}") from error
    try:
        if own:
            await trio.to_thread.run_sync(zeroconf.register_service, _service(own, key))
        browser = await trio.to_thread.run_sync(
            lambda: ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[seen])
        )
        async with send, receive:
            yield receive
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_S):
            if browser is not None:
                await trio.to_thread.run_sync(browser.cancel, abandon_on_cancel=True)
            await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)


def _service(addresses: Sequence[str], key: bytes | None = None) -> ServiceInfo:
    entries = [_entry(address, key) for address in addresses]
    text = b"".join(bytes([len(entry)]) + entry for entry in entries if len(entry) <= MAX_TXT_BYTES)
    name = secrets.token_hex(16)  # the specification wants a name that does not tell who it is
    return ServiceInfo(
        SERVICE_TYPE,
        f"{name}.{SERVICE_TYPE}",
        port=int(addresses[0].split("/")[4]),
        properties=text,
        server=f"{name}.local.",
        # Without one, zeroconf at the other side takes the service for incomplete.
        parsed_addresses=[address.split("/")[2] for address in addresses],
    )


def _entry(address: str, key: bytes | None) -> bytes:
    if key is None:
        return b"dnsaddr=" + address.encode("ascii")
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return b"sealed=" + nonce + ChaCha20Poly1305(key).encrypt(nonce, address.encode("ascii"), None)


def _opened(value: bytes, key: bytes) -> bytes:
    """b"" where it was closed with another key."""
    try:
        return ChaCha20Poly1305(key).decrypt(value[:_NONCE_BYTES], value[_NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        return b""


def _addresses_of(info: ServiceInfo | None, key: bytes | None = None) -> list[str]:
    text, found = (info.text if info is not None else b"") or b"", []
    while text:
        entry, text = text[1 : 1 + text[0]], text[1 + text[0] :]
        name, _, value = entry.partition(b"=")
        if key is not None and name == b"sealed":
            value = _opened(value, key)
        try:
            address = value.decode("ascii")
            split_peer(address)
        except (UnicodeDecodeError, UsageError):
            continue
        if name == (b"dnsaddr" if key is None else b"sealed"):
            found.append(address)
    return found


def _offer(send: Any, address: str) -> None:
    try:
        send.send_nowait(address)
    except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
        log.debug("a peer of the local network at %s was left out", address)
