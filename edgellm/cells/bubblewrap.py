"""From a cell's spec to bwrap's command line. Pure: every path was looked up by the caller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgellm.cells.filesystem import HostView
from edgellm.cells.spec import MODEL_PATH, RUNTIME_PATH, CellSpec

TUN_DEVICE = Path("/dev/net/tun")


def bwrap_arguments(
    spec: CellSpec,
    view: HostView,
    command: tuple[str, ...],
    *,
    status_fd: int,
    seccomp_fd: int,
    file_fds: Mapping[Path, int],
) -> tuple[str, ...]:
    """Arguments for `bwrap` (without the program's own name) that run `command` in the cell.

    `status_fd` receives bwrap's JSON status; `seccomp_fd` holds the filter for its own process in the cell, whose memory
    code in the cell can write to, and for all its children; `file_fds` maps each of `view.files` to a readable descriptor
    with its content. The environment is not here: a command line can be read by every user of the machine,
    so it travels as bwrap's own environment.
    """
    words: list[object] = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--hostname", "cell", "--die-with-parent", "--new-session"]
    # Root of the cell's user namespace, because only with uid 0 does bwrap leave the network namespace in that
    # same user namespace. The capabilities serve the network's setup and die in edgellm.cells.fences.
    words += ["--uid", 0, "--gid", 0, "--cap-drop", "ALL", "--cap-add", "CAP_SETPCAP"]
    if spec.fabric == "overlay":
        words += ["--unshare-net", "--cap-add", "CAP_NET_ADMIN"]
    words += ["--json-status-fd", status_fd, "--seccomp", seccomp_fd]

    # First, because an environment in /tmp must lie over it.
    words += ["--perms", "1777", "--size", spec.tmp_bytes, "--tmpfs", "/tmp"]
    for mount in view.mounts:
        words += ["--ro-bind", mount.source, mount.target]
    for path, target in view.links:
        words += ["--symlink", target, path]
    for path, _ in view.files:
        words += ["--perms", "0444", "--ro-bind-data", file_fds[path], path]
    words += ["--proc", "/proc", "--dev", "/dev"]
    for path in view.kernel_files:
        words += ["--ro-bind", path, path]
    words += ["--perms", "1777", "--size", spec.shm_bytes, "--tmpfs", "/dev/shm"]
    devices = (TUN_DEVICE, *spec.devices) if spec.fabric == "overlay" else spec.devices
    for device in devices:
        words += ["--dev-bind", device, device]
    for mount in spec.read_only:
        words += ["--ro-bind", mount.source, mount.target]
    if spec.model_directory is not None:
        words += ["--ro-bind", spec.model_directory, MODEL_PATH]
    words += ["--bind" if spec.writes_runtime else "--ro-bind", spec.runtime_directory, RUNTIME_PATH]
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--", *command]
    return tuple(str(word) for word in words)
