"""How many tokens the ranks of a cell have computed, for the quota of the machine's owner.

Each rank adds up in a file of its own; the member reads them and tells the node. Ranks that share the layers of a stage compute
the same tokens, so the largest count is the cell's. All of this runs beside the requester's code: it is what the engine says,
and no proof.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from edgellm_vllm.events import EventStream

VARIABLE = "EDGELLM_TOKEN_COUNTS"
REPORT_S = 0.25


class TokenCount:
    """Of one rank: counts on where an earlier process of the same rank ended."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._path = directory / str(rank)
        self._tokens = _read(self._path)

    def add(self, tokens: int) -> None:
        """Notes that a step computed `tokens`, of prompts and answers alike."""
        if tokens > 0:
            self._tokens += tokens
            # In place and of one length, so that a reader sees an old or a new count.
            with (
                contextlib.suppress(OSError),
                self._path.open("r+b" if self._path.exists() else "wb") as file,
            ):
                file.write(b"%020d" % self._tokens)


def wanted() -> bool:
    """Whether the cell's member asks for the counts."""
    return bool(os.environ.get(VARIABLE))


def counting(rank: int) -> TokenCount:
    """This rank's count, for the cell's member."""
    return TokenCount(Path(os.environ[VARIABLE]), rank)


def counted(directory: Path) -> int:
    """The tokens of the rank that computed most."""
    return max((_read(path) for path in directory.iterdir()), default=0)


@contextlib.asynccontextmanager
async def reported(events: EventStream) -> AsyncIterator[None]:
    """Tells the node what the ranks count while the context lasts; ranks find the place in their environment."""
    with tempfile.TemporaryDirectory(prefix="edgellm-tokens-") as directory:
        os.environ[VARIABLE] = directory
        report = _Report(Path(directory), events)
        task = asyncio.create_task(report.keep_telling())
        try:
            yield
        finally:
            task.cancel()
            # A cell whose head is gone ends by itself, mostly between two reports.
            report.tell()


class _Report:
    def __init__(self, directory: Path, events: EventStream) -> None:
        self._directory, self._events = directory, events
        self._told = 0

    async def keep_telling(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self.tell()

    def tell(self) -> None:
        if (now := counted(self._directory)) != self._told:
            self._told = now
            self._events.tokens(now)


def _read(path: Path) -> int:
    try:
        return int(path.read_bytes()[:20])
    except (OSError, ValueError):
        return 0
