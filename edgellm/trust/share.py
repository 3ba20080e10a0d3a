"""How many answers are picked for a check, where the user says, and where not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgellm.errors import UsageError

VARIABLE = "EDGELLM_SPOT_CHECK"
DEFAULT = 0.02


def check_share(said: float | None, peers: Sequence[str], environment: Mapping[str, str]) -> float:
    """0 to 1. A check shows the prompt to further hosts: whoever names hosts has none, unless a share is said as well.

    Raises UsageError for a variable that is no share.
    """
    if said is not None:
        return said
    if peers:
        return 0.0
    text = environment.get(VARIABLE, "").strip()
    if not text:
        return DEFAULT
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"{VARIABLE}={text} is no share", remedy="set it to a number from 0 (never) to 1")
    return share
