"""A machine that runs no cells: its members say what cells would say, and its heads serve a scripted engine."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from edgellm.cluster.door import Door
from edgellm.cluster.member import BLOCKS_SOCKET, PieceServer, RunningMember, serve_pieces
from edgellm.cluster.switchboard import Switchboard
from edgellm.errors import CellError
from edgellm.testing.scripted_engine import Script, scripted_engine
from edgellm.types.plan import ClusterPlan, Member


class ScriptedCell:
    """A cell that lives until the test ends it (`edgellm.cluster.member.CellHandle`)."""

    def __init__(self) -> None:
        self.say, self.events = trio.open_memory_channel[dict[str, object]](16)
        self._gone = trio.Event()
        self._status = 0
        self.broken_limit = ""

    def die(self, status: int) -> None:
        """Ends the cell, and with it what it says, as the end of a process does."""
        self._status = status
        self.say.close()
        self._gone.set()

    async def wait(self) -> int:
        await self._gone.wait()
        return self._status

    def stderr_tail(self) -> str:
        return "scripted cell"


@dataclass
class ScriptedMachine:
    """Runs members of clusters without processes (`edgellm.cluster.member.Machine`)."""

    script: Script = field(default_factory=Script)
    refuse: str = ""
    """Why cells cannot be made, or ""."""
    cells: list[ScriptedCell] = field(default_factory=list)
    """Those that run now."""
    plans: list[ClusterPlan] = field(default_factory=list)
    """That were put in force while a member ran."""
    pieces: PieceServer | None = None
    block_sockets: list[Path] = field(default_factory=list)
    """Where the cells that run now find their node's KV pieces."""

    def open_member(
        self, switchboard: Switchboard, plan: ClusterPlan, own: Member, door: Door, model_directory: Path
    ) -> AbstractAsyncContextManager[RunningMember]:
        return self._open(plan, own)

    @asynccontextmanager
    async def _open(self, plan: ClusterPlan, own: Member) -> AsyncIterator[RunningMember]:
        async with AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="e")))
            await serve_pieces(stack, self.pieces, plan, own, directory)
            if self.refuse:
                raise CellError(self.refuse, remedy="run `edgellm doctor`")
            cell = ScriptedCell()
            self.cells.append(cell)
            try:
                socket = directory / "engine.sock"
                if own is plan.head:
                    stack.enter_context(scripted_engine(socket, self.script))
                else:
                    cell.say.send_nowait({"event": "joined"})
                    cell.say.send_nowait({"event": "warm"})
                if (blocks := directory / BLOCKS_SOCKET).exists():
                    self.block_sockets.append(blocks)
                    stack.callback(self.block_sockets.remove, blocks)

                async def amend(amended: ClusterPlan) -> None:
                    self.plans.append(amended)
                    if own is plan.head:
                        self.script.members = {member.address: member.peer for member in amended.workers}

                yield RunningMember(cell, socket, "/model", amend)
            finally:
                cell.say.close()
                self.cells.remove(cell)
