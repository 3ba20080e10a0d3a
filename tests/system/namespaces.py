"""The namespaces that a machine is made of. They live as long as their first process, and end with it.

They have no names in the file system, so that nothing of them can outlast the process that made them, not even
when that is killed: the first process reads its standard input and ends when it is closed.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Process 1 of each set: it reaps what is orphaned, as init does, and lives until its standard input is closed.
_INIT = """
import os, select, signal
news, wake = os.pipe()
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("up", flush=True)
while 0 not in select.select([0, news], [], [])[0]:
    os.read(news, 4096)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""


_KINDS = ("--mount", "--pid", "--ipc", "--uts", "--net")


class Namespaces:
    """A set of mount, PID, IPC, UTS and network namespaces with an init process of its own."""

    def __init__(self, hostname: str, setup: str = "") -> None:
        """Makes them and runs `setup` (shell, stops at the first failure) inside. Raises RuntimeError."""
        self.hostname = hostname
        script = f'hostname {hostname}\nip link set lo up\n{setup}\nexec "$0" -I -S -c "$1"'
        self._unshare = subprocess.Popen(
            [
                "unshare",
                *_KINDS,
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-euc",
                script,
                sys.executable,
                _INIT,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        said = self._first_words()
        if not said.endswith("up\n"):
            self.close()
            raise RuntimeError(f"machine {hostname} did not come up: {said}")
        self.init = int(Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text())
        """The process id of its process 1, as seen from outside."""

    @property
    def alive(self) -> bool:
        return self._unshare.poll() is None

    @property
    def enter(self) -> tuple[str, ...]:
        """The beginning of a command line that runs the rest of it inside."""
        return ("nsenter", f"--target={self.init}", *_KINDS, "--")

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread is in its network meanwhile: sockets that are made then belong to it."""
        with (
            Path("/proc/thread-self/ns/net").open() as outside,
            Path(f"/proc/{self.init}/ns/net").open() as inside,
        ):
            _enter_network(inside.fileno())
            try:
                yield
            finally:
                _enter_network(outside.fileno())

    def command(self, *argv: str) -> str:
        """What a short command prints that runs inside. Raises RuntimeError when it fails."""
        return command(*self.enter, *argv)

    def inside(self, path: str | Path) -> Path:
        """The path by which the outside reaches a path of the inside."""
        return Path(f"/proc/{self.init}/root") / str(path).lstrip("/")

    def close(self) -> None:
        """Ends all that runs inside, at once, and with it the namespaces."""
        if self.alive:
            # The kernel kills a PID namespace with its first process, and ends that one only after all others.
            if hasattr(self, "init"):
                os.kill(self.init, signal.SIGKILL)
            else:
                self._unshare.kill()
        self._unshare.wait(30)
        for pipe in (self._unshare.stdin, self._unshare.stdout):
            if pipe is not None:
                pipe.close()

    def _first_words(self, timeout_s: float = 20.0) -> str:
        assert self._unshare.stdout is not None
        descriptor = self._unshare.stdout.fileno()
        said = ""
        while not said.endswith("up\n") and select.select([descriptor], [], [], timeout_s)[0]:
            data = os.read(descriptor, 4096)
            if not data:
                break
            said += data.decode()
        return said


def command(*argv: str, timeout_s: float = 20.0) -> str:
    """What a short command prints. Raises RuntimeError with what it said when it fails."""
    done = _run(argv, timeout_s)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _run(argv: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
    )


_CLONE_NEWNET = 0x40000000


def _enter_network(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
