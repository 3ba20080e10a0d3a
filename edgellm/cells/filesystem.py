"""Which parts of this machine a cell must see to run Python: found once, before the cell is made."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from edgellm.cells.spec import Mount

BACKEND_ENTRY_POINTS = "edgellm.backends"

# Merged-/usr systems have these as links, others as directories.
_ROOT_DIRECTORIES = ("bin", "sbin", "lib", "lib32", "lib64")

# The linker cache names libraries, the alternatives are links from /usr into /usr. Nothing else of /etc.
_FROM_HOST_ETC = ("/etc/ld.so.cache", "/etc/alternatives")

# What CUDA and NCCL read to find a GPU and the machine's shape.
_FOR_DEVICES = ("/sys/bus/pci", "/sys/class/infiniband", "/sys/module/nvidia")

# A node that runs as root is root to these files inside as well, without any capability, and bwrap leaves some of them
# writable: settings of the kernel, of interrupts, buses and file systems, and what restarts or suspends the machine.
_KERNEL_FILES = ("acpi", "asound", "bus", "driver", "fs", "irq", "mtrr", "scsi", "sys", "sysrq-trigger")

_GENERATED_ETC = {
    "/etc/passwd": "root:x:0:0:cell:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


@dataclass(frozen=True)
class HostView:
    """`mounts` are read-only binds, `links` are (path in the cell, target), `files` path and content; `kernel_files`, in
    /proc, become read-only."""

    mounts: tuple[Mount, ...]
    links: tuple[tuple[Path, str], ...]
    files: tuple[tuple[Path, str], ...]
    kernel_files: tuple[Path, ...] = ()


def host_view(*, with_devices: bool = False) -> HostView:
    """The system libraries, this Python environment, and generated files in place of the host's /etc."""
    paths = [Path("/usr")]
    links = []
    for name in _ROOT_DIRECTORIES:
        path = Path("/") / name
        if path.is_symlink():
            links.append((path, str(path.readlink())))
        elif path.is_dir():
            paths.append(path)
    paths += [Path(name) for name in _FROM_HOST_ETC if Path(name).exists()]
    paths.append(Path("/sys/devices/system"))
    if with_devices:
        paths += [Path(name) for name in _FOR_DEVICES if Path(name).exists()]
        paths += sorted(Path("/sys/devices").glob("pci*"))
    paths += _python_directories()
    files = tuple((Path(path), content) for path, content in _GENERATED_ETC.items())
    kernel_files = tuple(path for name in _KERNEL_FILES if (path := Path("/proc", name)).exists())
    mounts = tuple(Mount(path, path) for path in _without_nested(paths))
    return HostView(mounts, tuple(links), files, kernel_files)


def _python_directories() -> list[Path]:
    """The environment, its base, every installation that `sys.executable` links through, editable packages."""
    found = [Path(sys.prefix), Path(sys.base_prefix), *_executable_prefixes(Path(sys.executable))]
    packages = {"edgellm"}
    for entry_point in importlib.metadata.entry_points(group=BACKEND_ENTRY_POINTS):
        packages.add(entry_point.module.partition(".")[0])
    for package in sorted(packages):
        spec = importlib.util.find_spec(package)
        found += [Path(location) for location in (spec.submodule_search_locations or ())] if spec else []
    return found + [path.resolve() for path in found]


def _executable_prefixes(executable: Path) -> list[Path]:
    prefixes = []
    for _ in range(40):  # MAXSYMLINKS
        # Only .../PREFIX/bin/python counts: another place would open a directory that is not Python's.
        if executable.parent.name == "bin":
            prefixes.append(executable.parent.parent)
        if not executable.is_symlink():
            break
        executable = Path(os.path.normpath(executable.parent / executable.readlink()))
    return prefixes


def _without_nested(paths: list[Path]) -> list[Path]:
    """`paths` sorted, each once, without those that lie under another one."""
    kept: list[Path] = []
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept
