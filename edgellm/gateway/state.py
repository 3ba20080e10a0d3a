"""How a session stands, for those who ask its endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine answers."""

    socket: str
    """Where its API is served."""
    route: str
    """Who runs which layers, for people."""


@dataclass(frozen=True, slots=True)
class Starting:
    """There was no cluster yet."""

    detail: str


@dataclass(frozen=True, slots=True)
class Closing:
    """There will be no cluster any more; what it answers now it may finish."""

    reason: str


@dataclass(frozen=True, slots=True)
class Swapping:
    """One cluster has gone and another is to come: requests wait for it."""

    detail: str


@dataclass(frozen=True, slots=True)
class Broken:
    reason: str


State: TypeAlias = Ready | Starting | Swapping | Closing | Broken
