"""What a user of vLLM and Ray writes to ask a model that is spread over a Ray cluster.

Takes its settings as JSON in argument 1. Prints JSON lines: {"event": "imported" | "ready", "at": MONOTONIC_S}; then
answers questions on the Unix socket `socket`, one connection each: a JSON line {"prompt", "max_tokens"} gets a JSON
line with a list of token ids whenever there are new ones, until the connection is closed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any


def say(event: str) -> None:
    """One line on stdout."""
    print(json.dumps({"event": event, "at": time.monotonic()}), flush=True)


async def serve(settings: dict[str, Any]) -> None:
    """Bring the engine up and answer until cancelled."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    say("imported")
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**settings["engine"]))
    count = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        question = json.loads(await reader.readline())
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=question["max_tokens"],
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        count += 1
        async for output in engine.generate(question["prompt"], sampling, str(count)):
            writer.write(json.dumps(list(output.outputs[0].token_ids)).encode() + b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, settings["socket"])
    say("ready")
    try:
        await server.serve_forever()
    finally:
        engine.shutdown()


def main() -> None:
    """See above."""
    try:
        asyncio.run(serve(json.loads(sys.argv[1])))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
