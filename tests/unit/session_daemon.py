"""A session's real daemon over a cluster that is none: an HTTP server in the daemon says events until it is stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import trio

from edgellm.sessions import daemon
from edgellm.sessions.daemon_order import Order
from edgellm.sessions.registry import SessionFiles, SessionRecord, write_record
from edgellm.sessions.serving import Serving, Slot

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ENDLESS = b"endless"


async def engine(stream: trio.SocketStream) -> None:
    """One event, or events without end where the request has that word in it."""
    asked = b""
    while b"}" not in asked:
        asked += await stream.receive_some(65536)
    await stream.send_all(HEAD)
    while True:
        await stream.send_all(b"9\r\ndata: 1\n\n\r\n")
        if ENDLESS not in asked:
            await stream.send_all(b"0\r\n\r\n")
            return
        await trio.sleep(0.02)


def stages() -> Any:
    each = [
        SimpleNamespace(peer=name, name=name, first_layer=first, end_layer=first + 4)
        for first, name in ((0, "alice"), (4, "bob"))
    ]
    prediction = SimpleNamespace(prefill_tok_s=1.0)
    return SimpleNamespace(stages=each, tensor_parallel=1, prediction=prediction)


async def hold(
    order: Order, files: SessionFiles, serving: Serving, desk: object, console: object, record: SessionRecord
) -> None:
    """In place of `edgellm.sessions.daemon.hold`."""
    path = files.directory / "api.sock"
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen()
    cluster = SimpleNamespace(
        stages=stages(),
        api_socket=path,
        engine_socket=Path("/nowhere"),
        plan=SimpleNamespace(digest="d", spares=()),
        recovering="",
        recoveries=0,
        lenders=2,
        standing_by=lambda: (),
    )
    opened = SimpleNamespace(
        cluster=cluster,
        request=SimpleNamespace(context=512),
        kv=None,
        names={},
        relay_of=lambda peer: "",
    )
    serving.use(Slot(order.model, cast(Any, opened)))
    write_record(files, msgspec.structs.replace(record, state="ready"))
    await trio.serve_listeners(engine, [trio.SocketListener(listening)])


if __name__ == "__main__":
    daemon.hold = hold
    sys.exit(daemon.main())
