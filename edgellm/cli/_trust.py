"""`edgellm peers --trust`, `--forgive` and `--lent`: what was seen of hosts, and what this machine lent. Nobody is asked."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from edgellm.cli._output import say, tables
from edgellm.errors import UsageError
from edgellm.types.quantity import format_duration

if TYPE_CHECKING:
    from edgellm.trust.accounts import Lent
    from edgellm.trust.ledger import HostRecord, Ledger


def show_trust(*, as_json: bool) -> None:
    """What was seen of each host, those seen last first."""
    records = _ledger().records()
    now = time.time()
    if as_json:
        print(json.dumps([report(record, now) for record in records], ensure_ascii=False))
    elif not records:
        say("no host has answered yet: what they do is noted from the first question on")
    else:
        tables.print(_table(records, now))


def forgive(peer: str) -> None:
    """Forgets what speaks against a host: a name, a peer id, or the beginning or end of one. Raises UsageError."""
    ledger = _ledger()
    records = ledger.records()
    matching = [record for record in records if peer == record.peer] or [
        record
        for record in records
        if peer
        and (peer == record.name or record.peer.startswith(peer) or record.peer.endswith(peer.lstrip("…")))
    ]
    if len(matching) != 1:
        many = ", ".join(record.peer for record in matching[:4])
        raise UsageError(
            f"{peer!r} means {len(matching)} hosts: {many}"
            if matching
            else f"no host {peer!r} is known here",
            remedy="give the peer id, as edgellm peers --trust --json shows it",
        )
    [record] = matching
    ledger.forgive(record.peer)
    say(
        f"{escape(record.name or record.peer)} is forgiven: what it served stays known, what spoke against it is gone"
    )


def report(record: HostRecord, now: float) -> dict[str, object]:
    from edgellm.trust.score import reputation, state

    found = reputation(record.outcomes, now)
    caught = record.caught
    return {
        "peer": record.peer,
        "name": record.name,
        "answers": record.answers,
        "tokens": record.tokens,
        "seconds": record.seconds,
        "failures": record.failures,
        "checks_passed": record.checks_passed,
        "checks_failed": record.checks_failed,
        "unsigned": record.unsigned,
        "score": round(found.score, 3),
        "state": state(found, caught),
        "reason": caught.reason if caught else "",
        "caught_at": caught.at if caught else None,
        "seen_at": record.seen_at,
    }


def _table(records: tuple[HostRecord, ...], now: float) -> Table:
    from edgellm.trust.score import reputation, state

    shown = Table(box=None, header_style="bold")
    for column in ("HOST", "PEER"):
        shown.add_column(column, no_wrap=True)
    for column in ("ANSWERS", "TOKENS", "FAILURES", "CHECKS OK", "NOT OK", "SCORE"):
        shown.add_column(column, justify="right")
    shown.add_column("STATE")
    for record in records:
        found = reputation(record.outcomes, now)
        word = state(found, record.caught)
        detail = ""
        if record.caught is not None:
            ago = format_duration(now - record.caught.at)
            detail = f": {record.caught.reason}, {ago} ago"
        elif word == "avoid":
            detail = ": failed often lately, the last choice"
        colour = {"trusted": "green", "new": "default", "avoid": "yellow", "caught": "red"}[word]
        shown.add_row(
            escape(record.name or "-"),
            f"…{record.peer[-8:]}",
            f"{record.answers:,}",
            f"{record.tokens:,}",
            str(record.failures),
            str(record.checks_passed),
            str(record.checks_failed),
            f"{found.score:.2f}",
            f"[{colour}]{word}[/]{escape(detail)}",
        )
    return shown


def show_lent(*, as_json: bool) -> None:
    """What this machine lent, the newest first."""
    from edgellm.paths import default_paths
    from edgellm.trust.accounts import lent

    leases = lent(default_paths().state)
    if as_json:
        print(json.dumps([_lent_report(lease) for lease in leases]))
    elif not leases:
        say("this machine has lent nothing yet")
    else:
        tables.print(_lent_table(leases))


def _lent_report(lease: Lent) -> dict[str, object]:
    return {name: getattr(lease, name) for name in type(lease).__slots__}


def _lent_table(leases: tuple[Lent, ...]) -> Table:
    shown = Table(box=None, header_style="bold")
    for column in ("SINCE", "TO", "MODEL", "LAYERS"):
        shown.add_column(column, no_wrap=True)
    for column in ("FOR", "ANSWERS", "TOKENS"):
        shown.add_column(column, justify="right")
    shown.add_column("ENDED")
    for lease in leases:
        shown.add_row(
            time.strftime("%Y-%m-%d %H:%M", time.localtime(lease.began_at)),
            f"…{lease.requester[-8:]}",
            lease.digest[:12],
            f"{lease.first_layer}-{lease.end_layer - 1}",
            format_duration(lease.seconds),
            "-" if lease.answers is None else f"{lease.answers:,}",
            "-" if lease.tokens is None else f"{lease.tokens:,}",
            lease.ended,
        )
    return shown


def _ledger() -> Ledger:
    from edgellm.paths import default_paths
    from edgellm.trust.ledger import Ledger

    return Ledger(default_paths().state)
