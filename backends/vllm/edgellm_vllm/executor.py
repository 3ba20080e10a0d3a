"""vLLM's Ray executor with the plan's placement: rank r runs on the member that the plan names, or nothing runs.

Steps reach the ranks as `edgellm_vllm.steps` has them.
"""

from __future__ import annotations

import functools
import os
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup
from vllm import envs
from vllm.platforms import current_platform
from vllm.v1.executor.ray_executor_v2 import RayExecutorV2
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

from edgellm_vllm.progress import tell, tell_spent
from edgellm_vllm.pulse import Watch
from edgellm_vllm.request_counts import counting_core
from edgellm_vllm.spent import Ledger
from edgellm_vllm.stage_clock import stamped
from edgellm_vllm.steps import Constrained, Transfers, go_on_after_results, says_nothing
from edgellm_vllm.watch import SlowStages

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

_CONFIG_KEY = "edgellm"
_JOIN_TIMEOUT_S = 120.0
_RESERVE_TIMEOUT_S = 30.0
_POLL_S = 0.05
_LOAD_POLL_S = 0.006
# Whatever they are thought to have to say.
_LEAST_TELL_S = 0.1


def placement_config(addresses_by_rank: list[str], stall_s: float) -> dict[str, Any]:
    """For vLLM's `additional_config`: what `PlacedRayExecutor` needs to know. `stall_s` as `pulse.Watch` has it."""
    return {_CONFIG_KEY: {"addresses": addresses_by_rank, "stall_s": stall_s}}


class PlacedRayExecutor(RayExecutorV2):
    """Waits for the members, reserves a device of the planned member for each rank, and tells how bring-up goes."""

    def _init_executor(self) -> None:
        self._addresses: list[str] = self.vllm_config.additional_config[_CONFIG_KEY]["addresses"]
        self._constrained = Constrained()
        self._transfers = Transfers()
        self._ledger = Ledger()
        self._told_at = 0.0
        """When the ranks last got a step."""
        self._watch: Watch | None = None
        self._slow = SlowStages()
        self._stages: int = self.vllm_config.parallel_config.pipeline_parallel_size
        self._step: Any = None
        """The result of the step that is under way, when it was sent as a whole and not sampled from yet."""
        # The cache that these need in each rank is filled by another way than ours.
        self._multimodal: bool = self.vllm_config.model_config.is_multimodal_model
        go_on_after_results()
        counting_core()
        try:
            self._reserve(self._addresses)
            tell("phase", "workers", "start the ranks and load their layers")
            super()._init_executor()
        except ray.exceptions.ActorDiedError as error:
            tell(
                "failed",
                "a rank ended while it was being made, as it does when it cannot reach the others",
                str(error),
            )
            raise
        except Exception as error:
            tell("failed", type(error).__name__, str(error))
            raise

    def initialize_from_config(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class; the last step of bring-up."""
        tell("phase", "kv cache")
        result = super().initialize_from_config(*args, **kwargs)
        self._watch = Watch(
            self.collective_rpc("edgellm_pulse"),
            lambda rank, why: tell("lost", "" if rank is None else self._addresses[rank], why),
            stall_s=self.vllm_config.additional_config[_CONFIG_KEY]["stall_s"],
            tells_work=current_platform.is_cpu(),
        )
        return result

    def init_kv_output_aggregator(self, connector: Any) -> None:
        """As the base class; what it puts together is noted."""
        super().init_kv_output_aggregator(connector)
        aggregate = self.kv_output_aggregator.aggregate

        def noted(*args: Any, **kwargs: Any) -> Any:
            output = aggregate(*args, **kwargs)
            self._transfers.reported(output)
            return output

        self.kv_output_aggregator.aggregate = noted

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        """As the base class; the ranks sample at once where they can, and `sample_tokens` then has that result."""
        if ended := self._ledger.finished(scheduler_output.finished_req_ids):
            tell_spent(ended)
        self._ledger.begin(scheduler_output.num_scheduled_tokens)
        whole = not (self._constrained.any_in(scheduler_output) or self._multimodal)
        if not non_block or not whole or self.ec_output_aggregator:
            self._ledger.step(scheduler_output.num_scheduled_tokens, ())
            return super().execute_model(scheduler_output, non_block)
        if says_nothing(scheduler_output):
            # Ranks that share their KV cache tell with each step which loads are done, so one that has nothing else to say
            # is left out only while another will bring that, or nothing is to be told.
            if self.kv_output_aggregator is None or self.futures_queue:
                return _done(EMPTY_MODEL_RUNNER_OUTPUT)
            # vLLM asks as often as it can, and takes the cores from what it waits for.
            time.sleep(_LOAD_POLL_S)
            if not self._transfers.under_way and time.monotonic() < self._told_at + _LEAST_TELL_S:
                return _done(EMPTY_MODEL_RUNNER_OUTPUT)
        self._told_at = time.monotonic()
        self._transfers.sent(scheduler_output)
        step = self.collective_rpc(
            "edgellm_step",
            args=(scheduler_output,),
            unique_reply_rank=self.output_rank,
            non_block=True,
            timeout=envs.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS,
            kv_output_aggregator=self.kv_output_aggregator,
        )
        if not scheduler_output.total_num_scheduled_tokens:
            return step
        step.add_done_callback(functools.partial(self._note, scheduler_output.total_num_scheduled_tokens))
        self._step = step
        return _done(None)

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        """As the base class."""
        if (step := self._step) is None:
            return super().sample_tokens(grammar_output, non_block)
        self._step = None
        if grammar_output is not None:
            raise RuntimeError("a step with a grammar was sampled from without it")
        return step if non_block else step.result()

    def collective_rpc(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class. What is not waited for at once is a step, and watched."""
        watch = self._watch if kwargs.get("non_block") else None
        if watch is None:
            return super().collective_rpc(*args, **kwargs)
        watch.steps.begun(time.monotonic())
        step = super().collective_rpc(*args, **kwargs)
        step.add_done_callback(lambda _: watch.steps.done(time.monotonic()))
        return step

    def _note(self, tokens: int, step: Future[Any]) -> None:
        if step.exception() is None:
            output = step.result()
            pairs = zip(output.req_ids, output.sampled_token_ids, strict=False)
            stage_s = stamped(output)
            self._ledger.step(output.req_ids, stage_s, {request for request, made in pairs if made})
            for stage, times in self._slow.note(tokens, stage_s, time.monotonic()).items():
                # Where only the last stage is known, its time is the only one.
                index = stage if len(stage_s) == self._stages else self._stages - 1
                address = self._addresses[index * len(self._addresses) // self._stages]
                tell("slow", address, f"its stage takes {times:.0f} times as long as it did")

    def shutdown(self) -> None:
        """As the base class, which also calls it, with `is_failed` set, when a rank's process has died."""
        if (watch := getattr(self, "_watch", None)) is not None:
            watch.stop()
        if getattr(self, "is_failed", False):
            tell("lost", self._dead_member(), "a rank's process died")
        super().shutdown()

    def _dead_member(self) -> str:
        """The address of one whose process has ended; "" if it cannot be told."""
        refs = {handle.run_ref: handle.rank for handle in self.ray_worker_handles}
        try:
            ended, _ = ray.wait(list(refs), num_returns=1, timeout=0)
            return self._addresses[refs[ended[0]]] if ended else ""
        except Exception:  # noqa: BLE001
            # Whatever Ray says of its dead: that one is gone matters more than which.
            return ""

    def _build_runtime_env(self) -> dict[str, Any]:
        # Members set in their whole environment what vLLM would set here, so that actors fit the workers that Ray has
        # started, and that have imported, ahead of time.
        return {}

    def _reserve(self, addresses: list[str]) -> None:
        tell("phase", "cluster", f"0 of {len(set(addresses))} members joined")
        ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="warning")
        _wait_for_members(set(addresses))
        bundles = [{current_platform.ray_device_key: 1.0, f"node:{address}": 0.001} for address in addresses]
        group: PlacementGroup = ray.util.placement_group(bundles, strategy="PACK")
        if not group.wait(_RESERVE_TIMEOUT_S):
            raise RuntimeError(f"the members have too few free devices for ranks on {', '.join(addresses)}")
        self.parallel_config.placement_group = group
        # Without it vLLM would number ranks by Ray's random node ids.
        os.environ["VLLM_RAY_BUNDLE_INDICES"] = ",".join(str(rank) for rank in range(len(addresses)))


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def _wait_for_members(wanted: set[str]) -> None:
    deadline = time.monotonic() + _JOIN_TIMEOUT_S
    joined: set[str] = set()
    while True:
        alive = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} & wanted
        if alive != joined:
            joined = alive
            tell("phase", "cluster", f"{len(joined)} of {len(wanted)} members joined")
        if joined == wanted:
            return
        if time.monotonic() > deadline:
            missing = ", ".join(sorted(wanted - joined))
            raise TimeoutError(f"{missing} did not join the cluster within {_JOIN_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)
