"""How many requests an engine has, by its own account: what its scheduler runs and lets wait, and what its front end has not
finished; and what it has made. For whoever wants to know that nothing goes on; the node lets nobody else reach it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from edgellm_vllm.figures import Figures

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCore

ROUTE = "/edgellm/requests"
_TIMEOUT_S = 5.0


def counting_core() -> None:
    """In an engine core that is being made: it can be asked for its scheduler's counts, as for all its utilities, by name."""
    from vllm.v1.engine.core import EngineCore

    def counts(core: EngineCore) -> list[int]:
        return list(core.scheduler.get_request_counts())

    EngineCore.edgellm_request_counts = counts


def serve_counts(app: FastAPI, llm: AsyncLLM, figures: Figures) -> None:
    """Adds `ROUTE`: {"running", "waiting", "unfinished", "output_tokens"}."""

    async def counts() -> dict[str, Any]:
        async with asyncio.timeout(_TIMEOUT_S):
            running, waiting = await llm.engine_core.call_utility_async("edgellm_request_counts")
        unfinished = llm.output_processor.get_num_unfinished_requests()
        return {
            "running": running,
            "waiting": waiting,
            "unfinished": unfinished,
            "output_tokens": figures.output_tokens,
        }

    app.add_api_route(ROUTE, counts, methods=["GET"])
