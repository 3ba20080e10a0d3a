"""A requester's side of sharing KV: its scope's secret, and the tracker of its records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgellm.leasing.codec import plan_addresses
from edgellm.p2p.network import Network, PeerAddress
from edgellm.paths import Paths
from edgellm.requester.prefill import PrefillRatios
from edgellm.swarms.chosen import swarm_called
from edgellm.types.plan import KvSharing

if TYPE_CHECKING:
    from edgellm.kv.tracker import Tracked, Tracker


@dataclass(frozen=True, slots=True)
class KvRequester:
    """What the clusters of this requester share, and with whom."""

    tracker: Tracker
    scope: str
    """"session", "swarm" or "public"."""
    scope_id: bytes
    secret: bytes = field(repr=False)
    prefill: PrefillRatios
    least_prompt_tokens: int = 0
    """Clusters for shorter prompts share nothing, nor do those that have no memory for it; 0: all do, whatever it takes."""

    def is_for(self, prompt_tokens: int | None) -> bool:
        """Whether a cluster for such a prompt, or for many (None), is to share."""
        return prompt_tokens is None or prompt_tokens >= self.least_prompt_tokens

    def sharing(self, network: Network, digest: str, predicted_tok_s: float) -> KvSharing:
        """For the plan of a cluster of the model `digest` that is predicted to compute prompts at this speed."""
        addresses = plan_addresses(address.rsplit("/p2p/", 1)[0] for address in network.addresses)
        prefill_tok_s = self.prefill.expected_tok_s(digest, predicted_tok_s)
        return KvSharing(self.scope, self.scope_id, self.secret, network.peer, addresses, prefill_tok_s)


@contextmanager
def tracked(kv: KvRequester | None, members: Sequence[PeerAddress]) -> Iterator[Tracked | None]:
    """Answers the members of a cluster about KV pieces while the context lasts; None where nothing is shared."""
    if kv is None:
        yield None
        return
    with kv.tracker.track(kv.scope_id, members) as cluster:
        yield cluster


@contextmanager
def open_kv(
    network: Network, paths: Paths, scope: str, least_prompt_tokens: int = 0, swarm: str = ""
) -> Iterator[KvRequester]:
    """What clusters of this user share in `scope`, of the private swarm `swarm` where that is its own; the records outlive the
    context.

    Raises UsageError where the scope's secret cannot be had.
    """
    # A requester that shares nothing need not load any of it.
    from edgellm.kv.index import TRACKED, open_index
    from edgellm.kv.scope import ScopeKeys, scope_secret
    from edgellm.kv.tracker import Tracker

    home = swarm_called(swarm, paths)
    secret = scope_secret(scope, paths, home.kv_secret() if home else None)
    paths.kv.mkdir(mode=0o700, exist_ok=True)
    with open_index(paths.kv / TRACKED) as index:
        prefill = PrefillRatios(paths.kv / "prefill.json")
        yield KvRequester(
            Tracker(network, index),
            scope,
            ScopeKeys.derive(secret).scope_id,
            secret,
            prefill,
            least_prompt_tokens,
        )
