"""The requester's part of a cluster: `python -m edgellm_vllm.head` is Ray's head and serves the engine over gRPC.

Order is speed here: Ray starts first (as a process), the socket answers next, and vLLM's modules are imported in a
thread meanwhile. The engine core is later forked from this process, so that they are imported once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import signal
import stat
import sys
from pathlib import Path
from typing import NoReturn

# gRPC may poll in its own threads when the engine core is forked; the child never uses gRPC, so nothing is to be done
# for it, and gRPC's own handling would make the fork wait for calls in flight.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import grpc
import uvloop

from edgellm.wire import backend_pb2_grpc
from edgellm_vllm.api import API_SOCKET
from edgellm_vllm.engine import import_vllm
from edgellm_vllm.events import EventStream
from edgellm_vllm.progress import ProgressListener
from edgellm_vllm.ray_node import head_arguments, ray_node
from edgellm_vllm.service import BackendService


async def _serve(address: str, port: int, socket_path: str, events: EventStream) -> None:
    events.phase("ray", f"start the head on {address}:{port}")
    async with ray_node(head_arguments(address, port)) as node:
        node.start()
        # Not before: Ray's own process is forked with these hooks, too, and has its input from a socket.
        os.register_at_fork(after_in_child=_forget_connections)
        server = grpc.aio.server()
        with ProgressListener() as progress:
            api_socket = Path(socket_path).with_name(API_SOCKET)
            service = BackendService(asyncio.to_thread(import_vllm), progress, api_socket, events)
            backend_pb2_grpc.add_BackendServicer_to_server(service, server)  # type: ignore[no-untyped-call]
            server.add_insecure_port(f"unix:{socket_path}")
            await server.start()
            events.serving()
            try:
                status = await node.wait_ended()
                events.failed(f"Ray's head ended with status {status}")
            finally:
                await service.close()
                await server.stop(grace=None)


def _forget_signals() -> None:
    """In a forked engine core: its signals must not arrive in the head's event loop, whose socket it shares."""
    signal.set_wakeup_fd(-1)


def _forget_connections() -> None:
    """In a forked engine core: a client that the head has done with would not hear of it while a copy is open here."""
    # What is written to these numbers goes nowhere; closed, they would become others' while objects here still hold them.
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):
            if number > sys.stderr.fileno() and stat.S_ISSOCK(os.fstat(number).st_mode):
                os.dup2(nothing, number, inheritable=False)


async def _run(options: argparse.Namespace, events: EventStream) -> NoReturn:
    port = int(options.head.rpartition(":")[2])
    task = asyncio.create_task(_serve(options.address, port, options.socket, events))
    os.register_at_fork(after_in_child=_forget_signals)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    status = 1
    try:
        await task
    except asyncio.CancelledError:
        status = 0
    # At once: a bring-up in its thread cannot be stopped, and asyncio and multiprocessing would wait for it.
    for engine_core in multiprocessing.active_children():
        engine_core.kill()
    os._exit(status)


def main() -> None:
    """Exit status: 0 after SIGTERM or SIGINT, 1 when Ray ended."""
    parser = argparse.ArgumentParser(prog="edgellm_vllm.head", description=__doc__)
    parser.add_argument("--address", required=True, help="own IP address in the cluster")
    parser.add_argument("--head", required=True, help="ADDRESS:PORT of the head's Ray: this member's own")
    parser.add_argument("--socket", required=True, help="Unix socket to serve gRPC on")
    # As `vllm serve` has it: each token of each answer that its API streams passes this loop.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(parser.parse_args(), EventStream()))


if __name__ == "__main__":
    main()
