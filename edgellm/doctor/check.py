"""What a check finds, and what it is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be true ("fail" when it is not) or should be ("warn")."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
    """The command, or the one line of advice, that mends it; empty when there is nothing to mend."""


@dataclass(frozen=True, slots=True)
class Examination:
    """How this machine is to be used."""

    listen: tuple[str, ...] = ()
    """Multiaddrs on which a host shall listen; none: its default one."""
    bootstrap: tuple[str, ...] = ()
    """Multiaddrs of the peers through which the swarm is joined."""
    backend: str = "vllm"


def ok(name: str, detail: str) -> Check:
    return Check(name, "ok", detail)


def warn(name: str, detail: str, remedy: str = "") -> Check:
    return Check(name, "warn", detail, remedy)


def fail(name: str, detail: str, remedy: str) -> Check:
    return Check(name, "fail", detail, remedy)
