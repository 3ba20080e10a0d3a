"""`edgellm host --ipfs`: an IPFS daemon keeps the pieces of a host, and others get them from the host."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from edgellm.errors import NetworkError, UsageError
from edgellm.hosting.kv import open_host_kv
from edgellm.kv.index import open_index
from edgellm.kv.tracker import Tracker
from edgellm.p2p.network import PeerAddress
from edgellm.paths import Paths
from edgellm.testing.memory_network import open_hub
from edgellm.types.plan import KvSharing
from tests.integration.jsipfs import jsipfs_daemon
from tests.unit.kv_in_memory import NAMES, SCOPE, WHOLE, get, keep, some_piece


def at(directory: Path) -> Paths:
    paths = Paths(directory / "state", directory / "cache", directory / "run")
    paths.cache.mkdir(parents=True, exist_ok=True)
    return paths


async def test_a_daemon_keeps_the_pieces_of_a_host(tmp_path: Path) -> None:
    with jsipfs_daemon(tmp_path / "repository") as daemon:
        async with (
            open_hub() as hub,
            open_host_kv(alice := hub.join(), at(tmp_path / "a"), None, daemon.address) as on_alice,
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
                        await tracker.gather(tracked)
                    async with on_bob.share(kv) as of_bob:
                        with trio.fail_after(10):
                            while len(await of_bob.find(NAMES, WHOLE, 256)) < len(NAMES):
                                await trio.sleep(0.05)
                        for name in NAMES:
                            assert len(await get(of_bob, name)) == 3 << 20
        assert not (tmp_path / "a" / "cache" / "kv" / "blocks").exists()
        listed = next((tmp_path / "a" / "cache" / "kv").glob("kubo-*.list"))
        assert listed.stat().st_size > 0


async def test_a_daemon_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    async with open_hub() as hub:
        for address, error in (
            ("/ip4/127.0.0.1/tcp/9", NetworkError),
            ("/ip4/192.0.2.1/tcp/5001", UsageError),
        ):
            with pytest.raises(error) as raised:
                async with open_host_kv(hub.join(), at(tmp_path), None, address):
                    pass
            assert raised.value.remedy
