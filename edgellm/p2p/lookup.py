"""An iterative lookup in a Kademlia DHT that dead and deaf peers do not hold up.

Asks the closest peers known, learns of closer ones from their answers, and is done when the `k` closest that answer have
answered. Who takes much longer than the others did is not waited for: somebody else is asked in its place, and its answer
counts if it comes in time. Knows nothing of libp2p: what asks a peer is passed in.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

K = 20
"""Peers that hold a record, as in libp2p."""
AT_ONCE = 10
"""As in libp2p: more at once is slower where each is a new connection, whose keys take time to check."""
LATE_AT_FIRST_S = 1.0
"""Before anybody has answered."""
LEAST_LATE_S = 0.4
LATE_FACTOR = 4.0
"""Times the median of those that answered."""
MAX_ASKED = 200
MAX_CLOSER = 40
"""Of one answer: a peer that lies about the whole world is not followed there."""
LOOKUP_TIMEOUT_S = 15.0

P = TypeVar("P", bound=Hashable)
F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Answer(Generic[P, F]):
    found: Sequence[F]
    closer: Sequence[P]


@dataclass(frozen=True, slots=True)
class Looked(Generic[P]):
    """Where a lookup led."""

    closest: tuple[P, ...]
    """Up to `K` peers that answered, the closest first."""
    asked: int
    failed: int


def late_s(answered_s: Sequence[float]) -> float:
    """After how long a peer counts as late, given how long the others took. Pure."""
    if not answered_s:
        return LATE_AT_FIRST_S
    return max(LEAST_LATE_S, LATE_FACTOR * statistics.median(answered_s))


@dataclass
class _Lookup(Generic[P, F]):
    distance: Callable[[P], int]
    began: dict[P, float] = field(default_factory=dict)
    answered: dict[P, float] = field(default_factory=dict)
    """How long each took."""
    failed: set[P] = field(default_factory=set)
    known: set[P] = field(default_factory=set)
    has_found: bool = False
    news: trio.Event = field(default_factory=trio.Event)

    def tell(self) -> None:
        self.news.set()
        self.news = trio.Event()

    def running(self) -> list[P]:
        return [peer for peer in self.began if peer not in self.answered and peer not in self.failed]

    def closest(self, now: float) -> list[P]:
        """The `K` closest that are neither gone nor late."""
        limit_s = late_s(tuple(self.answered.values()))
        late = {peer for peer in self.running() if now - self.began[peer] >= limit_s}
        return sorted(self.known - self.failed - late, key=self.distance)[:K]


async def lookup(
    nursery: trio.Nursery,
    start: Iterable[P],
    ask: Callable[[P], Awaitable[Answer[P, F] | None]],
    distance: Callable[[P], int],
    on_found: Callable[[Sequence[F]], None],
    *,
    patient: bool = False,
) -> Looked[P]:
    """Asks ever closer peers; what they have of the key goes to `on_found` as it comes.

    `ask` gives None for a peer that cannot be asked, takes a bounded time, and raises nothing; it runs in `nursery`, where one
    who is late may still be waited for after the lookup. Where nothing was found yet, the late ones are waited for here, too;
    and always by who is `patient`, for a record is to be where others look for it.
    """
    state: _Lookup[P, F] = _Lookup(distance)
    state.known.update(start)

    async def one(peer: P) -> None:
        answer = await ask(peer)
        if answer is None:
            state.failed.add(peer)
        else:
            state.answered[peer] = trio.current_time() - state.began[peer]
            state.known.update(answer.closer[:MAX_CLOSER])
            if answer.found:
                state.has_found = True
                on_found(answer.found)
        state.tell()

    with trio.move_on_after(LOOKUP_TIMEOUT_S):
        while True:
            now = trio.current_time()
            closest = state.closest(now)
            on_time = [peer for peer in closest if peer in state.began and peer not in state.answered]
            unasked = [peer for peer in closest if peer not in state.began]
            room = min(AT_ONCE - len(on_time), MAX_ASKED - len(state.began))
            for peer in unasked[: max(0, room)]:
                state.began[peer] = now
                nursery.start_soon(one, peer)
                on_time.append(peer)
            if not on_time and ((state.has_found and not patient) or not state.running()):
                break
            limit_s = late_s(tuple(state.answered.values()))
            next_late = min((state.began[peer] + limit_s for peer in on_time), default=now + LOOKUP_TIMEOUT_S)
            with trio.move_on_after(max(0.01, next_late - now)):
                await state.news.wait()
    answered = sorted(state.answered, key=distance)
    return Looked(tuple(answered[:K]), len(state.began), len(state.failed))
