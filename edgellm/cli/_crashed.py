"""Sessions that crashed and requests that were left unfinished, as they are shown."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.sessions.story import Story


def crash_of(story: Story) -> str:
    """When a session crashed and what of it is unfinished, for people."""
    from edgellm.sessions.story import lost_requests

    return f"{_instant(story.alive_at)}; {lost_requests(story)}"


def _instant(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def as_text(value: object, key: str = "") -> str:
    """For people."""
    if key.endswith("_at") and isinstance(value, float):
        return _instant(value)
    if isinstance(value, list):
        return "\n".join(as_text(entry) for entry in value) or "-"
    if isinstance(value, dict):
        began = time.strftime("%H:%M:%S", time.localtime(float(value["begun_at"])))
        return " ".join(filter(None, (began, str(value["path"]), str(value["request_id"]))))
    return "-" if value is None else str(value)


def report_of_crashed(name: str, story: Story | None) -> dict[str, object]:
    """As `report`, of a session whose daemon died without a word."""
    assert story is not None
    lost = story.lost()
    order = story.opened.order
    return {
        "name": name,
        "model": story.model,
        "state": "crashed",
        "crashed_at": story.alive_at,
        "recoveries": 0,
        "spares": [],
        "running_requests": 0,
        "closes_in_s": None,
        "cost_s": story.spent_s(),
        "max_cost_s": order.max_cost_s or None,
        "endpoint": f"http://127.0.0.1:{order.port}/v1",
        "route": " → ".join(story.serves.hosts) if story.serves else "",
        "unfinished": [
            {
                "path": one.path,
                "request_id": one.request_id,
                "model": one.model,
                "begun_at": one.at,
                "lost_at": one.lost_at,
            }
            for one in lost
        ],
    }
