"""Keeps what a session needs to come back after the end of its daemon or of the machine at any instant, on disk.

One file a session, in the state directory, which outlives a reboot; mode 0600, as it holds the API key. It has one line for
each thing that happened: a checksum (CRC-32) and JSON (`edgellm.sessions.story`). Lines are only appended, so that whatever is
torn is a line that reads as none; when there are many, the file is written anew beside the old one and takes its name.

No prompt, no answer and no token is in it: of a request there is when it began, which path it asked, and what its client
calls it.

Durability: what names the session (order, port, model, hosts) is on disk (fsync) before it holds. Requests are in the kernel's
hands at once, so the daemon's death loses none of them; they are on disk within `SYNC_S`, which is what a power cut may lose.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from edgellm.sessions.daemon_order import Order
from edgellm.sessions.story import (
    MAX_UNFINISHED,
    Begun,
    Ended,
    Line,
    Opened,
    Serves,
    Story,
    Unfinished,
    encoded,
    lines_of,
    told,
)

log = structlog.get_logger(__name__)

SYNC_S = 1.0
ALIVE_S = 5.0
"""How often the file's time says that the daemon lives."""
MAX_LINES = 4096
MAX_REQUEST_ID = 128


class Journal:
    """Of the daemon that runs now. Thread-safe. A disk that takes nothing more is logged; the session goes on."""

    def __init__(
        self,
        path: Path,
        order: Order,
        before: Sequence[Unfinished] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """Begins the journal of a session that takes its order's place from now on. Raises OSError.

        `before`: what daemons before it left unfinished.
        """
        self._path, self._now = path, now
        self._lock = threading.Lock()
        self._story = Story(Opened(order, now()), unfinished=tuple(before)[-MAX_UNFINISHED:])
        self._next = 1
        self._lines = 0
        self._is_dirty = self._is_torn = self._lacks_some = False
        self._alive_at = 0.0
        self._is_over = False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = self._written_anew()

    @property
    def unfinished(self) -> tuple[Unfinished, ...]:
        return self._story.unfinished

    def left_by(self, request_id: str) -> Unfinished | None:
        """The request that a client asks again, where a daemon before died with it."""
        found = (one for one in reversed(self._story.unfinished) if one.request_id == request_id)
        return next(found, None) if request_id else None

    def serves(self, model: str, hosts: Sequence[str], spent_s: float = 0.0) -> None:
        """A cluster answers from now on. On disk when this returns."""
        with self._lock:
            self._tell(Serves(model, tuple(hosts), spent_s, self._now()))
            self._sync()

    def begin(self, path: str, request_id: str = "") -> int:
        """A request that begins; the number by which it ends."""
        kept = request_id if len(request_id) <= MAX_REQUEST_ID and request_id.isprintable() else ""
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._tell(Begun(number, path, kept, self._story.model, self._now()))
        return number

    def end(self, number: int, how: str) -> None:
        with self._lock:
            self._tell(Ended(number, how))

    def settle(self) -> None:
        """To be called every `SYNC_S`: what was told gets onto the disk, and what is over out of the file."""
        with self._lock:
            if self._is_over:
                return
            now = self._now()
            if self._lines > MAX_LINES or self._lacks_some:
                self._anew()
            elif self._is_dirty:
                self._sync()
            elif now - self._alive_at >= ALIVE_S:
                os.utime(self._file)
            else:
                return
            self._alive_at = now

    def close(self) -> None:
        """Nothing is told any more; the file stays."""
        with self._lock:
            if not self._is_over:
                self._is_over = True
                self._sync()
                os.close(self._file)

    def _tell(self, line: Line) -> None:
        if self._is_over:
            return
        story = told(self._story, line)
        assert story is not None
        self._story = story
        # After a line that was cut off by a full disk, this one begins anew.
        data = (b"\n" if self._is_torn else b"") + encoded(line)
        try:
            self._is_torn = os.write(self._file, data) < len(data)
        except OSError as error:
            self._is_torn = True
            log.warning("the session's journal cannot be written", error=str(error))
        self._lacks_some = self._lacks_some or self._is_torn
        self._lines += 1
        self._is_dirty = True

    def _sync(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            log.warning("the session's journal cannot be written", error=str(error))
            return
        self._is_dirty = False

    def _anew(self) -> None:
        try:
            file = self._written_anew()
        except OSError as error:
            log.warning("the session's journal cannot be written", error=str(error))
            return
        os.close(self._file)
        self._file = file

    def _written_anew(self) -> int:
        """A file of the fewest lines, in its place and on disk; open for more of them."""
        lines = lines_of(self._story)
        partial = self._path.with_suffix(".new")
        partial.unlink(missing_ok=True)
        file = os.open(partial, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            data = b"".join(encoded(line) for line in lines)
            if os.write(file, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial))
            os.fsync(file)
            partial.replace(self._path)
            _sync_directory(self._path.parent)
        except BaseException:
            os.close(file)
            partial.unlink(missing_ok=True)
            raise
        self._lines = len(lines)
        self._is_dirty = self._is_torn = self._lacks_some = False
        return file


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
