"""Whether an advert may be believed. Pure: the time and what was seen before are passed in."""

from __future__ import annotations

from edgellm.types.advert import HostAdvert

MAX_LIFETIME_S = 600.0
"""No host may promise for longer than this."""
CLOCK_SKEW_S = 60.0
"""How far two machines' clocks may differ before their adverts look expired or from the future."""


def fault(advert: HostAdvert, *, signer: str, peer: str, now: float, last_sequence: int) -> str | None:
    """Why `advert` must not be believed, or None.

    `signer` signed it, `peer` sent it (proven by the connection), `last_sequence` is the newest one seen of `peer`.
    The same sequence again is fine: it is the same advert, sent twice.
    """
    if signer != peer or advert.peer != peer:
        return "forged"
    if advert.expires_at < now - CLOCK_SKEW_S:
        return "expired"
    if advert.issued_at > now + CLOCK_SKEW_S:
        return "from the future"
    if advert.expires_at > advert.issued_at + MAX_LIFETIME_S:
        return "promises for too long"
    if advert.sequence < last_sequence:
        return "replayed"
    return None
