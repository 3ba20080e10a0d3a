"""What a host may still lend, as leases see it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from edgellm.leasing.lease import Lease, Refusal


class Account(Protocol):
    """Keeps count of what is lent (`edgellm.hosting.quota_keeper.QuotaKeeper`)."""

    def refusal(self, requester: str) -> Refusal | None:
        """Why nothing is lent to `requester` now, or None."""

    def hold(self, lease: Lease) -> AbstractContextManager[None]:
        """Charges `lease` while the context lasts."""

    async def used_up(self, lease: Lease) -> str:
        """Returns, when `lease` must end because nothing is left for it, why."""


NOTICE_S = 20.0
"""How long a lease whose quota is used up may go on, so that its cluster can move to other hosts."""
