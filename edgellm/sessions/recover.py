"""Brings a session back whose daemon, or whose machine, died."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edgellm.errors import SessionError
from edgellm.sessions.client import ProgressLine, start_session
from edgellm.sessions.registry import Registry
from edgellm.sessions.story import Story, read_journal


def recover_session(
    registry: Registry,
    name: str,
    on_progress: Callable[[ProgressLine], object],
    *,
    port: int | None = None,
) -> Story:
    """Brings a session that crashed or failed back on a new cluster: same name, API key, options, and port unless another is
    given. What had been going on; what of it is unfinished stays marked in the new one.

    Raises SessionError when there is none of that name, when it runs or cannot be brought back, and what its daemon met; then
    it can be tried again.
    """
    with registry.reserve_again(name) as files:
        story = read_journal(files.journal)
        if story is None:
            registry.remove(name)
            raise SessionError(
                f"session {name!r} has left nothing from which it could be brought back",
                remedy="open another one: edgellm session open --model MODEL",
            )
        order = msgspec.structs.replace(
            story.opened.order,
            model=story.model,
            directory=str(files.directory),
            journal=str(files.journal),
            port=story.opened.order.port if port is None else port,
            spent_s=story.spent_s(),
            recovers=True,
            # Whoever it belonged to has gone.
            owner_pid=0,
        )
        start_session(registry, order, files, on_progress)
    return story
