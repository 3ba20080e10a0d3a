"""Manifest, config and tokenizer of a model that this machine does not hold, from a host, checked against the digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from edgellm.errors import ModelError, NetworkError, ProtocolViolation
from edgellm.hosting.model_files import PROTOCOL
from edgellm.models.light import LightStore
from edgellm.models.manifest import decode_manifest
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, PeerAddress
from edgellm.types.model import ModelManifest
from edgellm.types.text import one_line
from edgellm.wire import wire_pb2

log = structlog.get_logger(__name__)

FETCH_TIMEOUT_S = 60.0
STALL_S = 5.0
"""A host that sends nothing for so long is frozen or gone; another may have the same files."""
SLOWEST_BYTES_S = 64 << 10
MAX_MANIFEST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class KnownModel:
    manifest: ModelManifest
    directory: Path
    """Holds config and tokenizer, and not necessarily weights."""


async def fetch_model(
    network: Network, digest: str, hosts: Sequence[PeerAddress], store: LightStore
) -> KnownModel:
    """What a head needs of the model, from the cache or from the first host that gives what matches `digest`.

    Raises ModelError when no host does.
    """
    held = store.find(digest)
    if held is not None:
        return KnownModel(held.manifest, held.directory)
    faults: list[str] = []
    for host in hosts:
        try:
            return await _fetch_from(network, digest, host, store)
        except (NetworkError, ModelError) as error:
            log.info("a host did not give the model's files", peer=host.peer, reason=str(error))
            faults.append(f"{host.peer[-8:]}: {error}")
    raise ModelError(
        f"no host gave config and tokenizer of model {digest[:12]}: {'; '.join(faults)[:500]}",
        remedy="ask again, or give the model's directory with --model",
    )


async def _fetch_from(network: Network, digest: str, host: PeerAddress, store: LightStore) -> KnownModel:
    with trio.move_on_after(FETCH_TIMEOUT_S):
        encoded = await _fetch(network, host, digest, "", MAX_MANIFEST_BYTES)
        if hashlib.sha256(encoded).hexdigest() != digest:
            raise ProtocolViolation(f"peer {host.peer} sent a manifest that does not match its digest")
        manifest = decode_manifest(encoded)
        contents = {
            file.path: await _fetch(network, host, digest, file.path, file.size_bytes)
            for file in manifest.light_files
        }
        held = await trio.to_thread.run_sync(store.keep, manifest, contents)
        return KnownModel(held.manifest, held.directory)
    raise NetworkError(f"peer {host.peer} did not send the model's files within {FETCH_TIMEOUT_S:g} s")


async def _fetch(network: Network, host: PeerAddress, digest: str, path: str, limit_bytes: int) -> bytes:
    stream = await network.open_stream(host.peer, PROTOCOL, addresses=host.addresses)
    messages = MessageStream(stream)
    try:
        await messages.send(wire_pb2.ModelRequest(digest=bytes.fromhex(digest), path=path))
        reply = await messages.receive(wire_pb2.ModelReply, timeout_s=STALL_S, max_bytes=4096)
        if reply.error:
            raise NetworkError(
                f"peer {host.peer} has not {path or 'the manifest'}: {one_line(reply.error, 200)}"
            )
        if reply.size_bytes > limit_bytes:
            raise ProtocolViolation(f"peer {host.peer} announced {reply.size_bytes} bytes for {path!r}")
        received = bytearray()
        # Also for all of it together: a byte now and then is no answer.
        with trio.move_on_after(STALL_S + reply.size_bytes / SLOWEST_BYTES_S):
            while len(received) < reply.size_bytes:
                chunk = b""
                with trio.move_on_after(STALL_S) as stall:
                    chunk = await messages.receive_some(min(65536, reply.size_bytes - len(received)))
                if stall.cancelled_caught:
                    raise NetworkError(f"peer {host.peer} stopped in the middle of {path or 'the manifest'}")
                if not chunk:
                    raise NetworkError(f"peer {host.peer} ended in the middle of {path or 'the manifest'}")
                received += chunk
        if len(received) < reply.size_bytes:
            raise NetworkError(f"peer {host.peer} sends {path or 'the manifest'} too slowly")
        return bytes(received)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await messages.aclose()
