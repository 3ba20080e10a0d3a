"""What can be said of a session that is to be opened, and the order that its daemon gets. Pure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from edgellm.errors import UsageError
from edgellm.gateway.guard import require_key
from edgellm.sessions.daemon_order import Order

if TYPE_CHECKING:
    from edgellm.sessions.client import ProgressLine

IDLE_S = 900.0
SEQUENCES = 8
PATIENCE_S = 600.0
TIMEOUT_S = 3600.0
_LONGEST_S = 10 * 365 * 86400.0


class SessionOptions(TypedDict, total=False):
    """All may be left out."""

    bootstrap: Sequence[str]
    """Addresses of peers to join the swarm through, as a host prints them. Default: those of EDGELLM_BOOTSTRAP, else those that
    worked the last time."""
    swarm: str
    """A private swarm that this machine has joined, or "open". Default: EDGELLM_SWARM, else the only one joined."""
    mdns: bool
    """Also find peers on the local network by multicast. Default: False."""
    min_tok_s: float | None
    """Refuse, by a PlanError that says what is expected, rather than answer at fewer tokens a second. It is compared with the
    planner's prediction for one sequence, not measured."""
    max_load: float | None
    """Leave out hosts whose load is above this, 0 to 1. A host's load is the share of the memory it lends that is leased now,
    as it says itself; 1 where it grants no further lease. It tells nothing of what else runs on that machine."""
    spares: int
    """Hosts that stand by, loaded, so that the loss of one is a pause of seconds. Default: 0."""
    patience_s: float
    """How long others are looked for when a host is lost, before requests fail. Default: 600."""
    spot_check: float | None
    """The share of answers, 0 to 1, of which other hosts, which see the prompt then, compute some tokens as well. Default:
    that of EDGELLM_SPOT_CHECK, else 0.02; 0 where `peers` names hosts."""
    tp: int | None
    """Devices of each host that share every layer. Default: planned."""
    pp: int | None
    """Hosts that the layers are spread over. Default: planned."""
    peers: Sequence[str]
    """Use only these hosts, by name or peer id."""
    context: int | None
    """Tokens that a prompt and its answer may have together. Default: 4096, or the model's own where that is less."""
    sequences: int
    """Answers of full length that the KV cache holds at once, and that are computed at once; others wait. Default: 8."""
    idle_s: float
    """The session closes itself after so many seconds without a request; 0: never. Default: 900."""
    name: str | None
    """Of the session, for the command line. Default: made up."""
    network: Literal["overlay", "direct"]
    """direct: plain TCP, for a LAN you trust. Default: overlay."""
    isolation: Literal["bwrap", "none"]
    """none: where a container is the fence. Default: bwrap."""
    kv_scope: Literal["session", "swarm", "public"] | None
    """Keep what is computed of prompts on the hosts, encrypted, and who can read it. Default: None, keep nothing."""
    port: int
    """Of the endpoint on 127.0.0.1. Default: any that is free."""
    api_key: str | None
    """What clients of the endpoint must say; this one needs none. Default: nothing."""
    timeout_s: float
    """How long one answer may take, waiting for its turn included. Default: 3600."""
    on_progress: Callable[[ProgressLine], object] | None
    """Called with each step of the bring-up: an object with `who`, `phase`, `detail`, and `at` in Unix seconds."""


def require_known(options: Mapping[str, Any], whose: str) -> None:
    """Raises UsageError for an option that there is not."""
    if unknown := options.keys() - SessionOptions.__annotations__.keys():
        raise UsageError(
            f"{whose} takes no {', '.join(sorted(unknown))}",
            remedy=f"it takes {', '.join(SessionOptions.__annotations__)}",
        )


def order_of(
    model: str,
    options: SessionOptions,
    *,
    name: str,
    directory: str,
    bootstrap: tuple[str, ...],
    owner: tuple[int, float],
    swarm: str = "",
) -> Order:
    """What the daemon is told: `swarm` is the private one that was chosen, `owner` the pid and start of the process that the
    session is for.

    Raises UsageError for a value that cannot be.
    """
    kv_scope, network = options.get("kv_scope"), options.get("network", "overlay")
    isolation = options.get("isolation", "bwrap")
    _one_of("network", network, "overlay", "direct")
    _one_of("isolation", isolation, "bwrap", "none")
    _one_of("kv_scope", kv_scope, None, "session", "swarm", "public")
    if kv_scope and network == "direct":
        raise UsageError(
            "a cluster on a plain network shares no KV cache: whoever reaches the cache's port there can run code by it",
            remedy="leave out kv_scope, or network",
        )
    for key in ("tp", "pp", "context", "sequences"):
        _whole(key, options.get(key), least=1)
    _whole("spares", options.get("spares"), least=0, most=8)
    _number("patience_s", options.get("patience_s"), most=_LONGEST_S)
    _whole("port", options.get("port"), least=0, most=65535)
    _number("min_tok_s", options.get("min_tok_s"))
    _number("max_load", options.get("max_load"), most=1.0)
    _number("spot_check", options.get("spot_check"), most=1.0)
    _number("idle_s", options.get("idle_s"), most=_LONGEST_S)
    require_key(options.get("api_key"))
    return Order(
        name=name,
        model=model,
        directory=directory,
        bootstrap=bootstrap,
        mdns=options.get("mdns", False),
        idle_s=options.get("idle_s", IDLE_S),
        isolation=isolation,
        tensor_parallel=options.get("tp"),
        pipeline_parallel=options.get("pp"),
        peers=texts("peers", options.get("peers", ())),
        fabric=network,
        context=options.get("context"),
        sequences=options.get("sequences", SEQUENCES),
        kv_scope=kv_scope,
        port=options.get("port", 0),
        api_key=options.get("api_key"),
        min_tok_s=options.get("min_tok_s"),
        max_load=options.get("max_load"),
        spot_check=options.get("spot_check"),
        spares=options.get("spares", 0),
        patience_s=options.get("patience_s", PATIENCE_S),
        owner_pid=owner[0],
        owner_started=owner[1],
        swarm=swarm,
    )


def texts(key: str, value: Sequence[str]) -> tuple[str, ...]:
    """A list of texts. A text is one as well, of letters, and never what is meant: raises UsageError."""
    if isinstance(value, str) or not all(isinstance(entry, str) for entry in value):
        raise UsageError(f"{key} must be a list of texts, not {value!r}", remedy=f"{key}=[…]")
    return tuple(value)


def timeout_of(options: SessionOptions) -> float:
    """Raises UsageError for a value that cannot be."""
    timeout_s = options.get("timeout_s", TIMEOUT_S)
    _number("timeout_s", timeout_s, most=_LONGEST_S)
    if not timeout_s:
        raise UsageError(f"timeout_s must be above 0, not {timeout_s!r}", remedy="leave it out, for an hour")
    return timeout_s


def _one_of(key: str, value: object, *allowed: object) -> None:
    if value not in allowed:
        raise UsageError(
            f"{key} cannot be {value!r}", remedy=f"choose one of {', '.join(map(repr, allowed))}"
        )


def _whole(key: str, value: object, *, least: int, most: int = 1 << 31) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"{key} must be a whole number from {least} on, not {value!r}")


def _number(key: str, value: object, *, most: float = sys.float_info.max) -> None:
    if value is None:
        return
    number = cast(float, value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= number <= most:
        between = f"from 0 to {most:.10g}" if most < sys.float_info.max else "0 or more and finite"
        raise UsageError(f"{key} must be {between}, not {value!r}")
