"""A session as it is shown, and what is another than before. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgellm.console import views
from edgellm.sessions.client import ProgressLine, SessionState
from edgellm.sessions.story import crashed

NEVER_MS = 100 * 365 * 86_400_000
"""A session that closes so long after it was opened stays open; calendars end."""


def session_of(
    state: SessionState, last: ProgressLine | None, latency_s: Callable[[str], float | None]
) -> views.Session:
    """A session as it is shown; `last` is what its bring-up said last. Pure but for the latencies."""
    description, record = state.description, state.record
    if state.has_crashed:
        return _crashed(state)
    told = " ".join(filter(None, (last.who, last.phase, last.detail))) if last is not None else ""
    if description is None:
        failure = None
        if record is not None and record.failure:
            failure = views.Problem(message=record.failure, remedy=record.remedy, type="session")
        is_ready = record is not None and record.state == "ready"
        return views.Session(
            name=state.name,
            model=record.model if record else "",
            state="failed" if failure else "ready" if is_ready else "starting",
            detail=failure.message if failure else "its daemon does not answer" if is_ready else told,
            failure=failure,
        )
    known: Mapping[str, views.SessionState] = {"ready": "ready", "closing": "closing", "failed": "failed"}
    shown = known.get(description.state, "starting")
    if shown == "starting" and record is not None and record.state == "ready":
        # It was ready once, and no cluster stands behind it any more.
        shown = "closing"
    if shown == "ready" and description.swapping_to:
        shown = "swapping"
    elif shown == "ready" and description.recovering:
        shown = "recovering"
    expires_ms = description.idle_expires_unix_ms
    closes = shown == "ready" and 0 < expires_ms < description.opened_unix_ms + NEVER_MS
    return views.Session(
        name=description.name,
        model=description.model,
        state=shown,
        swapping_to=description.swapping_to,
        detail=told if shown == "starting" else description.recovering or description.detail,
        opened_at=description.opened_unix_ms / 1000,
        closes_at=expires_ms / 1000 if closes else None,
        running_requests=description.running_requests,
        endpoint=description.endpoint,
        tensor_parallel=description.tensor_parallel,
        context=description.max_model_len,
        digest=description.digest,
        predicted_prefill_tok_s=description.predicted_prefill_tok_s,
        stages=[
            views.Stage(
                stage=number,
                peer=stage.peer,
                name=stage.name,
                first_layer=stage.first_layer,
                end_layer=stage.end_layer,
                latency_s=latency_s(stage.peer),
            )
            for number, stage in enumerate(description.stages)
        ],
        shares_kv=description.shares_kv,
        kv_holders=[
            views.KvHolder(peer=holder.peer, name=holder.name, tokens=holder.tokens)
            for holder in description.kv_holders
        ],
    )


def _crashed(state: SessionState) -> views.Session:
    assert state.story is not None
    error = crashed(state.name, state.story)
    problem = views.Problem(message=str(error), remedy=error.remedy, type="session")
    return views.Session(
        name=state.name, model=state.story.model, state="failed", detail=problem.message, failure=problem
    )


def differs(shown: views.Session, now: views.Session) -> bool:
    """Whether somebody who looks at `shown` should be told. Round trips are told by the swarm."""
    still = {"stages": [stage.model_copy(update={"latency_s": None}) for stage in now.stages]}
    was = {"stages": [stage.model_copy(update={"latency_s": None}) for stage in shown.stages]}
    return shown.model_copy(update=was) != now.model_copy(update=still)
