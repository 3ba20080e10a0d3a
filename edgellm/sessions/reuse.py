"""Which open session may answer a question that named none. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.wire.session_pb2 import Description


@dataclass(frozen=True, slots=True)
class Asked:
    """What a cluster for the question would be."""

    model: str
    max_tokens: int
    network: str
    isolation: str
    bootstrap: tuple[str, ...] = ()
    """Said now; (): any that the user's sessions joined through."""
    swarm: str = ""
    """As in `edgellm.sessions.daemon_order.Order`: what is asked in one swarm is no business of another's hosts."""


def reusable(asked: Asked, sessions: Iterable[Description]) -> str | None:
    """The name of a session that has nothing to do and is as it was asked for; of several the one opened last.

    None where there is none. Whether the prompt fits, only the session can tell.
    """
    fitting = [session for session in sessions if _fits(asked, session)]
    return max(fitting, key=lambda session: (session.opened_unix_ms, session.name)).name if fitting else None


def _fits(asked: Asked, session: Description) -> bool:
    is_idle = session.state == "ready" and not session.running_requests
    is_same = (session.model, session.network, session.isolation) == (
        asked.model,
        asked.network,
        asked.isolation,
    )
    # What a wider scope keeps of a prompt, others can read.
    is_private = session.kv_scope in ("", "session")
    is_there = set(asked.bootstrap) <= set(session.bootstrap)
    is_there = is_there and session.swarm == asked.swarm
    return is_idle and is_same and is_private and is_there and session.max_model_len > asked.max_tokens
