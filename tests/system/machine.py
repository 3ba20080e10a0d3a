"""One machine: a home, an environment, an address, and what runs and lies about on it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.system.namespaces import Namespaces
from tests.system.process import Completed, Process

REPOSITORY = Path(__file__).resolve().parents[2]


class Machine:
    """A machine of a `Lan`, which makes it. Its home, /tmp, /dev/shm and process ids are its own; the rest of the
    file system is the one of the machine that runs the tests.
    """

    def __init__(self, name: str, address: str, root: Path, visible: Iterable[Path] = ()) -> None:
        """`root` is a new directory of its own; `visible` paths are seen on it even where they lie below /tmp."""
        self.name = name
        self.address = address
        self.home = root / "home"
        self.tmp = root / "tmp"
        self.runtime = root / "run"
        for directory in (self.home, self.tmp, self.runtime):
            directory.mkdir(parents=True, mode=0o700)
        self.visible = _below_tmp([REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), *visible])
        self.namespaces = Namespaces(name, _setup(root, self.tmp, self.visible))
        self.environment = self._environment()
        """What every command on it starts with; a test may change it."""
        self.processes: list[Process] = []
        """All that were started on it, ended ones as well, in the order they were."""

    def __repr__(self) -> str:
        return f"{self.name} ({self.address})"

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        input: str = "",
        grace_s: float = 20.0,
    ) -> Process:
        """The running command; as a context manager it ends by Ctrl-C, for which it has `grace_s`."""
        process = Process(
            self.namespaces.enter,
            argv,
            env=self.environment | dict(env or {}),
            cwd=cwd or self.home,
            input=input,
            grace_s=grace_s,
        )
        self.processes.append(process)
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        input: str = "",
        timeout_s: float = 60.0,
    ) -> Completed:
        """How the command ended. Raises TimeoutError with its output, and kills it, when it takes too long."""
        process = self.start(argv, env=env, cwd=cwd, input=input)
        try:
            return process.wait(timeout_s)
        finally:
            if process.returncode is None:
                process.end_now()

    def stop_all(self) -> None:
        """Ends all that still run of those that were started on it by Ctrl-C, the last one first."""
        for process in reversed(self.processes):
            if process.returncode is None:
                process.stop()

    def sent_bytes(self) -> int:
        """What it has put on its cable so far."""
        devices = Path(f"/proc/{self.namespaces.init}/net/dev").read_text().splitlines()
        counters = next(
            line.partition(":")[2].split() for line in devices if line.strip().startswith("eth0:")
        )
        return int(counters[8])

    def freeze(self) -> None:
        """All that was started on it stops, as when a machine swaps or sleeps; its connections stay."""
        for process in self.processes:
            process.freeze()

    def thaw(self) -> None:
        for process in self.processes:
            process.thaw()

    def _environment(self) -> dict[str, str]:
        path = [
            f"{sys.prefix}/bin",
            "/usr/local/sbin",
            "/usr/local/bin",
            "/usr/sbin",
            "/usr/bin",
            "/sbin",
            "/bin",
        ]
        return {
            "PATH": ":".join(path),
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home / ".local/state"),
            "XDG_DATA_HOME": str(self.home / ".local/share"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": "/tmp",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "COLUMNS": "200",
            "HF_HUB_OFFLINE": "1",
            # By lot, tests would take longer now and then, and lease further hosts.
            "EDGELLM_SPOT_CHECK": "0",
            "USER": os.environ.get("USER", "root"),
        }


def _below_tmp(paths: Iterable[Path]) -> tuple[Path, ...]:
    found = sorted({path.resolve() for path in paths} | {path.absolute() for path in paths})
    below = [path for path in found if path.is_relative_to("/tmp")]
    return tuple(
        path for path in below if not any(path != other and path.is_relative_to(other) for other in below)
    )


def _setup(root: Path, tmp: Path, visible: Sequence[Path]) -> str:
    binds = []
    for path in visible:
        place = tmp / path.relative_to("/tmp")
        binds += [f"mkdir -p {shlex.quote(str(place))}", f"mount --rbind {_quoted(path, place)}"]
    sys_place = root / "sys"
    return "\n".join(
        [
            "mount -t tmpfs -o size=4g,mode=1777 tmpfs /dev/shm",
            # A sysfs shows the network devices of the namespace in which it was mounted.
            f"mkdir {sys_place}",
            f"mount -t sysfs sysfs {sys_place}",
            f"mount --rbind /sys/fs/cgroup {sys_place}/fs/cgroup",
            f"mount --rbind {sys_place} /sys",
            *binds,
            f"chmod 1777 {tmp}",
            f"mount --rbind {tmp} /tmp",
        ]
    )


def _quoted(*paths: Path) -> str:
    return " ".join(shlex.quote(str(path)) for path in paths)
