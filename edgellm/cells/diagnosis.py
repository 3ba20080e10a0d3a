"""Why a cell could not be made and what mends it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from edgellm.cells.bubblewrap import TUN_DEVICE
from edgellm.cells.spec import CellSpec
from edgellm.errors import CellError

_SYSCTL = Path("/proc/sys")
_USER_NAMESPACES = (
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("user/max_user_namespaces", "0", "15000"),
)
# bwrap 0.4 to 0.11 and the kernel's own words
_NAMESPACE_REFUSED = ("namespace", "uid map", "No permissions to creat")


def missing_requirement(spec: CellSpec, bwrap: str | None) -> CellError | None:
    """What this machine lacks before anything is started, or None. `bwrap` is the program's path."""
    if spec.isolation == "bwrap" and bwrap is None:
        return CellError("bubblewrap is not installed", remedy="apt install bubblewrap")
    if spec.fabric == "overlay" and not TUN_DEVICE.exists():
        return CellError(f"{TUN_DEVICE} does not exist", remedy="modprobe tun")
    if spec.fabric == "overlay" and not os.access(TUN_DEVICE, os.R_OK | os.W_OK):
        return CellError(f"{TUN_DEVICE} may not be opened", remedy=f"chmod 666 {TUN_DEVICE}")
    for path in (spec.runtime_directory, spec.model_directory, *(mount.source for mount in spec.read_only)):
        if path is not None and not path.exists():
            return CellError(f"{path} does not exist, so a cell cannot see it")
    return None


def explain_failure(spec: CellSpec, said: str, event: Mapping[str, object] | None) -> CellError:
    """The error for a cell that ended before it was ready.

    `said` is what bwrap and the cell's first program wrote to stderr, `event` that program's "cell_failed".
    """
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    if event is None:
        if any(words in said for words in _NAMESPACE_REFUSED):
            return CellError(f"This machine refuses a user namespace: {last}", remedy=_namespace_remedy())
        return CellError(f"The cell could not be made: {last}", remedy="run `edgellm doctor`")
    reason = str(event.get("reason"))
    match event.get("step"):
        case "network" if "nft" in reason:
            return CellError(f"The cell's redirect could not be set: {reason}", remedy="apt install nftables")
        case "network" if spec.isolation == "none":
            return CellError(
                f"Without isolation there is no overlay here: {reason}",
                remedy="use --network direct, or let the container make network namespaces",
            )
        case "network":
            return CellError(f"The cell's network could not be made: {reason}", remedy="run `edgellm doctor`")
        case "engine":
            return CellError(f"The engine's program did not start: {reason}")
        case step:
            return CellError(f"The cell's {step} could not be made: {reason}", remedy="run `edgellm doctor`")


def _namespace_remedy() -> str:
    for name, closed, opened in _USER_NAMESPACES:
        path = _SYSCTL / name
        if path.exists() and path.read_text(encoding="ascii").strip() == closed:
            return f"sysctl {name.replace('/', '.')}={opened}"
    return (
        "allow user namespaces (in a container: --security-opt seccomp=unconfined), or use --isolation none"
    )
