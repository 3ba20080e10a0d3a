"""A session's answers, checked on other hosts while nobody is asking: what the user waits for goes first."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from edgellm.cluster.head import Progress
from edgellm.errors import EdgeError
from edgellm.requester.choose import Wanted
from edgellm.requester.cluster import Requester
from edgellm.requester.spot_check import Outcome, check
from edgellm.sessions.holding import SwapDesk
from edgellm.sessions.serving import Serving

log = structlog.get_logger(__name__)

LOOK_S = 1.0
QUIET_S = 5.0
"""Without a request, until a check begins."""
MOST_TRIES = 3
"""Of a check that requests have broken off."""
PATIENCE_S = 900.0
"""In a session that is never quiet, a check begins after so long, and is not broken off."""


async def keep_checking(
    requester: Requester, wanted: Wanted, serving: Serving, desk: SwapDesk, tell: Callable[[Progress], None]
) -> None:
    """Until it is cancelled. Where a host of the session's cluster is caught, others take its place."""
    trust = requester.trust
    if trust is None:
        return
    quiet_since = waits_since = trio.current_time()
    tries = 0
    while True:
        await trio.sleep(LOOK_S)
        now = trio.current_time()
        if not trust.picked:
            waits_since = now
        if serving.idleness.running:
            quiet_since = now
        impatient = now - waits_since > PATIENCE_S
        if not trust.picked or serving.slot is None or not (impatient or now - quiet_since >= QUIET_S):
            continue
        picked, outcome, broken_off = trust.picked.popleft(), None, False
        try:
            async with trio.open_nursery() as nursery:
                if not impatient:
                    nursery.start_soon(_until_asked, serving, nursery.cancel_scope)
                outcome = await check(
                    requester, picked, wanted, lambda line: tell(Progress("", "check", line))
                )
                nursery.cancel_scope.cancel()
            broken_off = nursery.cancel_scope.cancelled_caught and outcome is None
        except* EdgeError as group:
            log.warning("a check failed", error=str(group.exceptions[0]))
        tries = tries + 1 if broken_off else 0
        if broken_off and tries < MOST_TRIES:
            trust.picked.appendleft(picked)
        waits_since = trio.current_time()
        if outcome is not None:
            _replace_caught(outcome, serving, desk)


async def _until_asked(serving: Serving, scope: trio.CancelScope) -> None:
    while not serving.idleness.running:
        await trio.sleep(LOOK_S / 10)
    scope.cancel()


def _replace_caught(outcome: Outcome, serving: Serving, desk: SwapDesk) -> None:
    slot = serving.slot
    if slot is None:
        return
    hosts = {stage.peer for stage in slot.opened.cluster.stages.stages}
    if hosts.isdisjoint(outcome.caught):
        return
    try:
        desk.ask(serving.model)
    except EdgeError as error:
        log.warning("a host that was caught stays in the cluster for now", error=str(error))
