"""What the console shows and what it is asked, as it travels in JSON.

Sizes are in bytes (`_bytes`), times in seconds (`_s`), instants are Unix seconds (`_at`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from edgellm.errors import EdgeError
from edgellm.types.quantity import parse_bytes


class View(BaseModel):
    """Something shown."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Asked(BaseModel):
    """The body of a request. A name that is not known is a mistake, and not left out quietly; a number is no text."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)


# --- errors ------------------------------------------------------------------------------------------------------


class Problem(View):
    """Something that went wrong, for people."""

    message: str
    remedy: str = ""
    """What to do; empty where nothing helps."""
    type: str
    """For programs: "usage", "session", "discovery", ..."""


class ErrorBody(View):
    """The body of every answer from 400 on."""

    error: Problem


# --- the swarm ---------------------------------------------------------------------------------------------------


class Device(View):
    id: str
    kind: str
    """ "cpu" or "cuda"."""
    name: str
    free_memory_bytes: int
    bandwidth_bytes_s: float
    flops: float
    free: bool
    """Not leased now."""


class Engine(View):
    backend: str
    device_kind: str
    versions: dict[str, str]


class Offer(View):
    """A model that a host has."""

    name: str
    digest: str
    layers: int
    weights_bytes: int
    max_context: int


class Peer(View):
    """A host that answered the last look."""

    peer: str
    """Its libp2p id."""
    name: str
    addresses: list[str]
    engine: Engine
    devices: list[Device]
    free_memory_bytes: int
    free_leases: int
    draining: bool
    fabrics: list[str]
    models: list[Offer]
    round_trip_s: float
    """From here to it and back, with its answer."""
    expires_at: float
    host: str | None = None
    """The id of the host below /api/v1/hosts, where it was started from here."""


class ModelEntry(View):
    """One version of one model, and who hosts it."""

    name: str
    digest: str
    layers: int
    weights_bytes: int
    max_context: int
    hosts: list[str]
    """Names."""
    free_memory_bytes: int


class Refused(View):
    """Hosts that are listed and not shown."""

    reason: str
    """ "unreachable", "expired", "forged", ..."""
    count: int


class Happening(View):
    """A peer that came or went."""

    at: float
    what: Literal["joined", "left"]
    peer: str
    name: str


class Swarm(View):
    """The last look at the swarm."""

    peers: list[Peer]
    models: list[ModelEntry]
    """By name; where there are very many, those that most hosts have."""
    more_models: int = 0
    """How many there are besides."""
    refused: list[Refused]
    seen_at: float | None
    """When; None before the first look."""
    problem: Problem | None = None
    """Why the swarm cannot be looked at, and nobody is shown. It is tried again."""
    join: list[str] = []
    """Addresses for `--bootstrap` through which others join the swarm that this console is in."""
    recent: list[Happening] = []
    """The last ones while somebody watched, oldest first."""


class PeerEvent(View):
    """Data of `joined`, `left` and `changed`: the peer as it is (or was last)."""

    peer: Peer
    seen_at: float


# --- sessions ----------------------------------------------------------------------------------------------------

SessionState = Literal["starting", "ready", "swapping", "recovering", "closing", "failed"]


class Stage(View):
    """One pipeline stage of a session: a host and its run of layers [first_layer, end_layer)."""

    stage: int
    """From 0, in the order in which a token passes."""
    peer: str
    name: str
    first_layer: int
    end_layer: int
    latency_s: float | None = None
    """Round trip from here to that peer, as the swarm's watcher saw it last; None where it did not."""


class KvHolder(View):
    """A host whose KV blocks a session used."""

    peer: str
    name: str
    tokens: int


class Session(View):
    name: str
    model: str
    state: SessionState
    detail: str = ""
    """What a session that is not ready is at."""
    opened_at: float | None = None
    closes_at: float | None = None
    """When it closes if nothing is asked; None while a request runs, and for never."""
    running_requests: int = 0
    endpoint: str = ""
    """Of OpenAI's API, such as http://127.0.0.1:8000/v1."""
    tensor_parallel: int = 0
    context: int = 0
    """Tokens that prompt and answer may have together; 0 while it is not known."""
    digest: str = ""
    predicted_prefill_tok_s: float = 0.0
    stages: list[Stage] = []
    shares_kv: bool = False
    kv_holders: list[KvHolder] = []
    failure: Problem | None = None
    """Of a session that failed. DELETE takes it out of the list."""
    swapping_to: str = ""
    """The model that a swap is bringing up."""
    swap_failure: Problem | None = None
    """Why the last swap that was asked for here failed; the session answers as before."""


class Sessions(View):
    sessions: list[Session]


class ProgressLine(View):
    """Something that happened while a session was brought up; data of `progress`."""

    at: float
    who: str
    """ "head", a host's name, or nobody in particular ("")."""
    phase: str
    detail: str = ""


_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
# Printable, and nothing that a command line would take for an option or end at.
_Word = Annotated[
    str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9._/~][A-Za-z0-9._/~+@:=, -]*$")
]


def _whole(value: object) -> object:
    """JSON makes no difference between 4 and 4.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Few = Annotated[int, Field(ge=1, le=4096), BeforeValidator(_whole)]
_Many = Annotated[int, Field(ge=1, le=1 << 24), BeforeValidator(_whole)]


class NewSession(Asked):
    """Body of POST /api/v1/sessions: as the options of `edgellm session open`."""

    model: _Word
    name: _Name | None = None
    """None: made up."""
    idle_s: float = Field(default=900.0, ge=0, le=365 * 86400)
    """Closes after so long without a request; 0: never."""
    tp: _Few | None = None
    pp: _Few | None = None
    peers: list[_Word] = Field(default=[], max_length=256)
    """Names or peer ids; only these are used where there are any."""
    context: _Many | None = None
    sequences: _Few = 4
    kv_share: bool = False


class Swap(Asked):
    """Body of POST /api/v1/sessions/{name}/swap."""

    model: _Word


class ChatBody(BaseModel):
    """Body of a chat: OpenAI's, without a model. What else it holds reaches the engine as it is."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=4096)
    stream: bool = False


class StageTiming(View):
    stage: int
    address: str = ""
    """In the cluster."""
    peer: str = ""
    name: str = ""
    first_layer: int | None = None
    end_layer: int | None = None
    prefill_s: float | None = None
    """What this stage computed within this request."""
    decode_s: float | None = None


class NetworkTiming(View):
    """What no stage computed: scheduling and transport."""

    prefill_s: float | None = None
    decode_s: float | None = None


def _perhaps_unknown(value: object) -> object:
    """Engines say null where steps did not tell what their stages computed."""
    return NetworkTiming() if value is None else value


class Timings(View):
    """Where the time of one answer went. A figure is None while it is not known."""

    request_id: str
    model: str = ""
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    output_tokens: int | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    token_s: list[float] = []
    """Since the request arrived, when each piece of the answer left the engine."""
    stages: list[StageTiming] = []
    network_s: Annotated[NetworkTiming, BeforeValidator(_perhaps_unknown)] = NetworkTiming()


# --- hosts on this machine -----------------------------------------------------------------------------------------

HostState = Literal["starting", "ready", "paused", "stopping", "ended"]


class Host(View):
    """A host that was started from here."""

    id: str
    name: str
    model: str
    memory_bytes: int
    """That it lends at most."""
    state: HostState
    detail: str = ""
    """The last line it said."""
    peer: str = ""
    """Its libp2p id, once it is ready."""
    address: str = ""
    """For `--bootstrap`, once it is ready."""
    started_at: float
    status: int | None = None
    """Of its process, once it has ended."""
    failure: Problem | None = None
    """Why it ended by itself."""


class Hosts(View):
    hosts: list[Host]
    offered: bool
    """Whether hosts can be started from here; a console of a session's daemon starts none."""


class HostLog(View):
    lines: list[str]
    """The last ones, oldest first."""


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return _whole(value)
    try:
        return parse_bytes(value)
    except EdgeError as error:
        raise ValueError(str(error)) from error


MAX_MEMORY_BYTES = 1 << 50
Bytes = Annotated[
    int,
    Field(ge=1, le=MAX_MEMORY_BYTES),
    BeforeValidator(_bytes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_MEMORY_BYTES},
                {"type": "string", "pattern": r"^[1-9][0-9]{0,3}(\.[0-9])?(MiB|GiB|MB|GB)$"},
            ],
            "examples": ["4GiB", 4294967296],
        },
        mode="validation",
    ),
]
"""Bytes as a number, or as people write them."""


class NewHost(Asked):
    """Body of POST /api/v1/hosts: as the options of `edgellm host`."""

    model: _Word
    """A directory of this machine or a Hugging Face id."""
    memory_bytes: Bytes
    name: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9._ -]*$")
    """What others see; "": made up."""
    devices: str | None = Field(default=None, pattern=r"^[0-9]{1,3}(,[0-9]{1,3}){0,15}$")
    """GPUs to lend, as 0,2; on a CPU, how many devices it counts as."""
    threads: _Few | None = None


# --- this machine --------------------------------------------------------------------------------------------------


class Kv(View):
    """What this machine keeps of KV caches, as `edgellm kv stat --json`."""

    held_records: int
    known_records: int
    known_holders: int
    figures: dict[str, float]


class Check(View):
    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


class Doctor(View):
    """As `edgellm doctor --json`."""

    ok: bool
    checks: list[Check]


class Version(View):
    version: str
    starts_hosts: bool
    session: str | None = None
    """The session whose daemon serves this; None: `edgellm console` does."""


class Health(View):
    status: Literal["ok"] = "ok"


class Login(Asked):
    """Body of POST /api/v1/login, where a token is demanded: the answer sets a cookie."""

    token: str = Field(min_length=1, max_length=512)
