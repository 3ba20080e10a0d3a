"""How many peers a node remembers addresses of, and which it forgets first.

py-libp2p 0.8.1 keeps 1,000, and forgets entries without addresses before all others. A node's own keys are such an entry:
whoever tells it of 1,000 peers takes away its identity.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

MAX_PEERS = 1000


def bound_peerstore(store: Any, keep: Callable[[], Iterable[Any]]) -> None:
    """Makes `store` forget expired peers first, then any at random, and never those that `keep` gives at that time."""

    def enforce() -> None:
        excess = len(store.peer_data_map) - MAX_PEERS
        if excess <= 0:
            return
        kept = set(keep())
        others = [peer for peer in store.peer_data_map if peer not in kept]
        random.shuffle(others)
        others.sort(key=lambda peer: not store.peer_data_map[peer].is_expired())
        # Some more at once, as this looks at all of them.
        for peer in others[: excess + MAX_PEERS // 20]:
            store.peer_record_map.pop(peer, None)
            del store.peer_data_map[peer]

    store.max_peers = MAX_PEERS
    store._enforce_peer_limit = enforce
