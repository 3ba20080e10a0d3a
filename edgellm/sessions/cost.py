"""What a session costs those who lend to it: each host's time, from its lease until it is let go. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Cost:
    """Time that hosts have lent, all of them together, in host-seconds."""

    limit_s: float = 0.0
    """0: none."""
    hosts: int = 0
    """That lend now. One that lends to two clusters counts twice."""
    spent_s: float = 0.0
    """Up to `at`."""
    at: float = 0.0

    def lent(self, hosts: int, since: float, now: float) -> Cost:
        """So many more have lent since an instant that may have passed, and go on."""
        return replace(
            self, hosts=self.hosts + hosts, spent_s=self.spent(now) + hosts * max(0.0, now - since), at=now
        )

    def returned(self, hosts: int, now: float) -> Cost:
        """So many of them lend no longer."""
        return replace(self, hosts=self.hosts - hosts, spent_s=self.spent(now), at=now)

    def spent(self, now: float) -> float:
        """Host-seconds until now."""
        return self.spent_s + self.hosts * max(0.0, now - self.at)

    def is_used_up(self, now: float) -> bool:
        """Whether the limit is reached."""
        return self.limit_s > 0 and self.spent(now) >= self.limit_s
