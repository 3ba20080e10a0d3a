"""Options that several verbs share, each said once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from edgellm.errors import UsageError
from edgellm.types.quantity import parse_duration


class Fabric(StrEnum):
    OVERLAY = "overlay"
    DIRECT = "direct"


class Isolation(StrEnum):
    BWRAP = "bwrap"
    NONE = "none"


class Disaggregate(StrEnum):
    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class KvScope(StrEnum):
    SESSION = "session"
    SWARM = "swarm"
    PUBLIC = "public"


KV_LEAST_PROMPT_TOKENS = 512
"""Where nothing is said, prompts from this length on are shared: for shorter ones the cache costs what it saves."""

KvShare = Annotated[
    bool | None,
    typer.Option(
        "--kv-share/--no-kv-share",
        help="Keep what was computed of prompts on the hosts, encrypted, so that it need not be computed twice. Default: "
        f"where a single question has {KV_LEAST_PROMPT_TOKENS} tokens or more.",
    ),
]
KvScopeOption = Annotated[
    KvScope,
    typer.Option(
        "--kv-scope",
        help="Who can read that. session: you alone. swarm: who has the swarm's secret. public: everybody.",
    ),
]


DisaggregateOption = Annotated[
    Disaggregate,
    typer.Option(
        "--disaggregate",
        help="Have the prompt computed by other hosts than those that answer, at the same time a second cluster. auto: where "
        "it is expected to be faster. always: whenever there are hosts for two.",
    ),
]


def require_disaggregable(disaggregate: Disaggregate, share: bool | None, network: Fabric) -> None:
    """Raises UsageError where prefill and decode cannot be on different hosts."""
    if disaggregate is Disaggregate.NEVER:
        return
    if share is False or network is Fabric.DIRECT:
        cause = "--no-kv-share" if share is False else "--network direct"
        raise UsageError(
            f"--disaggregate {disaggregate} and {cause} exclude each other: the prompt's KV cache goes from hosts to hosts",
            remedy="leave out one of them",
        )


def kv_scope(share: bool | None, scope: KvScope, network: Fabric) -> str | None:
    """The scope as requesters take it; None: nothing is shared. Raises UsageError where it cannot be as asked."""
    if share and network is Fabric.DIRECT:
        raise UsageError(
            "a cluster on a plain network shares no KV cache: whoever reaches the cache's port there can run code by it",
            remedy="leave out --kv-share, or --network direct",
        )
    return None if share is False else scope.value


Bootstrap = Annotated[
    list[str] | None,
    typer.Option(
        "--bootstrap",
        metavar="MULTIADDR",
        help="A peer to join the swarm through, as a host prints it. May be repeated; what worked is remembered.",
    ),
]
Swarm = Annotated[
    str | None,
    typer.Option(
        "--swarm",
        metavar="NAME",
        help="A private swarm that this machine has joined, or open. Default: EDGELLM_SWARM, else the only one joined.",
    ),
]
Mdns = Annotated[
    bool,
    typer.Option("--mdns", help="Also find peers on the local network by multicast, without any address."),
]
Model = Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="The model's name in the swarm.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
TensorParallel = Annotated[
    int | None,
    typer.Option("--tp", min=1, help="Devices of each host that share every layer. Default: planned."),
]
PipelineParallel = Annotated[
    int | None, typer.Option("--pp", min=1, help="Hosts that the layers are spread over. Default: planned.")
]
Peers = Annotated[
    list[str] | None,
    typer.Option(
        "--peers", metavar="PEER", help="Use only these hosts (names or peer ids). May be repeated."
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context", min=1, help="Tokens that prompt and answer may have together. Default: as needed."
    ),
]
MinTokS = Annotated[
    float | None,
    typer.Option(
        "--min-tok-s", min=0.0, metavar="RATE", help="Refuse if fewer tokens a second than this are expected."
    ),
]
MaxLoad = Annotated[
    float | None,
    typer.Option(
        "--max-load",
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Leave out hosts of whose lent memory more than this share is leased now: 0.5 is half of it.",
    ),
]
Spares = Annotated[
    int,
    typer.Option(
        "--spares",
        min=0,
        max=8,
        help="Hosts that stand by, loaded, so that the loss of one is a pause of seconds. They lend as the others do.",
    ),
]
Patience = Annotated[
    str,
    typer.Option(
        "--patience",
        metavar="TIME",
        help="When a host is lost, look so long for others to go on with; 0: the answer fails at once.",
    ),
]
Silence = Annotated[
    str,
    typer.Option(
        "--silence",
        metavar="TIME",
        help="A host that says nothing for so long is taken for lost; three eighths of it while a spare stands by. A dead "
        "process is noticed at once.",
    ),
]


def silence_s(text: str) -> float:
    """Seconds. Raises UsageError for what would take busy hosts for lost ones."""
    seconds = parse_duration(text)
    if not 2 <= seconds <= 600:
        raise UsageError(
            f"--silence {text} is not possible: hosts speak twice in a second", remedy="choose 2s to 10m"
        )
    return seconds


SpotCheck = Annotated[
    float | None,
    typer.Option(
        "--spot-check",
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Have this share of the answers checked: other hosts, which see the prompt then, compute some of the tokens as "
        "well. 0: never. Default: EDGELLM_SPOT_CHECK or 0.02; never where --peers names hosts.",
    ),
]
Network = Annotated[
    Fabric,
    typer.Option(
        "--network",
        help="overlay: through encrypted connections of the cluster's own. direct: plain TCP, for a trusted LAN.",
    ),
]
IsolationOption = Annotated[
    Isolation,
    typer.Option(
        "--isolation", help="bwrap: engines run in a sandbox. none: inside a container that is the fence."
    ),
]
