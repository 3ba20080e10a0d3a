"""Blocks that come before they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from edgellm.blocks.cid import Cid
from edgellm.errors import BlocksNotSent
from edgellm.kv.ahead import MAX_AHEAD_BYTES, Ahead, Came

BLOCKS = [bytes([number]) * 1000 for number in range(10)]
CIDS = [Cid.of(block) for block in BLOCKS]
SIZE = 10_000


class Holder:
    """Sends a block a second; `breaks_after` so many it breaks off."""

    def __init__(self, breaks_after: int = 100) -> None:
        self.breaks_after = breaks_after
        self.asked: list[list[Cid]] = []

    async def __call__(self, holder: str, cids: Sequence[Cid], timeout_s: float, came: Came) -> None:
        self.asked.append(list(cids))
        for number, cid in enumerate(cids):
            await trio.sleep(1)
            if number >= self.breaks_after:
                raise BlocksNotSent("it broke off")
            came(cid, BLOCKS[CIDS.index(cid)])


async def test_pieces_are_taken_as_they_come(autojump_clock: object) -> None:
    holder = Holder()
    ahead = Ahead(holder)
    async with trio.open_nursery() as nursery:
        ahead.begin(nursery, "alice", CIDS, SIZE, 60)
        await trio.sleep(0.5)
        begun = trio.current_time()
        assert await ahead.take("alice", CIDS[:2]) == BLOCKS[:2]
        assert trio.current_time() - begun == pytest.approx(1.5)
        assert await ahead.take("alice", CIDS[2:]) == BLOCKS[2:]
    assert len(holder.asked) == 1
    assert ahead.fits(MAX_AHEAD_BYTES), "what was taken needs no room"


async def test_what_was_not_asked_for_ahead_is_not_waited_for(autojump_clock: object) -> None:
    ahead = Ahead(Holder())
    assert await ahead.take("alice", CIDS) is None
    async with trio.open_nursery() as nursery:
        ahead.begin(nursery, "alice", CIDS[:3], SIZE, 60)
        await trio.sleep(0.5)
        assert await ahead.take("bob", CIDS[:1]) is None
        assert await ahead.take("alice", CIDS[4:5]) is None
        nursery.cancel_scope.cancel()


async def test_a_holder_that_breaks_off_gives_what_came_before(autojump_clock: object) -> None:
    ahead = Ahead(Holder(breaks_after=2))
    async with trio.open_nursery() as nursery:
        ahead.begin(nursery, "alice", CIDS, SIZE, 60)
        await trio.sleep(0.5)
        assert await ahead.take("alice", CIDS[:2]) == BLOCKS[:2]
        with pytest.raises(BlocksNotSent, match="broke off"):
            await ahead.take("alice", CIDS[2:4])


async def test_what_nobody_takes_goes_and_those_who_wait_are_told(autojump_clock: object) -> None:
    ahead = Ahead(Holder())
    async with trio.open_nursery() as nursery:
        ahead.begin(nursery, "alice", CIDS, SIZE, 3.5)
        await trio.sleep(0.5)
        assert not ahead.fits(MAX_AHEAD_BYTES)
        assert await ahead.take("alice", CIDS[9:]) is None
        assert trio.current_time() > 3
    assert ahead.fits(MAX_AHEAD_BYTES)


async def test_the_same_is_fetched_once_and_too_much_not_at_all(autojump_clock: object) -> None:
    holder = Holder()
    ahead = Ahead(holder)
    async with trio.open_nursery() as nursery:
        ahead.begin(nursery, "alice", CIDS[:4], SIZE, 60)
        await trio.sleep(0.5)
        ahead.begin(nursery, "alice", CIDS[:6], SIZE, 60)
        ahead.begin(nursery, "alice", CIDS[6:], MAX_AHEAD_BYTES, 60)
        assert await ahead.take("alice", CIDS[:6]) == BLOCKS[:6]
    assert [len(asked) for asked in holder.asked] == [4, 2]
