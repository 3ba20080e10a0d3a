"""Figures of an engine for Prometheus, under the names and with the buckets of OpenTelemetry's conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from edgellm_vllm.timings import Timing

PROVIDER = "vllm"
_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_DURATION_S = tuple(0.01 * 2**power for power in range(14))
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4**power for power in range(14))


class Figures:
    """Of one engine, from its loading on."""

    def __init__(self, model: str) -> None:
        self._model = model
        registry = self._registry = CollectorRegistry()
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Time from a request's arrival to its last token",
            _LABELS,
            buckets=_DURATION_S,
            registry=registry,
        )
        self._first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time from a request's arrival to its first token",
            _LABELS,
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self._per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time per token after the first one",
            _LABELS,
            buckets=_TOKEN_S,
            registry=registry,
        )
        self._tokens = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request",
            (*_LABELS, "gen_ai_token_type"),
            buckets=_TOKENS,
            registry=registry,
        )
        # What the conventions have no names for.
        self._running = Gauge("edgellm_engine_requests_running", "Requests in the batch", registry=registry)
        self._waiting = Gauge(
            "edgellm_engine_requests_waiting",
            "Requests that wait for a place in the batch",
            registry=registry,
        )
        self._kv_used = Gauge(
            "edgellm_engine_kv_cache_used_ratio", "Part of the KV cache in use", registry=registry
        )
        self.output_tokens = 0
        """Since loading."""
        self._made = Counter(
            "edgellm_engine_output_tokens", "Tokens of answers, as they were made", registry=registry
        )
        self._preempted = Counter(
            "edgellm_engine_preemptions", "Requests put back for want of KV cache", registry=registry
        )

    def first(self, timing: Timing, ttft_s: float) -> None:
        """A request has its first token."""
        self._first_token.labels(*self._labels(timing)).observe(ttft_s)

    def ended(self, timing: Timing, prompt_tokens: int, output_tokens: int) -> None:
        """A request has its last token."""
        labels = self._labels(timing)
        self._duration.labels(*labels).observe(time.monotonic() - timing.arrived)
        if output_tokens > 1 and timing.first:
            self._per_token.labels(*labels).observe((timing.last - timing.first) / (output_tokens - 1))
        self._tokens.labels(*labels, "input").observe(prompt_tokens)
        self._tokens.labels(*labels, "output").observe(output_tokens)

    def scheduled(self, running: int, waiting: int, kv_used: float, preempted: int) -> None:
        """How the engine's scheduler stands after a step."""
        self._running.set(running)
        self._waiting.set(waiting)
        self._kv_used.set(kv_used)
        if preempted:
            self._preempted.inc(preempted)

    def made(self, tokens: int) -> None:
        """Tokens of answers, by a step of the engine."""
        self.output_tokens += tokens
        self._made.inc(tokens)

    def text(self) -> bytes:
        """In Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)

    def _labels(self, timing: Timing) -> tuple[str, str, str]:
        return timing.operation, PROVIDER, self._model


def stat_logger(figures: Figures) -> Any:
    """What vLLM is to be given as a stat logger, so that `figures` hears of its scheduler.

    It takes the place of vLLM's own Prometheus figures: dozens, all of them set anew at every step.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class SchedulerFigures(PrometheusStatLogger):
        def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
            """Without the base class's."""

        def record(
            self,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
        ) -> None:
            if iteration_stats is not None and iteration_stats.num_generation_tokens:
                figures.made(iteration_stats.num_generation_tokens)
            if scheduler_stats is not None:
                figures.scheduled(
                    scheduler_stats.num_running_reqs,
                    scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
                    scheduler_stats.kv_cache_usage,
                    iteration_stats.num_preempted_reqs if iteration_stats is not None else 0,
                )

        def log_engine_initialized(self) -> None:
            """Nothing."""

        def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
            """Nothing."""

        def record_admission_rejection(self, reason: str) -> None:
            """Nothing: the node's gateway bounds what comes."""

    return SchedulerFigures
