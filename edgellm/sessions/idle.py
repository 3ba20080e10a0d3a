"""When a session has been idle for too long. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Idleness:
    """Counts running requests; idle time begins when the last one ends."""

    limit_s: float
    """0: never too long."""
    since: float
    running: int = 0

    def begin(self) -> Idleness:
        return replace(self, running=self.running + 1)

    def end(self, now: float) -> Idleness:
        return replace(self, running=self.running - 1, since=now)

    def rested(self, now: float) -> Idleness:
        """Idle time begins anew."""
        return replace(self, since=now)

    def expires_at(self) -> float | None:
        """The instant at which the session closes itself if nothing happens; None while a request runs or for no limit."""
        return None if self.running or not self.limit_s else self.since + self.limit_s
