"""vLLM's own OpenAI-compatible API over a loaded engine, on a Unix socket in the head's cell.

What of it anybody may reach, and who, is the node's affair (`edgellm.gateway`).
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.wire import backend_pb2 as pb
from edgellm_vllm.figures import Figures
from edgellm_vllm.imports import without_garbage_collection
from edgellm_vllm.prompts import plain_template
from edgellm_vllm.request_counts import serve_counts
from edgellm_vllm.timed_app import TimedApp, add_routes
from edgellm_vllm.timings import Timings

if TYPE_CHECKING:
    import uvicorn
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)

API_SOCKET = "api.sock"
_START_S = 20.0
_STOP_S = 1
_POLL_S = 0.02

TOOL_PARSERS = {
    "<tool_call>": "hermes",
    "<|python_tag|>": "llama3_json",
    "[TOOL_CALLS]": "mistral",
    "<|tool_call|>": "granite",
}
"""How a model writes calls of tools, by the token that its tokenizer has for it. One without any of them is taken for a writer
of Hermes' tags in plain text; what a request demands by name, any model calls.
"""


class Api:
    """Serves from `start_api` on until it is closed."""

    def __init__(self, server: uvicorn.Server, task: asyncio.Task[None]) -> None:
        self._server, self._task = server, task

    async def close(self) -> None:
        """Ends all connections; answers that run have `_STOP_S`. Whatever goes wrong in it is logged."""
        self._server.should_exit = True
        done, _ = await asyncio.wait([self._task], timeout=2 * _STOP_S)
        if not done:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_STOP_S)
        elif not self._task.cancelled() and self._task.exception() is not None:
            log.warning("the API ended with an error: %r", self._task.exception())


async def start_api(
    llm: AsyncLLM, request: pb.LoadRequest, socket: Path, timings: Timings, figures: Figures
) -> Api:
    """Serves `llm` on `socket`; answers when this returns. Raises what vLLM raises, and TimeoutError."""
    # Not before the engine core was forked: a fork while a thread imports would leave a lock held in the child.
    await asyncio.to_thread(_import)
    import uvicorn
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.launcher import NoSignalServer

    arguments = _arguments(request, llm.get_tokenizer())
    tasks = await llm.get_supported_tasks()
    app = build_app(arguments, tasks, llm.model_config)
    await init_app_state(llm, app.state, arguments, tasks)
    add_routes(app, timings, figures)
    serve_counts(app, llm, figures)
    config = uvicorn.Config(
        TimedApp(app, timings),
        uds=str(socket),
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_STOP_S,
    )
    # Without signals: the head has handlers of its own.
    server = app.state.server = NoSignalServer(config)
    task = asyncio.create_task(_serve(server))
    api = Api(server, task)
    try:
        async with asyncio.timeout(_START_S):
            while not server.started:
                if task.done():
                    raise RuntimeError("the API's server ended at once") from task.exception()
                await asyncio.sleep(_POLL_S)
    except BaseException:
        await api.close()
        raise
    return api


async def _serve(server: uvicorn.Server) -> None:
    """Uvicorn exits the whole program when an app does not start; here that is an error like others."""
    try:
        await server.serve()
    except SystemExit as error:
        raise RuntimeError("the API's app did not start") from error


def _import() -> None:
    with without_garbage_collection():
        import vllm.entrypoints.generate.api_router
        import vllm.entrypoints.launchers.api_server.app_state
        import vllm.entrypoints.launchers.app
        import vllm.entrypoints.launchers.cli_args
        import vllm.entrypoints.launchers.launcher  # noqa: F401


def _arguments(request: pb.LoadRequest, tokenizer: Any) -> Any:
    """As `vllm serve` has them from its command line."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = [
        f"--model={request.model_path}",
        "--generation-config=vllm",
        "--disable-fastapi-docs",
        "--served-model-name",
        *(request.served_model_names or [request.served_model_name or request.model_path]),
    ]
    if tokenizer.chat_template is None:
        words.append(f"--chat-template={plain_template(tokenizer)}")
    vocabulary = tokenizer.get_vocab()
    parser = next((parser for token, parser in TOOL_PARSERS.items() if token in vocabulary), "hermes")
    words += ["--enable-auto-tool-choice", f"--tool-call-parser={parser}"]
    return make_arg_parser(FlexibleArgumentParser()).parse_args(words)
