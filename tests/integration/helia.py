"""A Helia node on loopback in a process of its own: an IPFS implementation that is not ours (ipfs/helia/peer.mjs)."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from edgellm.blocks.cid import Cid
from tests.nodejs import node_command

_START_S = 30.0
_DEADLINE_MS = 15_000
_ANSWER_S = 20.0


class Helia:
    """`address` is a full multiaddr."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._received = b""
        self.address = ""

    async def start(self) -> None:
        """Waits until it listens."""
        with trio.fail_after(_START_S):
            self.address = (await self._line())["address"]

    async def put(self, block: bytes) -> Cid:
        """Keeps the block there."""
        return Cid.parse((await self._ask(put=base64.b64encode(block).decode()))["cid"])

    async def get(self, cid: Cid, *, deadline_ms: int = _DEADLINE_MS) -> bytes:
        """The block, from whichever peer it is connected to. Raises HeliaError."""
        return base64.b64decode((await self._ask(get=str(cid), ms=deadline_ms))["base64"])

    async def get_many(self, cids: Sequence[Cid]) -> tuple[int, float]:
        """Gets them all at once: bytes, and milliseconds that it took. Raises HeliaError."""
        answer = await self._ask(many=[str(cid) for cid in cids], ms=_DEADLINE_MS)
        return answer["bytes"], answer["ms"]

    async def dial(self, address: str) -> None:
        """Connects to a peer. Raises HeliaError."""
        await self._ask(dial=address)

    async def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        with trio.fail_after(_ANSWER_S):
            await self._process.stdin.send_all(json.dumps(question).encode() + b"\n")
            answer = await self._line()
        if "error" in answer:
            raise HeliaError(answer["error"])
        return answer

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            received = await self._process.stdout.receive_some()
            assert received, "Helia ended; its own words are on standard error"
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


class HeliaError(Exception):
    """What Helia said of why it failed."""


@asynccontextmanager
async def helia_peer() -> AsyncIterator[Helia]:
    """Skips the test where it is not installed."""
    command = node_command("integration/ipfs/helia", "peer.mjs")
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(command[1]).parent,
                check=False,
                task_status=task_status,
            )
        )
        helia = Helia(process)
        try:
            await helia.start()
            yield helia
        finally:
            nursery.cancel_scope.cancel()
