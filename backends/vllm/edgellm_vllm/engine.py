"""vLLM's AsyncLLM behind our words: import, load over planned stages, generate; suspend, and load over others.

Nothing of vLLM is imported with this module: the head answers while the import runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.wire import backend_pb2 as pb
from edgellm_vllm.api import Api, start_api
from edgellm_vllm.configuration import engine_config
from edgellm_vllm.figures import Figures, stat_logger
from edgellm_vllm.imports import without_garbage_collection
from edgellm_vllm.kv.settings import may_share
from edgellm_vllm.kv.sharing import silent_members
from edgellm_vllm.paced_outputs import pace_outputs
from edgellm_vllm.placement import RankPlacement, difference, planned_placement
from edgellm_vllm.progress import Kind, ProgressListener
from edgellm_vllm.prompts import InvalidRequest, answer_tokens, check_sampling, prompt_token_ids
from edgellm_vllm.resumable_core import ResumableCore
from edgellm_vllm.timings import Timings
from edgellm_vllm.token_log import REPLAY_S
from edgellm_vllm.witness import Witness

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM

PhaseSink = Callable[[str, str], None]
LossSink = Callable[[Kind, str, str], None]
"""Called with "lost" or "slow", what happened, and the address of the member, "" where it is not known."""

REPLAY_VARIABLE = "EDGELLM_VLLM_REPLAY_S"
_PLACEMENT_TIMEOUT_S = 30.0


class RequestLost(Exception):
    """The engine cannot finish this request."""


class LoadError(Exception):
    """Bring-up failed; the text is the first cause, from whichever process it happened in."""


def import_vllm() -> None:
    """Imports all that the head and, forked from it, the engine core need; about six seconds of one core."""
    with without_garbage_collection():
        import vllm.v1.engine.async_llm
        import vllm.v1.engine.core  # noqa: F401

        import edgellm_vllm.executor
        import edgellm_vllm.models
        import edgellm_vllm.resumed_requests

        if may_share(os.environ):
            import edgellm_vllm.kv.connector  # noqa: F401


@dataclass(frozen=True)
class BroughtUp:
    """An engine core that answers, and what runs where."""

    config: VllmConfig
    ranks: tuple[RankPlacement, ...]

    @property
    def kv_cache_tokens(self) -> int:
        """That the KV cache has room for."""
        cache = self.config.cache_config
        return int((cache.num_gpu_blocks or 0) * cache.block_size)

    @property
    def shares_kv(self) -> bool:
        return self.config.kv_transfer_config is not None


class Engine:
    """One model, over one cluster after the other."""

    def __init__(self, request: pb.LoadRequest, progress: ProgressListener, told: LossSink) -> None:
        """`told`: what the engine notices by itself of its members; it is suspended by then, if a member is lost."""
        self._request = request
        self._progress, self._told = progress, told
        self._figures = Figures(request.served_model_name or request.model_path)
        self._timings = Timings(self._figures)
        replay_s = float(os.environ.get(REPLAY_VARIABLE) or REPLAY_S)
        self._core = ResumableCore(lambda why: self._lose(why, ""), replay_s)
        self.witness = Witness(request.check_share)
        self._llm: AsyncLLM | None = None
        self._ending: asyncio.Task[None] | None = None
        self._loads = 0
        self.suspended = True
        """Whether requests wait for a Load."""

    @property
    def waiting(self) -> int:
        """Requests that are not finished."""
        return self._core.waiting

    @property
    def max_model_len(self) -> int:
        """Tokens, prompt and answer together."""
        length: int = self._ready.model_config.max_model_len
        return length

    @property
    def _ready(self) -> AsyncLLM:
        assert self._llm is not None, "not loaded yet"
        return self._llm

    def wrong_change(self, request: pb.LoadRequest) -> str:
        """Why a suspended engine cannot be loaded like this; "" if it can."""
        if request.model_path != self._request.model_path:
            return f"the engine is suspended with the model {self._request.model_path}: Unload first"
        if self._llm is not None and 0 < request.max_model_len < self.max_model_len:
            return f"requests wait that were promised a context of {self.max_model_len} tokens"
        return ""

    async def load(self, request: pb.LoadRequest, phase: PhaseSink) -> BroughtUp:
        """Brings the engine up over exactly the request's stages and checks where each rank really runs.

        Requests that wait go on. Raises LoadError; the engine is suspended then, as before. `phase(name, detail)` is called at
        each step.
        """
        self._loads += 1
        this_load = self._loads
        if self._ending is not None:
            await self._ending
        planned = planned_placement(request.stages, request.tensor_parallel)
        causes: list[str] = []

        def heard(kind: Kind, name: str, detail: str) -> None:
            if kind == "phase":
                phase(name, detail)
            elif kind == "failed":
                causes.append(f"{name}: {detail}")
            elif kind == "spent":
                self._timings.spent(detail)
            elif this_load != self._loads:
                return  # of an engine core that is gone
            elif kind == "slow":
                self._told(kind, detail, name)
            else:
                self._lose(detail, name)

        self._progress.heard = heard
        sharing = await _sharing_members(request, phase) if request.share_kv else []
        addresses = [rank.address for rank in planned]
        try:
            if self._llm is None:
                config = await asyncio.to_thread(self._first, request, addresses, sharing)
            else:
                config = await asyncio.to_thread(self._next, request, addresses, sharing)
        except Exception as error:
            kill_cores()
            await asyncio.sleep(0)  # the engine core's own account may still lie in the socket
            raise LoadError(causes[0] if causes else f"{type(error).__name__}: {error}") from error
        core = self._made
        try:
            if this_load != self._loads:
                raise LoadError("the engine was suspended meanwhile")
            self._core.adopt(core)
            phase("placement", "ask each rank what it holds")
            ranks = await _placement(core)
            if wrong := difference(planned, ranks):
                raise LoadError(f"the ranks do not run as planned: {wrong}")
            if this_load != self._loads:
                raise LoadError("the engine was suspended meanwhile")
        except BaseException:
            kill_cores()
            self._ending = asyncio.create_task(asyncio.to_thread(core.shutdown, 0))
            raise
        self._timings.addresses = tuple(stage.address for stage in request.stages)
        self.witness.moved(self._timings.addresses)
        self.suspended = False
        await self._core.attach(core)
        return BroughtUp(config, ranks)

    def suspend(self) -> None:
        """Ends what runs, or is being brought up, at once. Requests wait for the next load."""
        self._suspend(broken=False)

    async def generate(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateEvent, None]:
        """Tokens as they are made. Closing the iterator aborts.

        Raises InvalidRequest before the first event, and RequestLost.
        """
        from vllm import SamplingParams, TokensPrompt
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        llm = self._ready
        ids = prompt_token_ids(request, llm.get_tokenizer())
        sampling = request.sampling
        check_sampling(sampling)
        params = SamplingParams(
            max_tokens=answer_tokens(len(ids), sampling.max_tokens, self.max_model_len),
            temperature=sampling.temperature,
            top_p=sampling.top_p or 1.0,
            seed=sampling.seed if sampling.HasField("seed") else None,
            stop=list(sampling.stop) or None,
            ignore_eos=sampling.ignore_eos,
            logprobs=0 if sampling.logprobs else None,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty or 1.0,
            stop_token_ids=list(sampling.stop_token_ids) or None,
            output_kind=RequestOutputKind.DELTA,
        )
        outputs = llm.generate(TokensPrompt(prompt_token_ids=ids), params, request.request_id)
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    answer = output.outputs[0]
                    if answer.finish_reason == "error":
                        raise RequestLost("one engine after the other broke with this request in it")
                    yield pb.GenerateEvent(
                        token_ids=answer.token_ids,
                        text=answer.text,
                        prompt_tokens=len(ids),
                        finish_reason=answer.finish_reason or "",
                        cached_prompt_tokens=output.num_cached_tokens or 0,
                        logprobs=[
                            chosen[token].logprob
                            for token, chosen in zip(answer.token_ids, answer.logprobs or (), strict=False)
                        ],
                    )
        except VLLMClientError as error:
            raise InvalidRequest(str(error)) from error

    async def abort(self, request_id: str) -> None:
        """Ends a request; its iterator ends with the finish reason "abort". Unknown ids do nothing."""
        if self._llm is not None:
            await self._llm.abort(request_id)

    async def start_api(self, request: pb.LoadRequest, socket: Path) -> Api:
        """Serves this engine as `edgellm_vllm.api.start_api` does."""
        return await start_api(self._ready, request, socket, self._timings, self._figures)

    async def close(self) -> None:
        """Ends the engine core and frees the ranks' devices."""
        self._loads += 1
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)
        if self._ending is not None:
            await self._ending

    def _first(self, request: pb.LoadRequest, addresses: list[str], sharing: list[str]) -> VllmConfig:
        from vllm.v1.engine.async_llm import AsyncLLM

        from edgellm_vllm.models import import_model_class

        import_model_class(request.model_path)
        config = engine_config(request, addresses, sharing)
        llm = AsyncLLM.from_vllm_config(
            config, disable_log_stats=True, stat_loggers=[stat_logger(self._figures)]
        )
        self._made = llm.engine_core
        llm.engine_core = self._core
        pace_outputs(llm.output_processor.get_num_unfinished_requests)
        self._timings.watch(llm)
        self.witness.watch(llm)
        self._llm = llm
        return config

    def _next(self, request: pb.LoadRequest, addresses: list[str], sharing: list[str]) -> VllmConfig:
        from vllm.v1.engine.core_client import EngineCoreClient
        from vllm.v1.executor.abstract import Executor

        config = engine_config(request, addresses, sharing, self.max_model_len)
        self._made = EngineCoreClient.make_async_mp_client(
            config, Executor.get_class(config), self._ready.log_stats
        )
        if config.model_config.max_model_len < self.max_model_len:
            raise ValueError(f"the ranks have room for {config.model_config.max_model_len} tokens alone")
        return config

    def _lose(self, detail: str, address: str) -> None:
        if not self.suspended:
            self._suspend(broken=True)
            self._told("lost", detail, address)

    def _suspend(self, *, broken: bool) -> None:
        self._loads += 1
        # Before anything else: it may be about to say what comes of ranks that do not answer.
        kill_cores()
        self.suspended = True
        core = self._core.detach(broken=broken)
        if core is not None:
            self._timings.interrupted()
            self.witness.moved(())
            self._ending = asyncio.create_task(asyncio.to_thread(core.shutdown, 0))


def kill_cores() -> None:
    """All engine cores that were forked from this process; Ray then ends the ranks of each, wherever it can be reached."""
    for process in multiprocessing.active_children():
        process.kill()


async def _placement(core: Any) -> tuple[RankPlacement, ...]:
    """What every rank says about itself, by rank."""
    async with asyncio.timeout(_PLACEMENT_TIMEOUT_S):
        reports = await core.collective_rpc_async("edgellm_placement", _PLACEMENT_TIMEOUT_S)
    return tuple(sorted(RankPlacement(*report) for report in reports))


async def _sharing_members(request: pb.LoadRequest, phase: PhaseSink) -> list[str]:
    """The stages' members, when all of them can share their KV cache; else nobody shares, and a phase says why."""
    if not may_share(os.environ):
        phase("kv sharing", "off: this cluster's members have no network of their own")
        return []
    members = [stage.address for stage in request.stages]
    if len(set(members)) != len(members):
        phase("kv sharing", "off: a member runs several stages, and its LMCache server would mix them up")
        return []
    if silent := await asyncio.to_thread(silent_members, members):
        phase("kv sharing", f"off: no LMCache server answers on {', '.join(silent)}")
        return []
    phase("kv sharing", f"LMCache answers on {', '.join(members)}")
    return members
