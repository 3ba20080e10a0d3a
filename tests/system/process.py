"""A command that runs on a machine: its output as it comes, and the ways it can be ended or disturbed."""

from __future__ import annotations

import codecs
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True)
class Completed:
    """How a command ended: its exit status (minus the signal's number when one killed it), its output, its time."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    duration_s: float

    def check(self) -> Completed:
        """Itself. Raises AssertionError with the whole output when the exit status is not 0."""
        if self.returncode != 0:
            raise AssertionError(f"{self.argv} ended with {self.returncode}\n{self.stdout}\n{self.stderr}")
        return self


class Process:
    """A running command. As a context manager it is ended by Ctrl-C and must then end by itself within `grace_s`."""

    def __init__(
        self,
        enter: Sequence[str],
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        input: str = "",
        grace_s: float = 20.0,
    ) -> None:
        """Starts `argv` through `enter`, a command that forks once into a machine's namespaces and waits."""
        self.argv = tuple(argv)
        self.grace_s = grace_s
        self.chunks: list[tuple[float, Stream, str]] = []
        """(monotonic seconds, stream, text) for each piece of output, in the order it came."""
        self._started = time.monotonic()
        self._news = threading.Condition()
        self._popen = subprocess.Popen(
            # Its own session, like a shell's foreground job: Ctrl-C reaches all of it and nothing else, and is not ignored even
            # if the tests themselves run in a shell's background.
            [*enter, "setsid", "env", "--default-signal=INT,QUIT", "-C", str(cwd), *argv],
            env=dict(env),
            stdin=subprocess.PIPE if input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._readers = [
            self._thread(self._read, self._popen.stdout, "stdout"),
            self._thread(self._read, self._popen.stderr, "stderr"),
        ]
        if input:
            self._thread(self._write, input)
        self.pid = self._entered_pid()

    @property
    def stdout(self) -> str:
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        return self._text("stderr")

    @property
    def returncode(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._popen.poll()

    def wait_for(
        self, pattern: str, timeout_s: float = 30.0, *, stream: Stream | None = None
    ) -> re.Match[str]:
        """The first match of `pattern` in what it has printed since its start (^ and $ match at lines).

        Raises TimeoutError when it does not come, and AssertionError as soon as the command ends without it.
        """
        deadline = time.monotonic() + timeout_s
        expression = re.compile(pattern, re.MULTILINE)
        while True:
            ended = self.returncode is not None and not any(reader.is_alive() for reader in self._readers)
            text = self._text(stream) if stream else self.stdout + self.stderr
            if match := expression.search(text):
                return match
            if ended:
                raise AssertionError(f"ended with {self.returncode} before {pattern!r}\n{self._said()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {pattern!r} within {timeout_s:g} s\n{self._said()}")
            with self._news:
                self._news.wait(0.05)

    def wait(self, timeout_s: float = 60.0) -> Completed:
        """How it ended. Raises TimeoutError when it has not ended in time; it then goes on running."""
        deadline = time.monotonic() + timeout_s
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"still runs after {timeout_s:g} s\n{self._said()}") from None
        duration_s = time.monotonic() - self._started
        # A grandchild may hold the pipes open: that is for the check of leftovers, not a reason to wait for ever.
        for reader in self._readers:
            reader.join(max(0.2, min(2.0, deadline - time.monotonic())))
        return Completed(self.argv, self._popen.returncode, self.stdout, self.stderr, duration_s)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the command alone; does nothing when it has ended."""
        if self.pid is not None and self.returncode is None:
            _send(self.pid, number)

    def interrupt(self) -> None:
        """Ctrl-C at its terminal: SIGINT to its process group."""
        if self.pid is not None and self.returncode is None:
            _send(-self.pid, signal.SIGINT)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the command alone, as a crash would: what it leaves behind is left behind."""
        self.signal(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP to the command and all its descendants, cells included: alive, connected and silent."""
        stopped: set[int] = set()
        # Again until nothing new turns up: a process may fork while its tree is walked.
        while new := self.tree() - stopped:
            for pid in new:
                _send(pid, signal.SIGSTOP)
            stopped |= new

    def thaw(self) -> None:
        """Lets a frozen command and its descendants go on."""
        for pid in self.tree() | {self._popen.pid}:
            _send(pid, signal.SIGCONT)

    def tree(self) -> set[int]:
        """The process ids of the command and its descendants, as seen from outside the machine."""
        return descendants(self.pid) if self.pid is not None and self.returncode is None else set()

    def stop(self) -> Completed:
        """Ends it by Ctrl-C. Raises AssertionError (and kills its tree) when it does not end within `grace_s`."""
        self.interrupt()
        try:
            return self.wait(self.grace_s)
        except TimeoutError as error:
            self.end_now()
            raise AssertionError(f"{' '.join(self.argv)} did not end after Ctrl-C: {error}") from None

    def end_now(self) -> None:
        """SIGKILL to the whole tree, and wait: for tests that have failed already."""
        for pid in self.tree():
            _send(pid, signal.SIGKILL)
        if self.pid is None:
            self._popen.kill()
        self._popen.wait(10)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.returncode is not None:
            return
        if error is None:
            self.stop()
        else:
            self.end_now()

    def _entered_pid(self) -> int | None:
        children = Path(f"/proc/{self._popen.pid}/task/{self._popen.pid}/children")
        deadline = time.monotonic() + 10
        while self._popen.poll() is None and time.monotonic() < deadline:
            try:
                found = children.read_text().split()
            except (FileNotFoundError, ProcessLookupError):
                return None
            # Before it leads a process group of its own, a signal to that group would find nobody.
            if found and _leads_group(int(found[0])):
                return int(found[0])
            time.sleep(0.002)
        return None

    def _read(self, pipe: IO[bytes], stream: Stream) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with pipe:
            while data := os.read(pipe.fileno(), 65536):
                with self._news:
                    self.chunks.append((time.monotonic(), stream, decoder.decode(data)))
                    self._news.notify_all()

    def _write(self, text: str) -> None:
        assert self._popen.stdin is not None
        try:
            with self._popen.stdin as pipe:
                pipe.write(text.encode())
        except BrokenPipeError:
            # A command need not read its input to the end.
            return

    def _text(self, stream: Stream) -> str:
        return "".join(text for _, name, text in self.chunks.copy() if name == stream)

    def _said(self) -> str:
        return (
            f"--- {' '.join(self.argv)}\n--- stdout\n{self.stdout[-4000:]}\n--- stderr\n{self.stderr[-8000:]}"
        )

    @staticmethod
    def _thread(target: object, *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        thread.start()
        return thread


def descendants(root: int) -> set[int]:
    """`root` and the process ids of all that descend from it, whatever namespaces they are in."""
    found = {root}
    waiting = [root]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            try:
                children = {int(pid) for pid in task.read_text().split()}
            except (FileNotFoundError, ProcessLookupError):
                continue
            waiting += children - found
            found |= children
    return found


def _leads_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        # It ended by itself in the meantime, which is what the sender wanted or will notice.
        return
