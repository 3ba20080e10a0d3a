"""What a cell is to be. Pure data; `edgellm.cells.cell.open_cell` makes it real."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgellm.errors import CellError

RUNTIME_PATH = Path("/run/edgellm")
MODEL_PATH = Path("/model")

# AF_UNIX paths hold 108 bytes including the terminating zero (unix(7)); leave room for "/overlay.sock".
_LONGEST_RUNTIME_DIRECTORY = 90

Fabric = Literal["overlay", "direct"]
Isolation = Literal["bwrap", "none"]


@dataclass(frozen=True)
class Mount:
    """A host directory or file and where the cell sees it."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Limits:
    """What a cell may take of its machine, all its processes together."""

    memory_bytes: int | None = None
    """Main memory, with what lies in /tmp and /dev/shm. None: what the machine has."""
    processes: int = 4096
    """Threads count as well."""
    cpus: int | None = None
    """None: all, behind what the machine's owner runs. Needs a cgroup."""


@dataclass(frozen=True)
class CellSpec:
    """One cell.

    `argv` is the engine's command line as seen inside; `environment` is all of its environment (nothing is
    inherited from the node, see `cell.default_environment`). `runtime_directory` is a host directory that the
    cell sees at `runtime_path`, writable if `writes_runtime`; `model_directory` appears read-only at `model_path`. With fabric
    "overlay" the cell has a network of its own with `address` and nothing else; with "direct" it has the
    host's. With isolation "none" there is no sandbox: the caller's container is the fence.
    """

    argv: tuple[str, ...]
    runtime_directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    read_only: tuple[Mount, ...] = ()
    model_directory: Path | None = None
    address: str | None = None
    subnet: str = "10.88.0.0/16"
    devices: tuple[Path, ...] = ()
    fabric: Fabric = "overlay"
    isolation: Isolation = "bwrap"
    nice: int = 5
    limits: Limits = Limits()
    writes_runtime: bool = False
    shm_bytes: int = 8 << 30
    tmp_bytes: int = 8 << 30

    def __post_init__(self) -> None:
        if not self.argv:
            raise CellError("A cell needs a command to run")
        if len(str(self.runtime_directory)) > _LONGEST_RUNTIME_DIRECTORY:
            raise CellError(
                f"The runtime directory {self.runtime_directory} is too long for Unix sockets",
                remedy=f"set XDG_RUNTIME_DIR or TMPDIR to a path under {_LONGEST_RUNTIME_DIRECTORY} characters",
            )
        if self.fabric == "overlay":
            if self.address is None:
                raise CellError("A cell on the overlay needs an address")
            if ipaddress.IPv4Address(self.address) not in ipaddress.IPv4Network(self.subnet):
                raise CellError(f"The cell's address {self.address} is not in its subnet {self.subnet}")

    @property
    def runtime_path(self) -> Path:
        """Where the code in the cell sees `runtime_directory`."""
        return RUNTIME_PATH if self.isolation == "bwrap" else self.runtime_directory

    @property
    def model_path(self) -> Path | None:
        """Where the code in the cell sees `model_directory`."""
        if self.model_directory is None or self.isolation == "none":
            return self.model_directory
        return MODEL_PATH
