"""What is asked of the next engine, and that the front end hears no more of the last one. Without vLLM."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

from edgellm_vllm.resumable_core import CoreLost, ResumableCore
from edgellm_vllm.token_log import MAX_FRUITLESS, REPLAY, TOKENS, TokenLog, tokens_so_far


@dataclass
class Params:
    """As vLLM's SamplingParams."""

    extra_args: dict[str, Any] | None = None
    temperature: float = 1.0
    seed: int | None = None
    prompt_logprobs: int | None = None

    def clone(self) -> Params:
        return copy.deepcopy(self)


@dataclass
class Request:
    """As vLLM's EngineCoreRequest."""

    request_id: str
    sampling_params: Params | None = field(default_factory=Params)
    mm_features: list[Any] | None = None
    resumable: bool = False
    abort_immediately: bool = False


def output(request_id: str, *tokens: int, end: str | None = None) -> Any:
    return SimpleNamespace(
        request_id=request_id, new_token_ids=list(tokens), finish_reason=end, new_logprobs=None
    )


def test_what_is_open_is_asked_again_with_its_tokens() -> None:
    log = TokenLog()
    asked = [Request("a", Params({"kv": 1}, prompt_logprobs=3)), Request("b"), Request("c"), Request("d")]
    for request in asked:
        log.add(request)
    log.note([output("a", 5), output("b", 6, end="stop"), output("stranger", 9)])
    log.note([output("a", 7, 8)])
    log.drop(["d", "never existed"])
    again = log.continuations()
    assert [request.request_id for request in again] == ["a", "c"]
    assert again[0].sampling_params == Params({"kv": 1, TOKENS: [5, 7, 8]}, prompt_logprobs=None)
    assert again[1] is asked[2]
    assert asked[0].sampling_params == Params({"kv": 1}, prompt_logprobs=3)
    assert tokens_so_far(again[0].sampling_params) == [5, 7, 8]
    assert tokens_so_far(asked[2].sampling_params) == tokens_so_far(None) == []
    # What comes next counts from there, in the engine after the next one, too.
    log.note([output("a", 9)])
    assert tokens_so_far(log.continuations()[0].sampling_params) == [5, 7, 8, 9]


def test_what_depends_on_bits_is_computed_one_by_one() -> None:
    log = TokenLog()
    kinds = {"greedy": Params(temperature=0), "seeded": Params(seed=1), "free": Params()}
    for name, params in kinds.items():
        log.add(Request(name, params))
    log.note([output(name, 1, 2) for name in kinds])
    log.give_up(broken=False)
    again = {request.request_id: request.sampling_params.extra_args for request in log.continuations()}
    assert again == {"greedy": {REPLAY: [1, 2]}, "seeded": {REPLAY: [1, 2]}, "free": {TOKENS: [1, 2]}}
    # Lost again, before and after something new was made of it.
    log.note([output("greedy", 3), output("seeded", end="abort")])
    log.give_up(broken=False)
    assert [tokens_so_far(it.sampling_params, REPLAY) for it in log.continuations()] == [[1, 2, 3], []]


def test_nobody_else_says_what_was_answered() -> None:
    log = TokenLog()
    asked = Request("a", Params({"kv": 1, TOKENS: [999_999], REPLAY: [7]}, temperature=0))
    log.add(asked)
    assert asked.sampling_params == Params({"kv": 1}, temperature=0)
    log.add(Request("no params", None))


def test_what_took_long_is_computed_at_once() -> None:
    log = TokenLog(replay_s=0.05)
    log.add(Request("a", Params(temperature=0)))
    log.note([output("a", 1)])
    log.give_up(broken=False)
    assert REPLAY in log.continuations()[0].sampling_params.extra_args
    log.note([output("a", 2)])
    time.sleep(0.06)
    log.note([output("a", 3)])
    log.give_up(broken=False)
    assert log.continuations()[0].sampling_params.extra_args == {TOKENS: [1, 2, 3]}


def test_what_seems_to_break_every_engine_is_given_up() -> None:
    log = TokenLog()
    log.add(Request("poison"))
    log.add(Request("victim"))
    for number in range(MAX_FRUITLESS - 1):
        log.note([output("victim", number)])
        assert log.give_up(broken=True) == []
        # Members that leave say nothing about a request.
        assert log.give_up(broken=False) == []
    log.note([output("victim", 77)])
    assert log.give_up(broken=True) == ["poison"]
    assert "poison" not in log
    assert "victim" in log


def test_what_was_not_kept_cannot_be_asked_again() -> None:
    log = TokenLog()
    log.add(Request("session", resumable=True))
    log.add(Request("image", mm_features=[SimpleNamespace(data=None)]))
    log.add(Request("picture", mm_features=[SimpleNamespace(data=b"whole")]))
    log.add(Request("gone", abort_immediately=True))
    assert log.give_up(broken=False) == ["session", "image"]
    assert [request.request_id for request in log.continuations()] == ["picture"]


class Core:
    """As vLLM's AsyncMPClient."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.aborted: list[str] = []
        self.outputs_queue: Any = None
        self.utility_results: dict[int, asyncio.Future[Any]] = {}
        self.resources = SimpleNamespace(engine_dead=False)
        self.name = "core"

    def _ensure_output_queue_task(self) -> None:
        """The test speaks for the core."""

    async def add_request_async(self, request: Request) -> None:
        await asyncio.sleep(0)
        self.asked.append(request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    async def collective_rpc_async(self, method: str) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.utility_results[1] = future
        return await future

    def says(self, *outputs: Any) -> None:
        self.outputs_queue.put_nowait(SimpleNamespace(outputs=list(outputs)))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def begun(lost: Callable[[str], None] = print) -> tuple[ResumableCore, Core]:
    facade, core = ResumableCore(lost), Core()
    facade.adopt(core)
    await facade.attach(core)
    return facade, core


def test_requests_wait_for_the_next_core_which_goes_on_with_them() -> None:
    async def test() -> None:
        facade, first = await begun()
        await facade.add_request_async(Request("a"))
        await facade.add_request_async(Request("left"))
        first.says(output("a", 1))
        assert (await facade.get_output_async()).outputs[0].new_token_ids == [1]
        # Not handed on yet when the core goes: it is as if it had not been made.
        first.says(output("a", 2))
        assert facade.detach(broken=False) is first
        first.says(output("a", 3, end="stop"))
        await facade.add_request_async(Request("new"))
        await facade.abort_requests_async(["left"])
        assert facade.waiting == 2
        assert await facade.call_utility_async("edgellm_request_counts") == [0, 2]
        waiting = asyncio.create_task(facade.get_output_async())
        await asyncio.sleep(0)
        second = Core()
        facade.adopt(second)
        await facade.attach(second)
        assert [(it.request_id, tokens_so_far(it.sampling_params)) for it in second.asked] == [
            ("a", [1]),
            ("new", []),
        ]
        assert not waiting.done()
        second.says(output("a", 2))
        assert (await waiting).outputs[0].new_token_ids == [2]
        assert (first.aborted, second.aborted) == ([], [])

    run(test)


def test_who_asks_the_core_itself_is_told_that_it_is_gone() -> None:
    async def test() -> None:
        facade, _ = await begun()
        assert facade.name == "core"
        asked = asyncio.create_task(facade.collective_rpc_async("anything"))
        await asyncio.sleep(0)
        facade.detach(broken=True)
        for question in (asked, facade.collective_rpc_async("anything"), facade.call_utility_async("x")):
            with pytest.raises(CoreLost):
                await question
        assert facade.detach(broken=True) is None
        assert facade.resources.engine_dead is False

    run(test)


def test_a_core_that_ends_by_itself_is_reported_once_and_not_raised() -> None:
    async def test() -> None:
        said: list[str] = []
        facade: Any = None

        def lost(why: str) -> None:
            said.append(why)
            facade.detach(broken=True)

        facade, core = await begun(lost)
        core.outputs_queue.put_nowait(RuntimeError("dead"))
        core.outputs_queue.put_nowait(RuntimeError("dead"))
        assert said == ["the engine core ended by itself"]
        # One that is found dead by asking it.
        core = Core()
        facade.adopt(core)
        await facade.attach(core)
        core.resources.engine_dead = True
        await facade.add_request_async(Request("a"))
        await facade.add_request_async(Request("b"))
        assert (len(said), facade.waiting, core.asked) == (2, 2, [])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await facade.get_output_async()

    run(test)


def test_a_request_that_is_aborted_while_others_are_asked_again_is_not_asked() -> None:
    async def test() -> None:
        facade, _ = await begun()
        for name in "abc":
            await facade.add_request_async(Request(name))
        facade.detach(broken=False)
        core = Core()
        facade.adopt(core)
        attaching = asyncio.create_task(facade.attach(core))
        await asyncio.sleep(0)
        await facade.abort_requests_async(["c"])
        await attaching
        assert [request.request_id for request in core.asked] == ["a", "b"]

    run(test)
