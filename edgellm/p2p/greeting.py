"""Noise with a doorkeeper behind it: no muxer, and so no protocol at all, is negotiated with a peer that it does not let in."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise import transport as noise

from edgellm.errors import EdgeError, NetworkError
from edgellm.p2p.doorkeeper import Doorkeeper

_LENGTH = struct.Struct("!H")
_MAX_BYTES = (1 << 16) - 1


class NoiseGreeting:
    """The messages of one Noise session (`edgellm.p2p.doorkeeper.Greeting`)."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.peer = str(session.get_remote_peer())
        self.handshake: bytes = session.conn.noise_state.get_handshake_hash()

    @property
    def source(self) -> str:
        address = self._session.get_remote_address()
        return str(address[0]) if address else ""

    async def send(self, message: bytes) -> None:
        if len(message) > _MAX_BYTES:
            raise ValueError(f"a greeting of {len(message)} bytes")
        try:
            await self._session.write(_LENGTH.pack(len(message)) + message)
        except Exception as error:
            raise NetworkError(f"peer {self.peer} has closed the connection") from error

    async def receive(self, max_bytes: int) -> bytes:
        (length,) = _LENGTH.unpack(await self._exactly(_LENGTH.size))
        if length > max_bytes:
            raise NetworkError(f"peer {self.peer} announced {length} bytes where {max_bytes} are allowed")
        return await self._exactly(length)

    async def _exactly(self, count: int) -> bytes:
        try:
            data: bytes = await self._session.read(count)
        except Exception as error:
            raise NetworkError(f"peer {self.peer} has closed the connection") from error
        if len(data) < count:
            raise NetworkError(f"peer {self.peer} has closed the connection")
        return data


class GuardedNoise(noise.Transport):
    """libp2p's Noise, which hands each session to a doorkeeper before anybody else gets it."""

    def __init__(self, doorkeeper: Doorkeeper, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._doorkeeper = doorkeeper

    async def secure_inbound(self, conn: Any) -> Any:
        """A session with a peer that was let in. Raises HandshakeFailure for any other, whose connection is closed."""
        session = await super().secure_inbound(conn)
        await _let_in(self._doorkeeper.inbound, session)
        return session

    async def secure_outbound(self, conn: Any, peer_id: Any) -> Any:
        """A session with a peer that was let in, and has let this one in."""
        session = await super().secure_outbound(conn, peer_id)
        await _let_in(self._doorkeeper.outbound, session)
        return session


async def _let_in(decide: Any, session: Any) -> None:
    try:
        await decide(NoiseGreeting(session))
    except EdgeError as error:
        with suppress(Exception):  # one that cannot be closed is already gone
            await session.close()
        # Without its causes: whoever dials shows the last one, and this is the one that tells.
        raise HandshakeFailure(str(error)) from None
