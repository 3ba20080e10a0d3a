"""What any program needs of a machine, and this one more of: space, memory, open files, the time, its own files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from edgellm.doctor.check import Check, Examination, fail, ok, warn
from edgellm.doctor.system import System
from edgellm.errors import UsageError
from edgellm.paths import Paths

GIB = 1 << 30
LEAST_DISK_BYTES = 2 * GIB
"""For state, caches and what an engine compiles; models need their own size on top."""
LEAST_SHM_BYTES = 512 << 20
"""Containers give 64 MiB, with which tensor parallel ranks that share one die."""
LEAST_MEMORY_BYTES = 3 * GIB
"""An engine's own processes before any weights: the head's two and one rank, about 1 GiB each."""
LEAST_OPEN_FILES = 1024
_RELEASED = 2026


def check_machine(system: System, _examination: Examination) -> Iterator[Check]:
    """Directories and disks, the identity file, /dev/shm, memory, open files, the clock."""
    try:
        paths = system.paths()
    except UsageError as error:
        yield fail("directories", str(error), error.remedy)
    else:
        yield from _disks(system, paths)
        yield _identity(system, paths.identity)
    yield _shared_memory(system)
    yield _memory(system)
    yield _open_files(system)
    yield _clock(system)


def _disks(system: System, paths: Paths) -> Iterator[Check]:
    temporary = Path(tempfile.gettempdir())
    for name, directory in (("state", paths.state), ("cache", paths.cache), ("temporary", temporary)):
        title = f"disk ({name})"
        free_bytes = system.free_bytes(str(directory))
        move = "set TMPDIR" if directory is temporary else "set EDGELLM_HOME"
        # First: a full disk refuses to be written to as well.
        if free_bytes < LEAST_DISK_BYTES:
            yield fail(
                title,
                f"{directory} has {_gib(free_bytes)} left, {_gib(LEAST_DISK_BYTES)} are needed",
                f"du -xsh {directory}/* | sort -h  shows what fills it; or {move} to a directory with more space",
            )
        elif error := system.write_error(str(directory)):
            yield fail(
                title, f"{directory} cannot be written to: {error}", f"{move} to a directory of your own"
            )
        else:
            yield ok(title, f"{directory} has {_gib(free_bytes)} left")


def _identity(system: System, path: Path) -> Check:
    if not system.exists(str(path)):
        return ok("identity", f"none yet; made at the first start ({path})")
    try:
        return ok("identity", f"{system.peer_of_identity(path)} ({path})")
    except UsageError as error:
        return fail("identity", str(error), error.remedy)


def _shared_memory(system: System) -> Check:
    name = "/dev/shm"
    if not system.exists(name):
        return fail(name, "no such directory", f"mkdir -m 1777 {name} && mount -t tmpfs tmpfs {name}")
    free_bytes = system.free_bytes(name)
    if free_bytes < LEAST_SHM_BYTES:
        return warn(
            name,
            f"{_gib(free_bytes)} left: too little for an engine outside a cell (--isolation none)",
            f"mount -o remount,size=2G {name}  (in docker: --shm-size 2g)",
        )
    return ok(name, f"{_gib(free_bytes)} left")


def _memory(system: System) -> Check:
    total_bytes, available_bytes = system.memory_bytes()
    detail = f"{_gib(available_bytes)} of {_gib(total_bytes)} available"
    if available_bytes < LEAST_MEMORY_BYTES:
        see = "ps -eo rss,args --sort -rss | head  shows what uses it"
        return warn(
            "memory", f"{detail}: an engine needs about {_gib(LEAST_MEMORY_BYTES)} before any weights", see
        )
    return ok("memory", detail)


def _open_files(system: System) -> Check:
    soft, hard = system.open_files_limit()
    if soft < LEAST_OPEN_FILES:
        return fail(
            "open files",
            f"a process may have {soft} open, {LEAST_OPEN_FILES} are needed",
            f"ulimit -n {LEAST_OPEN_FILES if 0 <= hard < 65536 else 65536}",
        )
    return ok("open files", f"a process may have {soft} open")


def _clock(system: System) -> Check:
    seconds, synchronised = system.clock()
    now = datetime.fromtimestamp(seconds, UTC)
    shown = f"{now:%Y-%m-%d %H:%M} UTC"
    synchronise = "timedatectl set-ntp true  (or install chrony)"
    if now.year < _RELEASED:
        return fail(
            "clock", f"says {shown}: adverts and certificates of others look future-dated", synchronise
        )
    if synchronised is False:
        return warn("clock", f"{shown}, and nothing keeps it right", synchronise)
    return ok("clock", shown + (", synchronised" if synchronised else ""))


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
