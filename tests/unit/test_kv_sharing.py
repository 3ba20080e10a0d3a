"""Pieces of hosts and requesters: found and fetched through the tracker, and what happens when somebody fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from edgellm.errors import BlockMissing, NetworkError
from edgellm.kv.exchange import announce, ask_find, ask_measure, ask_settle
from edgellm.kv.gate import Link
from edgellm.kv.sharing import FIND_S, Outcome
from edgellm.p2p.network import PeerAddress
from tests.unit.kv_in_memory import (
    BACK,
    FRONT,
    NAMES,
    PIECE,
    TOKENS,
    WHOLE,
    Asker,
    Node,
    Swarm,
    get,
    keep,
    some_piece,
    swarm,
)


async def stored(s: Swarm, asker: Asker, node: Node, *names: bytes) -> None:
    """A cluster on `node` computes some chunks, and goes."""
    async with s.lease(asker, node) as (tracked, [sharing]):
        for name in names:
            assert await keep(sharing, name)
        await asker.tracker.gather(tracked)


async def test_what_one_host_stored_another_finds_and_fetches(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path) as s,
        s.asker() as asker,
        s.host() as alice,
        s.host() as bob,
        s.lease(asker, alice, bob) as (tracked, [of_alice, of_bob]),
    ):
        assert await keep(of_alice, NAMES[0])
        assert await keep(of_alice, NAMES[1], PIECE[::-1])
        await of_alice.settle()
        found = await of_bob.find(NAMES[:3], WHOLE, TOKENS)
        assert [[(piece.region, piece.size_bytes, piece.holder) for piece in chunk] for chunk in found] == [
            [(WHOLE, len(PIECE), alice.peer)]
        ] * 2
        assert await get(of_bob, NAMES[0]) == PIECE
        assert await get(of_bob, NAMES[1]) == PIECE[::-1]
        await of_bob.report(NAMES[0], WHOLE, alice.peer, Outcome.USED, TOKENS)
        await asker.tracker.gather(tracked)
        assert tracked.tokens == {alice.peer: TOKENS}
        assert tracked.bytes_in == len(PIECE)


async def test_a_later_cluster_of_the_same_requester_finds_it(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.host() as alice, s.host() as bob:
        async with s.asker() as first:
            await stored(s, first, alice, NAMES[0])
        async with s.asker() as later, s.lease(later, bob) as (_, [sharing]):
            assert later.network.peer != first.network.peer
            assert len(await sharing.find(NAMES[:1], WHOLE, TOKENS)) == 1
            assert await get(sharing, NAMES[0]) == PIECE


async def test_another_requester_finds_nothing(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.host() as alice, s.host() as bob:
        async with s.asker() as owner:
            await stored(s, owner, alice, NAMES[0])
        async with (
            s.asker("mallory", scope=b"another scope-------------------") as mallory,
            s.lease(mallory, alice, bob) as (_, [on_alice, on_bob]),
        ):
            # Even with the right names, even on the host that has it.
            assert await on_alice.find(NAMES[:1], WHOLE, TOKENS) == ()
            assert await on_bob.find(NAMES[:1], WHOLE, TOKENS) == ()
            with pytest.raises(BlockMissing):
                await get(on_alice, NAMES[0])


async def test_a_host_that_fetched_and_used_a_piece_holds_it_too(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path) as s,
        s.asker() as asker,
        s.host() as alice,
        s.host() as bob,
        s.host() as carol,
    ):
        await stored(s, asker, alice, NAMES[0])
        async with s.lease(asker, bob) as (tracked, [sharing]):
            await sharing.find(NAMES[:1], WHOLE, TOKENS)
            assert await get(sharing, NAMES[0]) == PIECE
            assert not bob.store.blocks, "kept before a cell has opened it"
            await sharing.report(NAMES[0], WHOLE, alice.peer, Outcome.USED, TOKENS)
            assert len(bob.store.blocks) >= 2
            await asker.tracker.gather(tracked)
        s.hub.kill(alice.peer)
        carol.fetcher.dead.add(alice.peer)
        async with s.lease(asker, carol) as (_, [sharing]):
            await sharing.find(NAMES[:1], WHOLE, TOKENS)
            assert await get(sharing, NAMES[0]) == PIECE


async def test_only_the_first_chunks_in_a_row_are_found(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host() as alice, s.host() as bob:
        await stored(s, asker, alice, NAMES[0], NAMES[2])
        async with s.lease(asker, bob) as (_, [sharing]):
            assert len(await sharing.find(NAMES[:3], WHOLE, TOKENS)) == 1


async def test_pieces_of_other_shapes_make_up_a_region(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path) as s,
        s.asker() as asker,
        s.host() as alice,
        s.host() as bob,
        s.host() as carol,
    ):
        front, back = some_piece(), some_piece()
        async with s.lease(asker, alice, bob) as (tracked, [of_alice, of_bob]):
            assert await keep(of_alice, NAMES[0], front, FRONT)
            assert await keep(of_bob, NAMES[0], back, BACK)
            assert await keep(of_alice, NAMES[1], front, FRONT)
            await asker.tracker.gather(tracked)
        async with s.lease(asker, carol) as (_, [sharing]):
            found = await sharing.find(NAMES[:2], WHOLE, TOKENS)
            assert [[(piece.region, piece.holder) for piece in chunk] for chunk in found] == [
                [(FRONT, alice.peer), (BACK, bob.peer)]
            ]
            assert await get(sharing, NAMES[0], FRONT) == front
            assert await get(sharing, NAMES[0], BACK) == back


async def test_a_dead_holder_is_a_miss_and_is_left_alone(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host() as alice, s.host() as bob:
        await stored(s, asker, alice, NAMES[0])
        bob.fetcher.dead.add(alice.peer)
        async with s.lease(asker, bob) as (_, [sharing]):
            assert len(await sharing.find(NAMES[:1], WHOLE, TOKENS)) == 1
            with pytest.raises(BlockMissing):
                await get(sharing, NAMES[0])
            assert await sharing.find(NAMES[:1], WHOLE, TOKENS) == ()
            assert bob.fetcher.asked == [alice.peer]


async def test_another_holder_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host() as alice, s.host() as bob:
        await stored(s, asker, alice, NAMES[0])
        await stored(s, asker, bob, NAMES[0])
        for dead in (alice, bob):
            async with s.host() as carol, s.lease(asker, carol) as (_, [sharing]):
                carol.fetcher.dead = {dead.peer}
                await sharing.find(NAMES[:1], WHOLE, TOKENS)
                assert await get(sharing, NAMES[0]) == PIECE


async def test_the_way_to_a_holder_is_measured_when_the_lease_begins(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host() as alice, s.host() as bob:
        await stored(s, asker, alice, *NAMES[:4])
        bob.fetcher.measured = {alice.peer: Link()}
        async with s.lease(asker, bob) as (_, [sharing]):
            with trio.fail_after(2):
                while not bob.fetcher.asked:
                    await trio.sleep(0.01)
            # Had nothing been measured, it would have been tried for a moment.
            assert len(await sharing.find(NAMES[:4], WHOLE, TOKENS)) == 4
            bob.fetcher.measured = {}
            assert len(await sharing.find(NAMES[:4], WHOLE, TOKENS)) == 4
            bob.fetcher.measured = {alice.peer: Link(1e5, 0.01)}
            assert await sharing.find(NAMES[:4], WHOLE, TOKENS) == ()
            assert bob.holdings.figures.take()["declined_chunks"] == 0 + 0 + 4


async def test_the_way_to_a_holder_that_came_later_is_measured_for_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a cluster that answers from what another one has just computed: it was there before there was any holder."""
    monkeypatch.setattr("edgellm.kv.sharing.MEASURED_ANEW_S", 0.0)
    async with (
        swarm(tmp_path) as s,
        s.asker() as asker,
        s.host() as alice,
        s.host() as bob,
        s.host() as eve,
        s.lease(asker, bob) as (tracked, _),
    ):
        await asker.tracker.prepare(tracked)
        assert not bob.fetcher.asked
        await stored(s, asker, alice, *NAMES[:4])
        bob.fetcher.measured = {alice.peer: Link()}
        await asker.tracker.prepare(tracked)
        assert bob.fetcher.asked == [alice.peer]
        bob.fetcher.measured = {}
        await asker.tracker.prepare(tracked)
        assert bob.fetcher.asked == [alice.peer]
        # Nobody but the tracker of a lease has its host measure anything.
        bob.fetcher.measured = {alice.peer: Link()}
        await ask_measure(eve.network, bob.address, asker.scope)
        assert bob.fetcher.asked == [alice.peer]
        with pytest.raises(NetworkError, match="nobody tells a tracker"):
            await ask_measure(bob.network, PeerAddress(asker.network.peer), asker.scope)


async def test_however_often_a_requester_asks_ways_are_measured_seldom(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path) as s,
        s.asker() as asker,
        s.host() as alice,
        s.host() as bob,
        s.lease(asker, bob) as (tracked, _),
    ):
        await asker.tracker.prepare(tracked)
        await stored(s, asker, alice, *NAMES[:4])
        bob.fetcher.measured = {alice.peer: Link()}
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(asker.tracker.prepare, tracked)
        assert not bob.fetcher.asked


async def test_preparing_waits_no_longer_than_a_moment(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host() as alice, s.host() as bob:
        await stored(s, asker, alice, *NAMES[:4])
        bob.fetcher.measured = {alice.peer: Link()}
        bob.fetcher.slow_s = {alice.peer: 60.0}
        async with s.lease(asker, bob) as (tracked, _):
            begun = trio.current_time()
            await asker.tracker.prepare(tracked)
            assert trio.current_time() - begun < 2


async def test_a_holder_that_evicted_a_piece_is_not_avoided_for_it(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host() as alice, s.host() as bob:
        await stored(s, asker, alice, NAMES[0])
        async with s.lease(asker, alice) as (tracked, [sharing]):
            assert await keep(sharing, NAMES[1], PIECE[::-1])
            await asker.tracker.gather(tracked)
        for cid in (await asker.index.find(asker.scope, NAMES[:1]))[NAMES[0]][0].cids:
            del alice.store.blocks[cid]
        async with s.lease(asker, bob) as (tracked, [sharing]):
            assert len(await sharing.find(NAMES[:2], WHOLE, TOKENS)) == 2
            with pytest.raises(BlockMissing):
                await get(sharing, NAMES[0])
            assert await get(sharing, NAMES[1]) == PIECE[::-1]
            await asker.tracker.gather(tracked)
            assert tracked.failures == 0
            assert set(await asker.index.find(asker.scope, NAMES[:2])) == {NAMES[1]}


async def test_a_holder_that_breaks_off_is_asked_again(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host() as alice, s.host() as bob:
        await stored(s, asker, alice, NAMES[0])
        async with s.lease(asker, bob) as (_, [sharing]):
            bob.fetcher.breaks_after[alice.peer] = 1
            assert len(await sharing.find(NAMES[:1], WHOLE, TOKENS)) == 1
            with pytest.raises((BlockMissing, NetworkError)):
                await get(sharing, NAMES[0])
            del bob.fetcher.breaks_after[alice.peer]
            assert len(await sharing.find(NAMES[:1], WHOLE, TOKENS)) == 1
            assert await get(sharing, NAMES[0]) == PIECE


async def test_a_slow_holder_costs_no_more_than_the_time_that_there_is(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host() as alice, s.host() as bob:
        await stored(s, asker, alice, NAMES[0])
        bob.fetcher.slow_s[alice.peer] = 60
        async with s.lease(asker, bob) as (_, [sharing]):
            await sharing.find(NAMES[:1], WHOLE, TOKENS)
            with trio.fail_after(1), pytest.raises(BlockMissing):
                await get(sharing, NAMES[0], timeout_s=0.3)


async def test_a_holder_whose_piece_does_not_open_is_avoided_and_forgotten(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path) as s,
        s.asker() as asker,
        s.host() as liar,
        s.host() as honest,
        s.host() as bob,
    ):
        async with s.lease(asker, liar, honest) as (tracked, [of_liar, of_honest]):
            assert await keep(of_liar, NAMES[0], b"nonsense")
            await of_liar.settle()
            assert await keep(of_honest, NAMES[0])
            await asker.tracker.gather(tracked)
        async with s.lease(asker, bob) as (tracked, [sharing]):
            for _ in range(2):
                [[piece]] = await sharing.find(NAMES[:1], WHOLE, TOKENS)
                content = await get(sharing, NAMES[0])
                right = content == PIECE
                outcome = Outcome.USED if right else Outcome.NOT_AUTHENTIC
                await sharing.report(NAMES[0], WHOLE, piece.holder, outcome, TOKENS)
                if right:
                    break
            assert right
            await asker.tracker.gather(tracked)
            if piece.holder == honest.peer and tracked.failures:
                known = await asker.index.find(asker.scope, NAMES[:1])
                assert liar.peer not in {record.holder for record in known[NAMES[0]]}


async def test_a_host_without_a_quota_keeps_nothing_and_still_fetches(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host() as alice, s.host(keeps=False) as poor:
        await stored(s, asker, alice, NAMES[0])
        async with s.lease(asker, poor) as (_, [sharing]):
            assert not await keep(sharing, NAMES[1])
            assert len(await sharing.find(NAMES[:1], WHOLE, TOKENS)) == 1
            assert await get(sharing, NAMES[0]) == PIECE
            assert not poor.store.blocks


async def test_a_full_disk_keeps_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host() as alice:
        alice.store.quota_bytes = 100
        async with s.lease(asker, alice) as (_, [sharing]):
            assert not await keep(sharing, NAMES[0])
            assert await sharing.find(NAMES[:1], WHOLE, TOKENS) == ()
            assert alice.holdings.figures.take()["refused_stores"] == 1


async def test_one_lease_fills_no_more_than_its_part(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.asker() as asker, s.host(quota_bytes=8 << 20) as alice:
        async with s.lease(asker, alice) as (_, [sharing]):
            kept = [await keep(sharing, name, some_piece()) for name in NAMES]
            assert kept == [True] * 4 + [False] * 4
        async with s.lease(asker, alice) as (_, [sharing]):
            assert await keep(sharing, NAMES[7], some_piece())


async def test_a_piece_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path) as s,
        s.asker() as asker,
        s.host() as alice,
        s.lease(asker, alice) as (_, [sharing]),
    ):
        assert await keep(sharing, NAMES[0])
        assert await keep(sharing, NAMES[0], b"something else")
        await sharing.find(NAMES[:1], WHOLE, TOKENS)
        assert await get(sharing, NAMES[0]) == PIECE


async def test_what_the_disk_lost_is_a_miss_and_may_be_stored_again(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path) as s,
        s.asker() as asker,
        s.host() as alice,
        s.lease(asker, alice) as (_, [sharing]),
    ):
        assert await keep(sharing, NAMES[0])
        alice.store.blocks.pop(next(iter(alice.store.blocks)))
        assert await sharing.find(NAMES[:1], WHOLE, TOKENS) == ()
        assert await keep(sharing, NAMES[0])
        assert len(await sharing.find(NAMES[:1], WHOLE, TOKENS)) == 1


async def test_without_a_tracker_own_pieces_are_found_and_a_question_waits_once(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path) as s,
        s.asker() as asker,
        s.host() as alice,
        s.lease(asker, alice) as (_, [sharing]),
    ):
        assert await keep(sharing, NAMES[0])
        s.hub.freeze(asker.network.peer)
        begun = trio.current_time()
        assert len(await sharing.find(NAMES[:2], WHOLE, TOKENS)) == 1
        assert trio.current_time() - begun < FIND_S + 0.3
        begun = trio.current_time()
        assert len(await sharing.find(NAMES[:2], WHOLE, TOKENS)) == 1
        assert trio.current_time() - begun < 0.3


async def test_a_tracker_that_forgot_is_told_again(tmp_path: Path) -> None:
    async with swarm(tmp_path) as s, s.host() as alice, s.host() as bob:
        async with s.asker() as asker:
            await stored(s, asker, alice, NAMES[0])
        async with (
            s.asker("the same after a loss") as asker,
            s.lease(asker, alice, bob) as (tracked, [_, of_bob]),
        ):
            await asker.tracker.gather(tracked)
            assert len(await of_bob.find(NAMES[:1], WHOLE, TOKENS)) == 1


async def test_a_scope_of_many_is_found_through_the_dht(tmp_path: Path) -> None:
    shared = {"kind": "swarm", "scope": b"scope-of-a-swarm----------------"}
    async with swarm(tmp_path) as s, s.host() as alice, s.host() as bob:
        async with s.asker("one", **shared) as one:
            await stored(s, one, alice, NAMES[0])
        async with s.asker("other", **shared) as other, s.lease(other, bob) as (_, [sharing]):
            with trio.fail_after(3):
                while not await sharing.find(NAMES[:1], WHOLE, TOKENS):
                    await trio.sleep(0.05)
            assert await get(sharing, NAMES[0]) == PIECE


async def test_outsiders_are_told_nothing(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path) as s,
        s.asker() as asker,
        s.host() as alice,
        s.host() as eve,
        s.lease(asker, alice) as (tracked, [sharing]),
    ):
        assert await keep(sharing, NAMES[0])
        await asker.tracker.gather(tracked)
        tracker = replace(alice.address, peer=asker.network.peer, addresses=())
        for whom in (tracker, alice.address):
            with pytest.raises(NetworkError, match=r"not a member|nothing of such a scope"):
                await ask_find(eve.network, whom, asker.scope, NAMES[:1], WHOLE)
            with pytest.raises(NetworkError, match=r"not a member|no records"):
                await announce(eve.network, whom, asker.scope, b"", (), ())
        with pytest.raises(NetworkError):
            await ask_settle(eve.network, tracker, asker.scope)
