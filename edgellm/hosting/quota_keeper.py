"""Holds a host to its owner's quota: charges leases while they run, refuses new ones, ends those that have used it up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
import trio

from edgellm.hosting.quota import Allowance, Ledger, Spent, Work, format_amount
from edgellm.hosting.quota_ledger import load_ledger, save_ledger
from edgellm.leasing.lease import Lease, Refusal

log = structlog.get_logger(__name__)

TICK_S = 1.0
SAVE_S = 10.0
"""What a host that is killed may have lent since it last wrote down what."""


def nobody(requester: str) -> str:
    """Who a requester is to a host that knows no members: always the same stranger."""
    return ""


@dataclass
class _Running:
    who: str
    began: float
    seen: Work = field(default_factory=Work)
    """Counted so far, time left aside."""
    charged: Work = field(default_factory=Work)


class QuotaKeeper:
    """A host's accounts (`edgellm.leasing.account.Account`). No allowances: everything is lent, and nothing counted."""

    def __init__(
        self,
        quota: tuple[Allowance, ...],
        path: Path,
        *,
        now: Callable[[], float],
        who: Callable[[str], str] = nobody,
        steady: Callable[[], float] = trio.current_time,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`now` is Unix time, for periods; `steady` measures leases. `who` names the member behind a requester's peer id.
        `tell` is told when nothing is left.

        Raises UsageError when the ledger at `path` is damaged.
        """
        self.quota = quota
        self._path = path
        self._now = now
        self._steady = steady
        self._who = who
        self._tell = tell
        self._told: Spent | None = None
        self._running: dict[str, _Running] = {}
        self._ledger = load_ledger(path) if quota else Ledger({})
        self._saved_at = -SAVE_S

    def spent(self, who: str = "") -> Spent | None:
        """The allowance that keeps `who` out now, or None; without a name, a stranger."""
        return self._ledger.spent(who, self.quota, self._now())

    def closed(self) -> Spent | None:
        """The allowance that keeps everybody out now, or None."""
        whole = tuple(allowance for allowance in self.quota if not allowance.each_member)
        return self._ledger.spent("", whole, self._now())

    def lines(self) -> list[str]:
        """What is left of each allowance, for the owner."""
        told = []
        for allowance in self.quota:
            if allowance.each_member:
                told.append(str(allowance))
                continue
            left = max(0.0, allowance.amount - self._ledger.taken(allowance, "", self._now()))
            told.append(f"{allowance}: {format_amount(allowance.kind, left)} left")
        if (closed := self.closed()) is not None:
            told.append(f"lends nothing now: {closed}")
        return told

    def refusal(self, requester: str) -> Refusal | None:
        spent = self.spent(self._who(requester))
        return None if spent is None else Refusal("quota", str(spent))

    @contextmanager
    def hold(self, lease: Lease) -> Iterator[None]:
        self._running[lease.id] = _Running(self._who(lease.requester), self._steady())
        try:
            yield
        finally:
            self._charge(lease.id)
            del self._running[lease.id]
            self._save()

    def count(self, lease: str, *, tokens: int | None = None, transferred_bytes: int | None = None) -> None:
        """Notes what `lease` has taken since it began; a figure that falls counts for nothing."""
        if (running := self._running.get(lease)) is None:
            return
        seen = running.seen
        running.seen = replace(
            seen,
            tokens=max(seen.tokens, tokens or 0),
            transferred_bytes=max(seen.transferred_bytes, transferred_bytes or 0),
        )

    async def used_up(self, lease: Lease) -> str:
        if not self.quota:
            await trio.sleep_forever()
        while True:
            await trio.sleep(TICK_S)
            self._charge(lease.id)
            if self._steady() - self._saved_at >= SAVE_S:
                self._save()
            if (spent := self.spent(self._who(lease.requester))) is not None:
                return str(spent)

    def _charge(self, lease: str) -> None:
        running = self._running[lease]
        total = replace(running.seen, time_s=self._steady() - running.began)
        self._ledger = self._ledger.charge(running.who, total.less(running.charged), self.quota, self._now())
        running.charged = total
        if (closed := self.closed()) is not None and closed != self._told:
            self._told = closed
            self._tell(f"nothing is lent now: {closed}")

    def _save(self) -> None:
        self._saved_at = self._steady()
        if not self.quota:
            return
        try:
            save_ledger(self._ledger, self._path)
        except OSError as error:
            # A full disk must not end leases: the ledger in memory goes on counting.
            log.warning("the quota's ledger cannot be written", path=str(self._path), error=str(error))
