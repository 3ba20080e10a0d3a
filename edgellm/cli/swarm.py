"""`edgellm swarm`: private swarms, into which only members are let."""

from __future__ import annotations

import secrets
import socket
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgellm.cli import _options as options
from edgellm.cli._output import say
from edgellm.errors import UsageError

if TYPE_CHECKING:
    from edgellm.swarms.store import SwarmHome

app = typer.Typer(help="Private swarms, into which only members are let.", no_args_is_help=True)

_ROLES = {"host": ("host",), "requester": ("requester",), "both": ("host", "requester")}
_WIDTH = 200
_MOST_EXPIRY_S = 365 * 86400.0

Which = Annotated[
    str | None,
    typer.Option("--swarm", metavar="NAME", help="Which one, where this machine is in several."),
]
Who = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="What its maker sees of you. Default: this machine's name."),
]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What you call it.")],
    who: Who = None,
) -> None:
    """Make a private swarm. This machine keeps its root key, which signs every membership: keep a copy of it.

    Example:

      edgellm swarm create lab
    """
    from edgellm.paths import default_paths
    from edgellm.swarms.store import make_swarm

    home = make_swarm(default_paths(), name, _own_name(who))
    say(f"[bold green]swarm {escape(name)}[/] is made; this machine is its maker and first member")
    say(f"  id       {home.record().swarm}")
    say(f"  keys     {escape(str(home.directory))} (keep a copy: without root.key nobody can be invited)")
    say(
        f"next, here: [bold]edgellm host --swarm {name} --model …[/] or [bold]edgellm bootstrap --swarm {name}[/]"
    )
    say(f"then:       [bold]edgellm swarm invite --swarm {name}[/]")


@app.command("invite")
def invite(
    swarm: Which = None,
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="For how long it can be used: 90m, 12h, 7d.")
    ] = "7d",
    role: Annotated[
        str, typer.Option("--role", metavar="ROLE", help="host (may lend), requester (may ask) or both.")
    ] = "both",
    uses: Annotated[
        int, typer.Option("--uses", min=1, max=10_000, help="How many machines can join by it.")
    ] = 1,
    address: Annotated[
        list[str] | None,
        typer.Option(
            "--address",
            metavar="MULTIADDR",
            help="Where this machine is reached, without /p2p. Default: where its node of the swarm was last.",
        ),
    ] = None,
) -> None:
    """Print an invite: whoever has it can join. Give it to one person, on a channel that nobody else reads.

    It is redeemed by this machine: `edgellm host` or `edgellm bootstrap` must run here in the swarm when somebody joins.

    Examples:

      edgellm swarm invite --expires 1h

      edgellm swarm invite --role requester --uses 20 --expires 30d
    """
    from edgellm.swarms.invite import MAX_ADDRESSES, Invite, token_of, written

    home = _chosen(swarm)
    if role not in _ROLES:
        raise UsageError(f"{role!r} is no role", remedy="say --role host, requester or both")
    lasts_s = parse_expiry(expires)
    root, record, now = home.root(), home.record(), time.time()
    own = tuple(one.rpartition("/p2p/")[0] for one in home.addresses())
    addresses = tuple(_checked_address(one) for one in address or own)[:MAX_ADDRESSES]
    if not addresses:
        raise UsageError(
            f"no node of this machine has run in {home.name} yet, so nobody could redeem an invite",
            remedy=f"first run here, and leave running: edgellm bootstrap --swarm {home.name} (or edgellm host)",
        )
    made = Invite(
        swarm=record.swarm,
        name=home.name,
        id=secrets.token_hex(8),
        roles=frozenset(_ROLES[role]),
        uses=uses,
        expires_at=now + lasts_s,
        issuer=record.issuer,
        addresses=addresses,
    )
    with home.changing_ledger() as ledger:
        home.keep_ledger(ledger.with_invite(made, now))
    print(written(token_of(root, made)))
    say(
        f"[dim]invite {made.id} to {escape(home.name)}: {role}, {uses} use{'s' * (uses != 1)}, until "
        f"{_when(made.expires_at)}; they type[/] edgellm swarm join TOKEN"
    )
    say(f"[dim]take it back with[/] edgellm swarm revoke {made.id}")


@app.command("join")
def join(
    token: Annotated[
        str,
        typer.Argument(help="The invite. -: read from standard input, so that other users do not see it."),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="What you call the swarm here. Default: as its maker does.")
    ] = None,
    who: Who = None,
) -> None:
    """Join a private swarm by an invite.

    Examples:

      edgellm swarm join edgellm1…

      wl-paste | edgellm swarm join -
    """
    from edgellm.cli._run import run_interruptibly
    from edgellm.paths import default_paths
    from edgellm.swarms.invite import read
    from edgellm.swarms.join import join_swarm

    text = sys.stdin.read(4096) if token == "-" else token
    presented, paths = read(text), default_paths()
    homes: list[SwarmHome] = []

    async def work() -> None:
        homes.append(await join_swarm(presented, paths, _own_name(who), name))

    run_interruptibly(work)
    home = homes[0]
    certificate = home.certificate()
    say(
        f"[bold green]joined {escape(home.name)}[/] as {escape(certificate.name)}, may {_may(certificate.roles)}"
    )
    say(f"  member   {certificate.subject}")
    say(f"  until    {_when(certificate.expires_at)}; renews itself while it is used")
    if "requester" in certificate.roles:
        say(f"who lends there: [bold]edgellm peers --swarm {home.name}[/]")
    else:
        say(f"lend there: [bold]edgellm host --swarm {home.name} --model …[/]")


@app.command("list")
def list_(as_json: options.Json = False) -> None:
    """Show the private swarms that this machine is in."""
    import json

    from edgellm.paths import default_paths
    from edgellm.swarms.store import swarms_of

    entries: list[dict[str, object]] = []
    told: list[tuple[str, str]] = []
    for home in swarms_of(default_paths()):
        certificate = home.certificate()
        is_revoked = certificate.subject in home.revocations().peers
        told.append((_may(certificate.roles), _when(certificate.expires_at)))
        entries.append(
            {
                "name": home.name,
                "id": certificate.swarm,
                "member": certificate.subject,
                "roles": sorted(certificate.roles),
                "maker": home.is_makers,
                "state": _state(certificate.expires_at, is_revoked=is_revoked),
                "expires_at": certificate.expires_at,
            }
        )
    if as_json:
        print(json.dumps(entries, ensure_ascii=False))
        return
    if not entries:
        say("this machine is in no private swarm")
        return
    shown = _table("NAME", "ID", "MEMBER", "MAY", "MAKER", "STATE", "UNTIL")
    for entry, (may, until) in zip(entries, told, strict=True):
        shown.add_row(
            str(entry["name"]),
            f"…{str(entry['id'])[-8:]}",
            f"…{str(entry['member'])[-8:]}",
            may,
            "yes" if entry["maker"] else "",
            str(entry["state"]),
            until,
        )
    _print(shown)


@app.command("members")
def members(swarm: Which = None, as_json: options.Json = False) -> None:
    """Show who is a member, and the invites; on the machine that made the swarm."""
    import json

    import msgspec

    home = _chosen(swarm)
    ledger, now = home.ledger(), time.time()
    if as_json:
        print(json.dumps(msgspec.to_builtins(ledger), ensure_ascii=False))
        return
    shown = _table("NAME", "PEER", "MAY", "STATE", "SINCE", "UNTIL", "BY INVITE")
    for member in ledger.members:
        shown.add_row(
            escape(member.name),
            member.peer,
            _may(frozenset(member.roles)),
            _state(member.expires_at, is_revoked=bool(member.revoked_at)),
            _when(member.joined_at),
            _when(member.expires_at),
            member.invite or "maker",
        )
    _print(shown)
    invites = _table("INVITE", "MAY", "USED", "STATE", "UNTIL")
    for issued in ledger.invites:
        used = f"{len(issued.used_by)} of {issued.uses}"
        may = _may(frozenset(issued.roles))
        invites.add_row(issued.id, may, used, issued.state(now), _when(issued.expires_at))
    if ledger.invites:
        _print(invites)


@app.command("revoke")
def revoke(
    what: Annotated[str, typer.Argument(metavar="PEER|INVITE", help="As `edgellm swarm members` shows it.")],
    swarm: Which = None,
) -> None:
    """End a membership, or take an invite back; on the machine that made the swarm.

    The nodes of this machine tell all others, which end connections and leases of a revoked member at once. Who has joined by
    an invite stays a member when the invite is revoked.
    """
    home = _chosen(swarm)
    ledger = home.ledger()
    if (issued := ledger.invite(what)) is not None:
        with home.changing_ledger() as current:
            home.keep_ledger(current.revoke_invite(what))
        say(f"nobody can join by {what} any more")
        for peer in issued.used_by:
            say(f"  has joined by it: {peer}  (edgellm swarm revoke {peer})")
        return
    tail = what.removeprefix("…")
    found = [member for member in ledger.members if len(tail) >= 8 and member.peer.endswith(tail)]
    if len(found) != 1:
        raise UsageError(
            f"{what!r} is no member and no invite of {home.name}", remedy="edgellm swarm members shows both"
        )
    (member,) = found
    if member.peer == home.record().issuer:
        raise UsageError(
            "this machine made the swarm: its own membership cannot be revoked", remedy="edgellm swarm leave"
        )
    home.revoke(member.peer)
    say(f"{escape(member.name)} ({member.peer}) is a member no longer")
    say("[dim]a node of this machine in the swarm tells the others within seconds, or when one runs next[/]")


@app.command("leave")
def leave(
    name: Annotated[str | None, typer.Argument(help="The swarm. Default: the only one.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Also where this machine made it, and nobody can be invited then.")
    ] = False,
) -> None:
    """Take a private swarm off this machine: its keys and the membership are deleted."""
    home = _chosen(name)
    if home.is_makers and not yes:
        raise UsageError(
            f"this machine made {home.name}: without its root key nobody can be invited or revoked, and all memberships end "
            "within 30 days",
            remedy=f"copy {home.directory} elsewhere if you may want it again, then: edgellm swarm leave {home.name} --yes",
        )
    home.forget()
    say(f"left {home.name}: its keys are deleted from this machine")


def parse_expiry(text: str) -> float:
    """Seconds in 90s, 15m, 2h or 7d. Raises UsageError for anything else, nothing, or more than a year."""
    import re

    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]] if found else 0
    if not 0 < seconds <= _MOST_EXPIRY_S:
        raise UsageError(f"{text!r} is no time for an invite", remedy="write for example 90m, 12h or 7d")
    return float(seconds)


def _chosen(said: str | None) -> SwarmHome:
    from edgellm.paths import default_paths
    from edgellm.swarms.chosen import chosen_swarm

    home = chosen_swarm(said, default_paths())
    if home is None:
        raise UsageError(
            "this machine is in no private swarm",
            remedy="edgellm swarm create NAME, or edgellm swarm join TOKEN",
        )
    return home


def _checked_address(address: str) -> str:
    from multiaddr import Multiaddr

    try:
        return str(Multiaddr(address.rpartition("/p2p/")[0] or address))
    except ValueError:
        raise UsageError(f"{address!r} is no address", remedy="write it as /ip4/192.0.2.7/tcp/4001") from None


def _own_name(said: str | None) -> str:
    from edgellm.swarms.certificate import MAX_NAME, checked_name

    return checked_name(said if said is not None else socket.gethostname()[:MAX_NAME])


def _may(roles: frozenset[str]) -> str:
    return " and ".join(word for role, word in (("host", "lend"), ("requester", "ask")) if role in roles)


def _state(expires_at: float, *, is_revoked: bool) -> str:
    if is_revoked:
        return "revoked"
    return "member" if expires_at > time.time() else "expired"


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _table(*columns: str) -> Table:
    shown = Table(box=None, header_style="bold")
    for column in columns:
        shown.add_column(column, no_wrap=True)
    return shown


def _print(shown: Table) -> None:
    # As wide as it is, whatever the terminal: ids are there to be copied.
    Console(width=_WIDTH, highlight=False).print(shown)
