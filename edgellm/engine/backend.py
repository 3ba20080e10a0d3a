"""What an engine must offer so that a node can run it in cells: `Backend`, and the `MemberSpec` it is asked about.

A backend object is light: the node calls it, so it never imports the engine. It only says which command, which
environment and which files one member of a cluster needs; the command, inside the cell, is the engine.

Every member's command prints events, one JSON object a line, on stdout, and everything else on stderr: `{"event": "phase",
"name": ..., "detail": ...}`, then `{"event": "serving"}` (head: gRPC answers on `socket_path`) or `{"event": "joined"}`
(worker; on standby then `{"event": "warm"}`, once it can run a stage without delay), or `{"event": "failed", "detail": ...}`
before it exits non-zero. A head that notices by itself that a member is lost prints `{"event": "lost", "detail": ...,
"address": ...}` (the address is "" where it is not known) and is then suspended; of one that became far slower than it was,
`{"event": "slow", "detail": ..., "address": ...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

Role = Literal["head", "worker"]
DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class KvSharing:
    """How a member shares its KV cache with other clusters, through its node (`proto/blocks.proto`)."""

    socket_path: str = ""
    """Workers: the Unix socket, as their cell sees it, on which the node serves `edgellm.blocks.v1.Blocks`. Nothing need
    answer there yet; what does not answer is a miss."""
    scope_secret: str = field(default="", repr=False)
    """Workers: the secret of the scope, lower-case hex (`edgellm.kv.scope`)."""
    weights: str = ""
    """Workers: a digest of the model's weights and configuration, the same wherever the model is the same."""
    find_timeout_s: float = 2.0
    """After so long without an answer to Find, the prompt is computed."""
    fetch_timeout_s: float = 10.0
    """What has not come by then is computed."""
    cache_bytes: int = 512 << 20
    """Workers: memory for pieces on their way, besides what the plan counts; also the most KV that one prompt can share."""


@dataclass(frozen=True)
class MemberSpec:
    """One member of a cluster, as its cell sees it."""

    role: Role
    address: str
    """Own IP address in the cluster."""
    head_address: str
    head_port: int
    """TCP port on `head_address` at which members join."""
    cluster_token: str
    """Shared secret of this cluster alone, lower-case hex, at least 32 digits."""
    interface: str = "edge0"
    """Network interface that holds `address`."""
    device_kind: DeviceKind = "cpu"
    devices: tuple[str, ...] = ()
    """Ids of the devices lent (CUDA: index or UUID; CPU: any names, one for each rank). Empty for the head."""
    threads: int = 1
    """CPU threads of this member, shared by its ranks."""
    socket_path: str = ""
    """Head only: the Unix socket on which it serves `edgellm.backend.v1.Backend`."""
    model_path: str = "/model"
    """The model's directory in the cell. The head's holds configuration and tokenizer only."""
    stage_index: int = -1
    """Pipeline stage of a worker, from 0; -1 for the head."""
    standby: bool = False
    """Workers: keep ready what the next rank of each device needs, so that a survivor is quick to be of the next cluster."""
    kv: KvSharing | None = None
    """Set for all members of a cluster that shares its KV cache, and for none of another. A backend may find that it cannot."""


@runtime_checkable
class Backend(Protocol):
    """An engine that registers itself in the entry point group `edgellm.backends`."""

    name: str

    def versions(self) -> Mapping[str, str]:
        """Versions that must agree in a cluster, e.g. `{"vllm": "0.32.0", "ray": ..., "torch": ..., "python": "3.11"}`.

        Raises EngineError when the engine is not installed.
        """
        ...

    def device_kind(self) -> DeviceKind:
        """The kind of device the installed engine was built for. Raises EngineError when none is installed."""
        ...

    def settings(self) -> Mapping[str, str]:
        """What this machine's owner says in the environment about how the engine shall use its devices. Rates are measured
        with them, and cells have them.
        """
        ...

    def command(self, member: MemberSpec) -> tuple[str, ...]:
        """argv to run in the member's cell. Holds no secret."""
        ...

    def environment(self, member: MemberSpec) -> Mapping[str, str]:
        """The complete environment of that command, save PATH."""
        ...

    def read_only_paths(self) -> tuple[Path, ...]:
        """Directories outside the Python environment that the cell must see (a package installed editable)."""
        ...

    def measure_command(self) -> tuple[str, ...]:
        """argv of a program that measures this machine's devices and prints them as one line of JSON on stdout:

        `{"devices": [{"id", "kind", "name", "memory_bytes", "bandwidth_bytes_s", "flops", "kv_layout"}, ...]}`, all that are
        installed.
        It runs once when a host starts (outside any cell: it is our code alone) and may take seconds.
        """
        ...
