"""When a running host lends: it pauses while its owner needs the machine, resumes by itself, and ends when it was told to."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

import trio

from edgellm.discovery.publish import Publisher
from edgellm.errors import UsageError
from edgellm.hosting.control import HostStatus, LeaseLine, Order, Pause, Resume
from edgellm.hosting.hours import notice_s
from edgellm.leasing.serve import LeaseServer

CHECK_S = 20.0
"""Clocks are looked at so often: a machine that slept wakes up later than its timers think."""

LendingState: TypeAlias = Literal["lending", "paused", "ending"]


class Lending:
    """Whether a host lends now. `until` is in Unix seconds, as `now` is."""

    def __init__(
        self,
        leases: LeaseServer,
        publisher: Publisher,
        *,
        name: str,
        grace_s: float,
        until: float | None = None,
        on_step: Callable[[str], None] = lambda line: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._leases = leases
        self._publisher = publisher
        self._name = name
        self._now = now
        self._on_step = on_step
        self._changed = trio.Event()
        self.grace_s = grace_s
        self.until = until
        self.resumes_at: float | None = None
        """Of a pause that ends by itself."""
        self.state: LendingState = "lending"
        self._to_announce = False
        self._last_call = math.inf if until is None else until - notice_s(until - now(), grace_s)
        leases.lend_until(until)

    def pause(self, *, within_s: float | None, for_s: float | None) -> None:
        """No new leases from now on; running ones end in `within_s` (None: the host's grace) seconds. It resumes after `for_s`.

        Once more: with other times. Raises UsageError for a host that ends.
        """
        self._require_not_ending()
        grace_s = self.grace_s if within_s is None else within_s
        self.resumes_at = None if for_s is None else self._now() + for_s
        if self.state != "paused":
            self.state = "paused"
            self._publisher.withdraw()
        self._leases.pause(grace_s, "its owner needs the machine")
        running = len(self._leases.book.leases)
        self._on_step(
            "paused: no new leases" + (f"; {running} running end in {grace_s:g} s" if running else "")
        )
        self._wake()

    def resume(self) -> None:
        """Lends again. Raises UsageError for a host that ends."""
        self._require_not_ending()
        if self.state == "paused":
            self.state, self.resumes_at = "lending", None
            self._leases.resume()
            self._on_step("lends again")
            self._to_announce = True
            self._wake()

    def end(self) -> None:
        """It lends no more, for good; what runs is the caller's to drain."""
        self.state = "ending"
        self._publisher.withdraw()

    def obey(self, order: Order) -> HostStatus:
        """Does what the owner says; how the host is then. Raises UsageError."""
        match order:
            case Pause(within_s=within_s, for_s=for_s):
                self.pause(within_s=within_s, for_s=for_s)
            case Resume():
                self.resume()
        return self.status()

    def status(self) -> HostStatus:
        book, ends_in_s = self._leases.book, self._leases.ends_in_s
        names = {offer.digest: offer.name for offer in book.models}
        return HostStatus(
            name=self._name,
            peer=self._leases.peer,
            pid=os.getpid(),
            state=self.state,
            models=tuple(offer.name for offer in book.models),
            leases=tuple(
                LeaseLine(
                    model=names.get(lease.digest, lease.digest),
                    requester=lease.requester,
                    first_layer=lease.first_layer,
                    end_layer=lease.end_layer,
                    memory_bytes=lease.memory_bytes * len(lease.devices),
                    granted_at=lease.granted_at,
                )
                for lease in book.leases
            ),
            max_leases=book.max_leases,
            lent_memory_bytes=sum(device.memory_bytes for device in book.devices),
            free_memory_bytes=sum(book.free_memory_bytes(device.id) for device in book.devices),
            leases_end_at=None if ends_in_s is None else self._now() + ends_in_s,
            resumes_at=self.resumes_at,
            until=self.until,
        )

    async def is_over(self, stop: trio.Event) -> bool:
        """Resumes and ends at the times that are set. True when the time to lend is over, False once `stop` is set."""
        over = False
        async with trio.open_nursery() as nursery:

            async def keep() -> None:
                nonlocal over
                await self._keep()
                over = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(keep)
            await stop.wait()
            nursery.cancel_scope.cancel()
        return over

    async def _keep(self) -> None:
        while True:
            now = self._now()
            if self.until is not None and now >= self._last_call and self.state != "ending":
                self.end()
                left_s = max(0.0, self.until - now)
                self._on_step(f"draining: it lends for another {left_s:.0f} s; no new leases")
                self._leases.pause(left_s, "its owner lends it no longer than this")
            if self.until is not None and now >= self.until:
                return
            if self.state == "paused" and self.resumes_at is not None and now >= self.resumes_at:
                self.resume()
            if self._to_announce and self.state == "lending":
                self._to_announce = False
                await self._publisher.announce()
                continue
            resumes_at = math.inf if self.resumes_at is None else self.resumes_at
            ends_at = math.inf if self.until is None else self.until
            due = min(resumes_at, self._last_call if self.state != "ending" else ends_at)
            changed = self._changed
            with trio.move_on_after(min(CHECK_S, max(0.0, due - now))):
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _require_not_ending(self) -> None:
        if self.state == "ending":
            raise UsageError(
                "this host is about to end", remedy="start it again when it has: edgellm host --model MODEL"
            )
