"""Which blocks in a user's IPFS daemon are ours: a small file of lines, added to as we go and written anew when it is opened.

    put CID BYTES       we put it there
    gone CID            it was removed, or the daemon does not have it any more
    pin CID ours|theirs we want it kept; the daemon's pin was made by us, or was there before
    unpin CID

A line that a crash lost leaves one block in the daemon that we no longer know of, never one of the user's that we take for
ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from edgellm.blocks.cid import Cid
from edgellm.errors import BlockStoreFull, UsageError


class Ledger:
    """For one process and any number of its threads. Raises UsageError where another one has it, or it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._sizes: dict[Cid, int] = {}
        self._pins: dict[Cid, bool] = {}
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._guard = path.with_suffix(".lock").open("w")
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file = self._rewritten()
        except BlockingIOError:
            self._guard.close()
            raise UsageError(
                f"another EdgeLLM uses the list of blocks {path}",
                remedy="stop it, or set EDGELLM_HOME to another directory",
            ) from None
        except OSError as error:
            raise UsageError(
                f"cannot keep the list of blocks {path}: {error.strerror}",
                remedy="choose a directory of your own",
            ) from error

    def close(self) -> None:
        with self._lock:
            self._file.close()
            self._guard.close()

    def put(self, cid: Cid, size_bytes: int) -> None:
        self._write(f"put {cid} {size_bytes}")

    def gone(self, cids: Iterable[Cid]) -> None:
        """Nothing is written for what is not on the list."""
        for cid in cids:
            if cid in self._sizes or cid in self._pins:
                self._write(f"gone {cid}")

    def pin(self, cid: Cid, *, ours: bool) -> None:
        self._write(f"pin {cid} {'ours' if ours else 'theirs'}")

    def unpin(self, cid: Cid) -> None:
        self._write(f"unpin {cid}")

    def pinned(self, cid: Cid) -> bool | None:
        """Whether the daemon's pin was made by us; None where we want none."""
        with self._lock:
            return self._pins.get(cid)

    def unpinned(self) -> dict[Cid, int]:
        """Our blocks without a pin of ours, with their sizes in bytes."""
        with self._lock:
            return {cid: size for cid, size in self._sizes.items() if cid not in self._pins}

    def totals(self) -> tuple[int, int, int]:
        """Our blocks, their bytes, and those of them that we pinned."""
        with self._lock:
            pinned_bytes = sum(size for cid, size in self._sizes.items() if cid in self._pins)
            return len(self._sizes), sum(self._sizes.values()), pinned_bytes

    def _write(self, line: str) -> None:
        with self._lock:
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise BlockStoreFull(
                    f"the disk is full: {self._path} could not be written", remedy="free some space"
                ) from error
            self._apply(line)

    def _apply(self, line: str) -> None:
        match line.split():
            case ["put", cid, size]:
                self._sizes[Cid.parse(cid)] = int(size)
            case ["gone", cid]:
                self._sizes.pop(Cid.parse(cid), None)
                self._pins.pop(Cid.parse(cid), None)
            case ["pin", cid, ("ours" | "theirs") as whose]:
                self._pins[Cid.parse(cid)] = whose == "ours"
            case ["unpin", cid]:
                self._pins.pop(Cid.parse(cid), None)
            case _:
                raise ValueError(line)

    def _rewritten(self) -> IO[str]:
        if self._path.exists():
            for line in self._path.read_text(errors="replace").splitlines():
                try:
                    self._apply(line)
                except (ValueError, UsageError):
                    continue  # torn by a crash: the block stays the daemon's own
        anew = self._path.with_suffix(".new")
        with anew.open("w") as file:
            file.writelines(f"put {cid} {size}\n" for cid, size in self._sizes.items())
            file.writelines(f"pin {cid} {'ours' if ours else 'theirs'}\n" for cid, ours in self._pins.items())
            file.flush()
            os.fsync(file.fileno())
        anew.replace(self._path)
        return self._path.open("a")
