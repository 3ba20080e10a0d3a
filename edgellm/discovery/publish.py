"""A host's side of discovery: announce in the DHT, and answer for the advert when asked."""

from __future__ import annotations

from collections.abc import Callable

import trio

from edgellm.discovery.codec import seal_advert
from edgellm.discovery.keys import keys_of
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, Stream
from edgellm.types.advert import HostAdvert
from edgellm.wire import wire_pb2

PROTOCOL = "/edgellm/advert/1"
ANSWER_TIMEOUT_S = 5.0


class Publisher:
    """Announces a host and tells its current advert to whoever asks.

    `current` is called for each question, so that what it says (free devices, expiry, sequence) is always of now.
    """

    def __init__(self, network: Network, current: Callable[[], HostAdvert]) -> None:
        self._network = network
        self._current = current
        self._keys: tuple[str, ...] = ()

    async def announce(self) -> None:
        """Serves the advert and puts provider records into the DHT for every model in it."""
        self._network.serve(PROTOCOL, self._answer)
        self._keys = keys = keys_of(self._current())
        for key in keys:
            if self._keys is not keys:
                # Withdrawn meanwhile.
                return
            await self._network.provide(key)

    def withdraw(self) -> None:
        """Stops announcing. Records in others' hands expire by themselves; the advert says `draining` meanwhile."""
        for key in self._keys:
            self._network.withdraw(key)
        self._keys = ()

    async def _answer(self, stream: Stream) -> None:
        messages = MessageStream(stream)
        await messages.receive(wire_pb2.AdvertRequest, timeout_s=ANSWER_TIMEOUT_S, max_bytes=1024)
        envelope = seal_advert(self._current(), self._network.identity)
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            await messages.send(wire_pb2.AdvertReply(envelope=envelope))
