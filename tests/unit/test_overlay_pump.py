"""Connections between a cell and a sealed link, over real sockets: whole, in order, ended as they were ended."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from edgellm.overlay.pump import Pumps, Traffic, open_pumps
from edgellm.overlay.records import LinkKeys, RecordKind, Sealer

TIMEOUT_S = 20.0


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection; the first is non-blocking, as the pumps want theirs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


@dataclass
class Joined:
    """`left` and `right` are what two engines hold; between them two carriers."""

    left: trio.SocketStream
    right: trio.SocketStream
    wire: tuple[socket.socket, socket.socket]
    traffic: tuple[Traffic, Traffic]
    results: list[bool]
    scopes: list[trio.CancelScope]


def stream(of: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(of))


@asynccontextmanager
async def joined() -> AsyncIterator[Joined]:
    left_cell, left = tcp_pair()
    right_cell, right = tcp_pair()
    wire = tcp_pair()
    keys = LinkKeys.make()
    here = Joined(stream(left), stream(right), wire, (Traffic(), Traffic()), [], [])

    async def carry(
        pumps: Pumps, cell: socket.socket, link: socket.socket, own: LinkKeys, to: Traffic
    ) -> None:
        with trio.CancelScope() as scope:
            here.scopes.append(scope)
            here.results.append(await pumps.join(cell, link, own, to))

    with trio.fail_after(TIMEOUT_S):
        async with open_pumps() as pumps, trio.open_nursery() as nursery:
            nursery.start_soon(carry, pumps, left_cell, wire[0], keys, here.traffic[0])
            nursery.start_soon(carry, pumps, right_cell, wire[1], keys.reversed(), here.traffic[1])
            yield here
            here.left.socket.close()
            here.right.socket.close()


async def read_all(source: trio.SocketStream) -> bytes:
    return b"".join([part async for part in source])


@pytest.mark.parametrize("size", [0, 1, 70_000, 9_000_001])
def test_both_directions_arrive_whole_and_end_in_order(size: int) -> None:
    there, back = random.Random(size).randbytes(size), random.Random(size + 1).randbytes(size // 2)

    async def main() -> None:
        received: dict[str, bytes] = {}

        async def send(through: trio.SocketStream, data: bytes) -> None:
            await through.send_all(data)
            await through.send_eof()

        async def receive(name: str, through: trio.SocketStream) -> None:
            received[name] = await read_all(through)

        async with joined() as here:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, here.left, there)
                nursery.start_soon(send, here.right, back)
                nursery.start_soon(receive, "right", here.right)
                nursery.start_soon(receive, "left", here.left)
            assert received == {"right": there, "left": back}
        assert here.results == [True, True]
        assert (here.traffic[0].sent_bytes, here.traffic[0].received_bytes) == (len(there), len(back))
        assert (here.traffic[1].sent_bytes, here.traffic[1].received_bytes) == (len(back), len(there))

    trio.run(main)


def test_one_direction_goes_on_after_the_other_has_ended() -> None:
    async def main() -> None:
        async with joined() as here:
            await here.left.send_eof()
            assert await here.right.receive_some() == b""
            for _ in range(3):
                await here.right.send_all(b"still")
                assert await here.left.receive_some() == b"still"
            await here.right.send_eof()
            assert await here.left.receive_some() == b""
        assert here.results == [True, True]

    trio.run(main)


def test_a_receiver_that_waits_holds_its_sender_and_nothing_is_lost() -> None:
    data = random.Random(1).randbytes(32 << 20)

    async def main() -> None:
        async with joined() as here:
            sent = 0

            async def send() -> None:
                nonlocal sent
                for start in range(0, len(data), 1 << 16):
                    await here.left.send_all(data[start : start + (1 << 16)])
                    sent = start
                await here.left.send_eof()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                before = -1
                while before != sent:
                    before = sent
                    await trio.sleep(0.3)
                assert sent < len(data) - (1 << 20), "all of it was taken though nobody reads"
                assert await read_all(here.right) == data
            await here.right.send_eof()

    trio.run(main)


def test_a_reset_is_a_reset_on_the_other_side() -> None:
    async def main() -> None:
        async with joined() as here:
            await here.left.send_all(b"half a sent")
            assert await here.right.receive_some() == b"half a sent"
            here.left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            here.left.socket.close()
            with pytest.raises(trio.BrokenResourceError):
                await here.right.receive_some()
        assert here.results == [False, False]

    trio.run(main)


@pytest.mark.parametrize(
    "forged",
    [
        b"\x01\x00\x00\x14" + bytes(20),
        b"\x07\x00\x00\x10" + bytes(16),
        b"\x01\xff\xff\xff",
        b"".join(Sealer(bytes(16)).seal(RecordKind.FIN, b"")),
    ],
    ids=["not authentic", "of no kind", "too long", "another key's"],
)
def test_what_the_other_carrier_did_not_make_resets_the_connection(forged: bytes) -> None:
    async def main() -> None:
        async with joined() as here:
            await here.left.send_all(b"before")
            assert await here.right.receive_some() == b"before"
            here.wire[0].send(forged)
            with pytest.raises(trio.BrokenResourceError):
                await here.right.receive_some()
        assert here.results == [False, False]

    trio.run(main)


def test_cancelling_resets_both_ends() -> None:
    async def main() -> None:
        async with joined() as here:
            await here.left.send_all(b"x")
            assert await here.right.receive_some() == b"x"
            for scope in here.scopes:
                scope.cancel()
            for end in (here.left, here.right):
                with pytest.raises(trio.BrokenResourceError):
                    await end.receive_some()
        assert here.results == []
        assert all(end.fileno() == -1 for end in here.wire)

    trio.run(main)


def test_many_connections_at_once_do_not_wait_for_each_other() -> None:
    async def main() -> None:
        async def echo(number: int) -> None:
            message = bytes([number]) * 1000
            async with joined() as here:
                for _ in range(20):
                    await here.left.send_all(message)
                    read = b""
                    while len(read) < len(message):
                        read += await here.right.receive_some()
                    assert read == message

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(echo, number)

    trio.run(main)
