"""A host's part of a cluster: `python -m edgellm_vllm.member` joins the head as a Ray node and stays until it ends."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from edgellm_vllm.events import EventStream
from edgellm_vllm.fork_client import READY, SOCKET_VARIABLE
from edgellm_vllm.kv.server import kv_server
from edgellm_vllm.kv.settings import profiles_variable, settings_from
from edgellm_vllm.ray_node import ray_node, wait_until_answers, worker_arguments
from edgellm_vllm.token_count import reported

# The head's Ray takes 2 to 5 s; the rest is for a requester on a slow machine or a slow link.
_HEAD_TIMEOUT_S = 90.0
_JOIN_TIMEOUT_S = 60.0
_FORK_SERVER_TIMEOUT_S = 20.0


class JoinError(Exception):
    """The cluster could not be joined, or fell apart; the text is for the host's log and the requester."""


async def _join(options: argparse.Namespace, events: EventStream) -> None:
    address, head, devices = options.address, options.head, options.devices
    head_address, _, port = head.rpartition(":")
    forks = options.standby and options.device_kind == "cpu"
    # Where workers cannot be forked, those for the next ranks are started with the first ones.
    ahead = 2 * devices if options.standby and not forks else devices
    async with (
        _kv_sharing(address, options.device_kind),
        reported(events),
        _fork_server() if forks else contextlib.nullcontext() as ready,
        ray_node(worker_arguments(address, head, devices, ahead)) as node,
    ):
        events.phase("head", f"wait for {head}")
        try:
            await wait_until_answers(head_address, int(port), _HEAD_TIMEOUT_S)
        except TimeoutError:
            raise JoinError(f"the head at {head} did not answer within {_HEAD_TIMEOUT_S:.0f} s") from None

        events.phase("join", head)
        node.start()
        ended = asyncio.create_task(node.wait_ended())
        started = asyncio.create_task(node.wait_started())
        await asyncio.wait({ended, started}, timeout=_JOIN_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if not (started.done() or ended.done()):
            raise JoinError(f"Ray did not join {head} within {_JOIN_TIMEOUT_S:.0f} s")
        if started.done():
            events.joined()
        if started.done() and options.standby:
            await asyncio.wait(
                {ended, asyncio.create_task(_warm(ready))}, return_when=asyncio.FIRST_COMPLETED
            )
            if not ended.done():
                events.warm()
        raise JoinError(f"Ray ended with status {await ended}")


async def _warm(ready: Path | None) -> None:
    """Returns when ranks can be forked, where they are."""
    if ready is not None:
        await _until_there(ready)


@contextlib.asynccontextmanager
async def _fork_server() -> AsyncIterator[Path]:
    """What Ray's workers on this member come from; a file that is there once they come at once."""
    with tempfile.TemporaryDirectory(prefix="edgellm-workers-") as directory:
        os.environ[SOCKET_VARIABLE] = str(Path(directory) / "socket")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edgellm_vllm.fork_server", env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        try:
            # Workers that ask before it is there are ordinary ones.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    _until_there(Path(os.environ[SOCKET_VARIABLE])), _FORK_SERVER_TIMEOUT_S
                )
            yield Path(directory) / READY
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _until_there(path: Path) -> None:
    while not path.exists():
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _kv_sharing(address: str, device_kind: str) -> AsyncIterator[None]:
    """LMCache's server for this cell's ranks, where the cluster shares its KV cache."""
    if settings_from(os.environ) is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="edgellm-kv-") as profiles:
        # For the server, and through Ray for the ranks.
        os.environ.update(profiles_variable(profiles))
        settings = settings_from(os.environ)
        assert settings is not None
        async with kv_server(address, settings, device_kind):
            yield


async def _run(options: argparse.Namespace, events: EventStream) -> int:
    task = asyncio.create_task(_join(options, events))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return 0
    except JoinError as error:
        events.failed(str(error))
    return 1


def main() -> int:
    """Exit status: 0 after SIGTERM or SIGINT, 1 when the head did not come or Ray ended."""
    parser = argparse.ArgumentParser(prog="edgellm_vllm.member", description=__doc__)
    parser.add_argument("--address", required=True, help="own IP address in the cluster")
    parser.add_argument("--head", required=True, help="ADDRESS:PORT of the head's Ray")
    parser.add_argument("--devices", required=True, type=int, help="number of devices lent")
    parser.add_argument("--device-kind", default="cpu", help="what they are: cpu or cuda")
    parser.add_argument("--standby", action="store_true", help="keep what the next ranks need ready")
    return asyncio.run(_run(parser.parse_args(), EventStream()))


if __name__ == "__main__":
    sys.exit(main())
