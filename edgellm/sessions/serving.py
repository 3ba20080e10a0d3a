"""What a session serves with now: the cluster in use, those that still finish, and who uses them.

Asked by the gateway in trio's thread and by gRPC's own threads; changed by `holding` alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from edgellm.gateway.state import Broken, Closing, Ready, Starting, State, Swapping
from edgellm.requester.cluster import OpenedCluster
from edgellm.sessions.cost import Cost
from edgellm.sessions.idle import Idleness

MAX_REQUESTS_AT_ONCE = 64
"""That a session answers; each way of asking it has as many."""


class Slot:
    """One cluster of the session, and how many requests it is answering."""

    def __init__(self, model: str, opened: OpenedCluster) -> None:
        self.model = model
        self.opened = opened
        self.users = 0


class Serving:
    """Thread-safe."""

    def __init__(self, model: str, idle_s: float, max_cost_s: float = 0.0, spent_s: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._idleness = Idleness(idle_s, time.time())
        self._cost = Cost(max_cost_s, spent_s=spent_s)
        self._told: tuple[str, tuple[str, ...]] | None = None
        self._on_use: Callable[[str, Sequence[str], float], None] | None = None
        self._slot: Slot | None = None
        self._model = model
        self._detail = "just begun"
        self._swapping_to = ""
        self._is_closing = False

    @property
    def model(self) -> str:
        """The one that is served, or will be first."""
        return self._model

    @property
    def slot(self) -> Slot | None:
        """The one that new requests get; None while there is none."""
        return self._slot

    @property
    def idleness(self) -> Idleness:
        return self._idleness

    @property
    def swapping_to(self) -> str:
        """The model that a swap is bringing up; "" at other times."""
        return self._swapping_to

    @property
    def detail(self) -> str:
        """What the bring-up is at, where one goes on."""
        return self._detail

    def watch(self, on_use: Callable[[str, Sequence[str], float], None]) -> None:
        """Told of each cluster before requests get it, and when `look` finds other hosts in it: its model, its hosts' names,
        and the host-seconds that were lent.
        """
        self._on_use = on_use

    def look(self) -> None:
        """Tells who watches where hosts of the cluster in use have been replaced."""
        if (slot := self._slot) is not None:
            self._tell(slot)

    def _tell(self, slot: Slot) -> None:
        if self._on_use is None:
            return
        hosts = {stage.peer: stage.name or stage.peer for stage in slot.opened.cluster.stages.stages}
        serves = slot.model, tuple(hosts.values())
        if serves != self._told:
            self._told = serves
            self._on_use(*serves, self._cost.spent(time.time()))

    def use(self, slot: Slot) -> None:
        """From now on new requests get this one."""
        self._tell(slot)
        with self._lock:
            self._slot, self._model = slot, slot.model
            self._idleness = self._idleness.rested(time.time())

    def hold(self) -> None:
        """New requests wait until there is a cluster again."""
        with self._lock:
            self._slot = None

    def leave(self, reason: str = "it was asked to") -> None:
        """The session ends: nothing new begins, what runs may end. Only the first reason counts."""
        with self._lock:
            if not self._is_closing:
                self._slot, self._is_closing, self._detail = None, True, reason

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    @property
    def cost(self) -> Cost:
        return self._cost

    @contextmanager
    def lending(self, hosts: int, since: float) -> Iterator[Callable[[int], None]]:
        """So many hosts lend to the session, since an instant of `time.time`; call what this gives with another number."""
        lending = hosts
        with self._lock:
            self._cost = self._cost.lent(hosts, since, time.time())

        def lend(hosts: int) -> None:
            nonlocal lending
            now = time.time()
            with self._lock:
                self._cost = self._cost.returned(lending, now).lent(hosts, now, now)
                lending = hosts

        try:
            yield lend
        finally:
            with self._lock:
                self._cost = self._cost.returned(lending, time.time())

    def note(self, detail: str) -> None:
        if not self._is_closing:
            self._detail = detail

    @contextmanager
    def swapping(self, model: str) -> Iterator[None]:
        """A swap to `model` goes on; the session is not idle meanwhile."""
        with self._lock:
            self._swapping_to = model
            self._idleness = self._idleness.begin()
        try:
            yield
        finally:
            with self._lock:
                self._swapping_to = ""
                self._idleness = self._idleness.end(time.time())
                if not self._is_closing:
                    self._detail = ""

    def state(self) -> State:
        """For those who ask the endpoint."""
        with self._lock:
            slot, is_closing, swapping_to = self._slot, self._is_closing, self._swapping_to
        if slot is None:
            if is_closing:
                return Closing(self._detail)
            if swapping_to:
                return Swapping(f"{swapping_to}: {self._detail}")
            return Starting(self._detail)
        if slot.opened.cluster.api_socket is None:
            return Broken("its engine serves no API; `edgellm ask --session` works")
        stages = slot.opened.cluster.stages.stages
        route = ", ".join(
            f"{stage.name or stage.peer[:16]} {stage.first_layer}-{stage.end_layer - 1}" for stage in stages
        )
        return Ready(str(slot.opened.cluster.api_socket), route)

    @contextmanager
    def used(self) -> Iterator[Slot | None]:
        """Counts a request on the cluster that is in use; None where there is none."""
        with self._lock:
            slot = self._slot
            if slot is not None:
                slot.users += 1
                self._idleness = self._idleness.begin()
        if slot is None:
            yield None
            return
        try:
            yield slot
        finally:
            with self._lock:
                slot.users -= 1
                self._idleness = self._idleness.end(time.time())

    def expired(self) -> bool:
        expires_at = self._idleness.expires_at()
        return expires_at is not None and time.time() >= expires_at
