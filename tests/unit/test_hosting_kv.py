"""What a host sets aside for KV pieces."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import trio

from edgellm.cli.host import parse_quota
from edgellm.errors import UsageError
from edgellm.hosting.kv import open_host_kv
from edgellm.hosting.options import default_kv_quota
from edgellm.kv.index import open_index
from edgellm.kv.tracker import Tracker
from edgellm.p2p.identity import Identity
from edgellm.p2p.network import PeerAddress
from edgellm.paths import Paths
from edgellm.testing.memory_network import open_hub
from edgellm.types.plan import KvSharing
from tests.unit.kv_in_memory import NAMES, PIECE, SCOPE, WHOLE, get, keep, some_piece


def test_quotas() -> None:
    assert parse_quota(None) is None
    assert parse_quota("0") == 0
    assert parse_quota("20GiB") == 20 << 30
    with pytest.raises(UsageError):
        parse_quota("much")
    assert default_kv_quota(50 << 30) == 5 << 30
    assert default_kv_quota(10 << 40) == 20 << 30
    assert default_kv_quota(0) == 0


def at(directory: Path) -> Paths:
    paths = Paths(directory / "state", directory / "cache", directory / "run")
    paths.cache.mkdir(parents=True, exist_ok=True)
    return paths


async def test_hosts_with_real_stores_share_over_their_network(tmp_path: Path) -> None:
    async with (
        open_hub() as hub,
        open_host_kv(alice := hub.join(), at(tmp_path / "a"), 100 << 20) as on_alice,
        open_host_kv(bob := hub.join(), at(tmp_path / "b"), 0) as on_bob,
    ):
        assert on_alice is not None
        assert on_bob is not None
        asker = hub.join()
        with open_index(tmp_path / "tracked") as index:
            kv = KvSharing("session", SCOPE, b"s" * 32, asker.peer, (), 1000.0)
            tracker = Tracker(asker, index)
            members = [PeerAddress(peer.peer, peer.addresses) for peer in (alice, bob)]
            with tracker.track(SCOPE, members) as tracked:
                async with on_alice.share(kv) as of_alice:
                    for name in NAMES:
                        assert await keep(of_alice, name, some_piece(3 << 20))
                    assert await keep(of_alice, NAMES[0])
                    await tracker.gather(tracked)
                async with on_bob.share(kv) as of_bob:
                    assert not await keep(of_bob, NAMES[0])
                    with trio.fail_after(5):
                        while (
                            on_bob.holdings.cost_s((await index.find(SCOPE, NAMES[:1]))[NAMES[0]][0])
                            == math.inf
                        ):
                            await trio.sleep(0.02)
                    assert len(await of_bob.find(NAMES, WHOLE, 256)) == len(NAMES)
                    for name in NAMES:
                        assert len(await get(of_bob, name)) == 3 << 20
    assert (tmp_path / "a" / "cache" / "kv" / "blocks").is_dir()
    assert not (tmp_path / "b" / "cache" / "kv" / "blocks").exists()


async def test_a_host_comes_back_with_what_it_held(tmp_path: Path) -> None:
    identity = Identity.generate()
    for again in (False, True):
        async with open_hub() as hub, open_host_kv(hub.join(identity), at(tmp_path), 100 << 20) as node:
            assert node is not None
            kv = KvSharing("session", SCOPE, b"s" * 32, "12D3KooWnobody", (), 1000.0)
            async with node.share(kv) as sharing:
                if again:
                    assert len(await sharing.find(NAMES[:2], WHOLE, 256)) == 1
                    assert await get(sharing, NAMES[0]) == PIECE
                else:
                    assert await keep(sharing, NAMES[0])


async def test_a_place_that_cannot_be_used_costs_sharing_alone(tmp_path: Path) -> None:
    paths = at(tmp_path)
    paths.kv.write_text("a file where a directory should be")
    async with open_hub() as hub, open_host_kv(hub.join(), paths, 1 << 20) as node:
        assert node is None
