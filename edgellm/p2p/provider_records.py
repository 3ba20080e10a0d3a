"""The provider records that a DHT server keeps for others, within bounds that no crowd of identities can push others out of.

py-libp2p keeps the first so many of a key, any number of keys, and all that one machine's identities send.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

PER_KEY = 200
PER_KEY_AND_NETWORK = 16
"""Of identities that connect from one network (`edgellm.p2p.limits.Origin`); a private network is not counted."""
PER_PROVIDER = 64
"""Keys of one identity: two for each model, and what it holds of KV scopes."""
KEYS = 20_000


def room_for(
    providers: Mapping[bytes, Mapping[str, Any]],
    key: bytes,
    peer: str,
    *,
    network_of: Callable[[str], str],
    chance: random.Random,
) -> str | bool:
    """Whether `peer` may be a provider of `key`: True, False, or the id of the provider whose place it takes.

    A full key gives up a record at random, so that whoever fills it holds a share of it and never the whole, and whoever
    announces again comes back.
    """
    records = providers.get(key, {})
    if peer in records:
        return True
    if key not in providers and len(providers) >= KEYS:
        return False
    if sum(peer in others for others in providers.values()) >= PER_PROVIDER:
        return False
    network = network_of(peer)
    if network and sum(network_of(other) == network for other in records) >= PER_KEY_AND_NETWORK:
        return False
    return chance.choice(list(records)) if len(records) >= PER_KEY else True


class BoundedRecords:
    """Puts these bounds before the `add_provider` of a py-libp2p provider store."""

    def __init__(self, store: Any, own: str, network_of: Callable[[str], str]) -> None:
        self._providers: MutableMapping[bytes, MutableMapping[str, Any]] = store.providers
        self._add = store.add_provider
        self._own = own
        self._network_of = network_of
        self._chance = random.Random()
        store.add_provider = self.add

    def add(self, key: bytes, provider: Any) -> None:
        """As the store's `add_provider`, within the bounds."""
        peer = str(provider.peer_id)
        if peer != self._own:
            room = room_for(
                self._providers,
                key,
                peer,
                network_of=self._network_of,
                chance=self._chance,
            )
            if room is False:
                return
            if isinstance(room, str):
                del self._providers[key][room]
        self._add(key, provider)
