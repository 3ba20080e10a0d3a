"""The border between checks and this machine: everything a check may ask."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import psutil

from edgellm.cells.cgroup import Place, find_place
from edgellm.engine.backend import Backend
from edgellm.engine.registry import load_backend
from edgellm.p2p.identity import load_or_create_identity
from edgellm.p2p.reachability import Verdict
from edgellm.paths import Paths, default_paths

# adjtimex(2): the kernel's clock is not disciplined by anything.
_TIME_ERROR = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended; `returncode` is 127 when there is no such program and 124 when it took too long."""

    returncode: int
    stdout: str = ""
    stderr: str = ""

    @property
    def said(self) -> str:
        """The last line it said, errors first."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit status {self.returncode}"


class System(Protocol):
    """A machine to examine."""

    def run(self, argv: Sequence[str], timeout_s: float = 15.0) -> Outcome:
        """How a command ended. Never raises."""
        ...

    def which(self, program: str) -> str | None:
        """The path of a program on PATH or in the system's directories."""
        ...

    def read(self, path: str) -> str | None:
        """A file's text, None when it cannot be read."""
        ...

    def exists(self, path: str) -> bool: ...

    def open_error(self, path: str) -> str:
        """Why a device cannot be opened for reading and writing; empty when it can."""
        ...

    def free_bytes(self, path: str) -> int:
        """Space left in the file system of a path, or of its nearest parent that exists."""
        ...

    def write_error(self, directory: str) -> str:
        """Why no file can be made in a directory (or, until it exists, its nearest parent); empty when one can."""
        ...

    def listen_error(self, host: str, port: int) -> str:
        """Why a TCP port cannot be listened on; empty when it can."""
        ...

    def connect_error(self, host: str, port: int, timeout_s: float) -> str:
        """Why a TCP connection cannot be made; empty when it can."""
        ...

    def how_reached(self, listen: tuple[str, ...], bootstrap: tuple[str, ...]) -> Verdict:
        """Which way peers reach this machine, as they say. Raises EdgeError where that cannot be found out."""
        ...

    def version(self, distribution: str) -> str | None:
        """The installed version of a Python distribution."""
        ...

    def backend(self, name: str) -> Backend:
        """The installed engine of that name. Raises EngineError."""
        ...

    def paths(self) -> Paths:
        """EdgeLLM's directories, made where they are missing. Raises UsageError."""
        ...

    def peer_of_identity(self, path: Path) -> str:
        """The peer id of an identity file. Raises UsageError when others may read it, or it is damaged."""
        ...

    def memory_bytes(self) -> tuple[int, int]:
        """(installed, available)."""
        ...

    def open_files_limit(self) -> tuple[int, int]:
        """(soft, hard) limit of open files of a process; a hard limit of -1 is none."""
        ...

    def clock(self) -> tuple[float, bool | None]:
        """(seconds since 1970, whether the kernel says that the clock is synchronised; None: it does not say)."""
        ...

    def cell_place(self) -> Place:
        """Where cgroups of cells can be made, or why not."""
        ...

    def uid(self) -> int: ...

    def kernel(self) -> str: ...

    def python(self) -> str:
        """The path of the running interpreter."""
        ...


class LocalSystem:
    """This machine."""

    def run(self, argv: Sequence[str], timeout_s: float = 15.0) -> Outcome:
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome(124, stderr=f"{argv[0]} did not end within {timeout_s:g} s")
        except OSError as error:
            return Outcome(127, stderr=f"{argv[0]}: {error.strerror}")
        return Outcome(done.returncode, done.stdout, done.stderr)

    def which(self, program: str) -> str | None:
        # Users' PATHs often lack the directories in which ip and nft live.
        return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")

    def read(self, path: str) -> str | None:
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def open_error(self, path: str) -> str:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def free_bytes(self, path: str) -> int:
        return shutil.disk_usage(_nearest(Path(path))).free

    def write_error(self, directory: str) -> str:
        place = _nearest(Path(directory))
        # Not os.access: it knows nothing of read-only and full file systems.
        try:
            os.close(os.open(place, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return "" if os.access(place, os.W_OK | os.X_OK) else "Permission denied"
            return error.strerror or str(error)
        return ""

    def listen_error(self, host: str, port: int) -> str:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            # As servers do: a port whose last connections only wait out their time is free.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
                trial.listen()
            except OSError as error:
                return error.strerror or str(error)
        return ""

    def connect_error(self, host: str, port: int, timeout_s: float) -> str:
        try:
            socket.create_connection((host, port), timeout=timeout_s).close()
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def how_reached(self, listen: tuple[str, ...], bootstrap: tuple[str, ...]) -> Verdict:
        from edgellm.doctor.reached import how_reached

        return how_reached(listen, bootstrap)

    def version(self, distribution: str) -> str | None:
        try:
            return version(distribution)
        except PackageNotFoundError:
            return None

    def backend(self, name: str) -> Backend:
        return load_backend(name)

    def paths(self) -> Paths:
        return default_paths()

    def peer_of_identity(self, path: Path) -> str:
        return load_or_create_identity(path).peer

    def memory_bytes(self) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.total, memory.available

    def open_files_limit(self) -> tuple[int, int]:
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    def clock(self) -> tuple[float, bool | None]:
        return time.time(), _clock_is_synchronised()

    def cell_place(self) -> Place:
        return find_place()

    def uid(self) -> int:
        return os.geteuid()

    def kernel(self) -> str:
        return platform.release()

    def python(self) -> str:
        return sys.executable


def _nearest(path: Path) -> Path:
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _clock_is_synchronised() -> bool | None:
    # struct timex is 208 bytes on 64-bit Linux; modes = 0 only reads.
    state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(256))
    return None if state < 0 else state != _TIME_ERROR
