"""Malicious HTTP at a session's endpoint and at the console, byte by byte over real sockets: nothing gets in by being odd."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from edgellm.console import serving
from edgellm.console.app import create_app
from edgellm.console.serving import open_port, serve
from tests.unit.console_sources import Script, rules, scripted
from tests.unit.test_gateway_server import endpoint

INNER = b"POST /v1/completions HTTP/1.1\r\nHost: PORT\r\nContent-Length: 2\r\n\r\n{}"
"""A request that would be served if it were taken for one."""
SMUGGLED = {
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(INNER) + INNER,
    "two lengths in one": b"Content-Length: 0, %d\r\n\r\n" % len(INNER) + INNER,
    "a length with a sign": b"Content-Length: +0\r\n\r\n" + INNER,
    "a length in hexadecimal": b"Content-Length: 0x10\r\n\r\n" + INNER,
    "a length with an underscore": b"Content-Length: 1_0\r\n\r\n" + INNER,
    "chunked with a length": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "not chunked at last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + INNER,
    "a blank before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + INNER,
    "a control character": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + INNER,
    "a chunk of a negative size": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + INNER,
    "a chunk of a huge size": b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n" + INNER,
    "an endless chunk extension": b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 70_000,
    "a folded header": b"X: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\nHost:\r\n other\r\n\r\n",
    "a header without a name": b": x\r\nContent-Length: 0\r\n\r\n" + INNER,
    "a zero byte": b"X: a\x00b\r\nContent-Length: 0\r\n\r\n" + INNER,
    "thousands of headers": b"".join(b"x-%d: y\r\n" % number for number in range(20_000)) + b"\r\n",
    "a long header": b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    "another host in the target": b"GET",
    "an upgrade": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAA\r\n"
    b"Content-Length: 0\r\nHost: evil\r\n\r\n",
}


def attack(name: str, port: int, path: bytes) -> bytes:
    if name == "another host in the target":
        said = b"GET http://evil.example%s HTTP/1.1\r\nHost: evil.example\r\n\r\n" % path
    else:
        said = b"POST %s HTTP/1.1\r\nHost: PORT\r\n" % path + SMUGGLED[name]
    return said.replace(b"PORT", b"127.0.0.1:%d" % port)


async def everything(stream: trio.SocketStream, seconds: float = 3.0) -> bytes:
    """What comes until the other side closes, or for a while."""
    received = b""
    with trio.move_on_after(seconds), suppress(trio.BrokenResourceError):
        while part := await stream.receive_some(65536):
            received += part
    return received


def statuses_in(received: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d{3})", received)


@pytest.mark.parametrize("name", SMUGGLED)
async def test_no_request_is_smuggled_to_the_engine(name: str) -> None:
    async with endpoint() as it:
        stream = await it.connect()
        with suppress(trio.BrokenResourceError):
            await stream.send_all(attack(name, it.port, b"/v1/completions"))
        received = await everything(stream, 1.0)
        await stream.aclose()
        assert it.engine.asked == []
        statuses = statuses_in(received)
        assert all(b"400" <= status <= b"501" for status in statuses), received[:300]
        assert len(statuses) <= 1
        assert (await it.ask()).status == 200


async def test_requests_in_a_row_are_each_looked_at() -> None:
    """Who may ask is decided for every one of them, not for the first one of a connection."""
    async with endpoint(api_key="secret") as it:
        good = it.raw(authorization="Bearer secret")  # type: ignore[arg-type]
        stranger, elsewhere = it.raw(), it.raw(authorization="Bearer secret", origin="http://evil")  # type: ignore[arg-type]
        stream = await it.connect()
        await stream.send_all(good + stranger + elsewhere + good)
        received = await everything(stream, 2.0)
        statuses = statuses_in(received)
        assert statuses == [b"200", b"401", b"403", b"200"]
        assert len(it.engine.asked) == 2
        await stream.aclose()


async def test_a_head_of_one_byte_at_a_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.gateway.client.HEAD_S", 0.5)
    async with endpoint() as it:
        stream = await it.connect()
        began = trio.current_time()
        with suppress(trio.BrokenResourceError), trio.fail_after(8):
            for byte in it.raw():
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.1)
        assert trio.current_time() - began < 4
        await stream.aclose()
        assert (await it.ask()).status == 200


@asynccontextmanager
async def console(token: str | None = None) -> AsyncIterator[tuple[int, Script]]:
    script = Script()
    with open_port("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, create_app(scripted(script), rules(port, token=token)), listening)
            yield port, script
            nursery.cancel_scope.cancel()


async def is_well(port: int) -> bool:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(
            b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\n\r\n" % port
        )
        return b"200" in (await everything(stream)).split(b"\r\n")[0]


@pytest.mark.parametrize("name", SMUGGLED)
async def test_no_request_is_smuggled_to_the_console(name: str) -> None:
    async with console() as (port, _):
        said = attack(name, port, b"/api/v1/sessions").replace(
            INNER.replace(b"PORT", b"127.0.0.1:%d" % port),
            b"GET /api/v1/swarm HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port,
        )
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(said)
            received = await everything(stream, 1.0)
        assert b'"hosts"' not in received, received[:600]
        statuses = statuses_in(received)
        assert all(status == b"101" or b"400" <= status <= b"501" for status in statuses), received[:300]
        assert await is_well(port)


async def test_connections_to_the_console_that_say_little_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "KEPT_S", 0.5)
    async with console() as (port, _):
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(6)]
        for stream in streams[3:]:
            await stream.send_all(b"GET /health HTT")
        with trio.fail_after(10):
            for stream in streams:
                with suppress(trio.BrokenResourceError):
                    while await stream.receive_some(4096):
                        pass
        assert await is_well(port)
