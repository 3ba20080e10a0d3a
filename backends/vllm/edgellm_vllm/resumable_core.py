"""One engine core after the other behind vLLM's front end, which takes them for one that never fails.

The front end (texts, stop strings, tool calls, HTTP and gRPC streams) lives in the head and outlives every core. While there is
no core its requests wait; the next one is asked for the rest of each answer, so that a stream pauses and loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from edgellm_vllm.token_log import REPLAY_S, TokenLog

if TYPE_CHECKING:
    from vllm.v1.engine.core_client import AsyncMPClient

COUNTS = "edgellm_request_counts"


class CoreLost(Exception):
    """There is no engine core to ask."""


class ResumableCore:
    """Stands where AsyncLLM has its engine-core client. Lives in the head's event loop."""

    def __init__(self, lost: Callable[[str], None], replay_s: float = REPLAY_S) -> None:
        """`lost(why)` is called when a core ends by itself; whoever owns this then detaches it. `replay_s`: see `token_log`."""
        self._lost = lost
        self._log = TokenLog(replay_s)
        self._outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._core: Any = None
        self._latest: Any = None
        # AsyncLLM looks here whether it may still be asked.
        self.resources = SimpleNamespace(engine_dead=False)

    def __getattr__(self, name: str) -> Any:
        # What concerns the core alone: utilities by name, settings.
        latest = self.__dict__.get("_latest")
        if latest is None:
            raise AttributeError(name)
        if name.endswith("_async") and self._core is None:
            return self._refuse
        return getattr(latest, name)

    @property
    def waiting(self) -> int:
        """Requests that are not finished."""
        return len(self._log)

    def adopt(self, core: AsyncMPClient) -> None:
        """Hears what `core` says, before it says anything. It is asked nothing until it is attached."""
        core.outputs_queue = _Outputs(self, core)
        core._ensure_output_queue_task()

    async def attach(self, core: AsyncMPClient) -> None:
        """Asks `core` for the rest of what is open, and for all that comes from now on."""
        self._core = self._latest = core
        for request in self._log.continuations():
            if self._core is core and request.request_id in self._log:
                await self._send(core, request)

    def detach(self, *, broken: bool) -> Any:
        """From now on requests wait. Returns the core that there was; what it still says is dropped.

        `broken`: it ended by itself. What seems to break one engine after the other ends as an error.
        """
        core, self._core = self._core, None
        if core is None:
            return None
        while not self._outputs.empty():
            self._outputs.get_nowait()
        for future in core.utility_results.values():
            if not future.done():
                future.set_exception(CoreLost("the engine has lost a member"))
        core.utility_results.clear()
        if hopeless := self._log.give_up(broken=broken):
            self._outputs.put_nowait(_failed(hopeless))
        return core

    async def get_output_async(self) -> Any:
        """As vLLM's; waits while there is no core."""
        outputs = await self._outputs.get()
        self._log.note(outputs.outputs)
        return outputs

    async def add_request_async(self, request: Any) -> None:
        """As vLLM's; without a core the request waits for one."""
        self._log.add(request)
        if (core := self._core) is not None:
            await self._send(core, request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """As vLLM's."""
        self._log.drop(request_ids)
        if (core := self._core) is not None and request_ids:
            await core.abort_requests_async(request_ids)

    async def call_utility_async(self, method: str, *arguments: Any) -> Any:
        """As vLLM's; raises CoreLost without a core."""
        if (core := self._core) is not None:
            return await core.call_utility_async(method, *arguments)
        if method == COUNTS:
            return [0, len(self._log)]
        return await self._refuse()

    def shutdown(self, timeout: float | None = None) -> None:
        """As vLLM's."""
        if (core := self._core) is not None:
            core.shutdown(timeout=timeout)

    def put(self, core: Any, outputs: Any) -> None:
        """What a core says, or how it ended."""
        if core is not self._core:
            return
        if isinstance(outputs, Exception):
            self._lost("the engine core ended by itself")
        else:
            self._outputs.put_nowait(outputs)

    async def _send(self, core: Any, request: Any) -> None:
        if not core.resources.engine_dead:
            await core.add_request_async(request)
        elif core is self._core:
            # The request is in the log, and goes to the next one.
            self._lost("the engine core ended by itself")

    async def _refuse(self, *_: Any, **__: Any) -> Any:
        raise CoreLost("the engine has lost a member and waits for others")


class _Outputs:
    """In place of a core client's queue: who said what is known, and a core that is gone is not heard any more."""

    def __init__(self, facade: ResumableCore, core: Any) -> None:
        self._facade, self._core = facade, core

    def put_nowait(self, outputs: Any) -> None:
        self._facade.put(self._core, outputs)


def _failed(request_ids: Iterable[str]) -> Any:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

    return EngineCoreOutputs(
        outputs=[
            EngineCoreOutput(request_id=request_id, new_token_ids=[], finish_reason=FinishReason.ERROR)
            for request_id in request_ids
        ]
    )
