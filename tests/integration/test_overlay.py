"""Two real cells on one machine, each with a real carrier: what programs in them see of each other."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from edgellm.cells.cell import Cell, open_cell
from edgellm.errors import NetworkError, ProtocolViolation
from edgellm.overlay.links import server_context
from edgellm.overlay.overlay import (
    OverlayMember,
    OverlaySpec,
    bind_listener,
    make_member_identity,
    open_overlay,
)
from tests.integration.cells import event_named, python_cell
from tests.integration.overlays import SUBNET, RunningMember, Way, members

WAYS: tuple[Way, ...] = ("tls", "stream", "libp2p")

# Serves one behaviour for each port.
SERVER = """
import hashlib, struct

def echo(connection):
    while data := connection.recv(1 << 20):
        connection.sendall(data)

def digest(connection):
    # Answers only after the other side has ended its direction.
    sha = hashlib.sha256()
    while data := connection.recv(1 << 20):
        sha.update(data)
    connection.sendall(sha.hexdigest().encode())

def both(connection):
    # Sends 64 MiB while it receives; tells the digests of what went each way.
    sent, received = hashlib.sha256(), hashlib.sha256()
    def send():
        block = os.urandom(1 << 20)
        for index in range(64):
            part = struct.pack("!Q", index) + block
            sent.update(part)
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
    thread = threading.Thread(target=send)
    thread.start()
    while data := connection.recv(1 << 20):
        received.update(data)
    thread.join()
    tell(event="both", sent=sent.hexdigest(), received=received.hexdigest())

def ending(connection):
    try:
        while connection.recv(1 << 20):
            pass
        tell(event="ended", how="end of stream")
    except OSError as error:
        tell(event="ended", how=type(error).__name__)

def abort(connection):
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

def serve(port, behaviour):
    def one(connection):
        with connection:
            behaviour(connection)
    server = socket.create_server(("0.0.0.0", port), backlog=512)
    while True:
        threading.Thread(target=one, args=(server.accept()[0],), daemon=True).start()

for port, behaviour in {5000: echo, 5001: digest, 5002: both, 5003: ending, 5004: abort}.items():
    threading.Thread(target=serve, args=(port, behaviour), daemon=True).start()
time.sleep(0.3)
tell(event="up")
time.sleep(3600)
"""

CLIENT = """
import hashlib, struct
SERVER = "10.88.7.1"

def connect(port, address=SERVER):
    connection = socket.create_connection((address, port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection

def receive_all(connection):
    parts = []
    while data := connection.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)
"""


@asynccontextmanager
async def running_pair(
    tmp_path: Path, way: Way, client: str
) -> AsyncIterator[tuple[list[RunningMember], Cell, Cell]]:
    async with members(tmp_path, 2, way) as pair:
        served = python_cell(SERVER, pair[0].runtime, address=pair[0].address, subnet=SUBNET)
        async with open_cell(served) as server_cell:
            await event_named(server_cell, "up")
            program = python_cell(CLIENT + client, pair[1].runtime, address=pair[1].address, subnet=SUBNET)
            async with open_cell(program) as client_cell:
                yield pair, server_cell, client_cell


async def seen_by_client(tmp_path: Path, way: Way, client: str) -> dict[str, Any]:
    async with running_pair(tmp_path, way, client) as (_, _, cell):
        return await event_named(cell, "seen")


@pytest.mark.parametrize("way", WAYS)
async def test_echo_and_traffic(tmp_path: Path, way: Way) -> None:
    program = """
    with connect(5000) as connection:
        connection.sendall(b"hello")
        tell(event="seen", answer=connection.recv(5).decode(), peer=connection.getpeername())
    time.sleep(3600)
    """
    async with running_pair(tmp_path, way, program.replace("\n    ", "\n")) as (pair, _, cell):
        seen = await event_named(cell, "seen")
        assert seen["answer"] == "hello"
        assert seen["peer"] == ["10.88.7.1", 5000]
        used, unused = ("tls", "stream") if way == "tls" else ("stream", "tls")
        with trio.fail_after(5):
            while (
                not pair[0].overlay.stats() or not pair[1].overlay.stats()["10.88.7.1"][used].received_bytes
            ):
                await trio.sleep(0.05)
        traffic = pair[1].overlay.stats()["10.88.7.1"]
        assert (traffic[used].sent_bytes, traffic[used].received_bytes, traffic[used].connections) == (
            5,
            5,
            1,
        )
        assert traffic[unused].connections == 0


@pytest.mark.parametrize("way", WAYS)
async def test_64_mib_each_way_at_once(tmp_path: Path, way: Way) -> None:
    program = """
sent, received = hashlib.sha256(), hashlib.sha256()
connection = connect(5002)
def send():
    block = os.urandom(1 << 20)
    for index in range(64):
        part = struct.pack("!Q", index) + block
        sent.update(part)
        connection.sendall(part)
    connection.shutdown(socket.SHUT_WR)
thread = threading.Thread(target=send)
thread.start()
count = 0
while data := connection.recv(1 << 20):
    received.update(data)
    count += len(data)
thread.join()
tell(event="seen", sent=sent.hexdigest(), received=received.hexdigest(), count=count)
time.sleep(3600)
"""
    async with running_pair(tmp_path, way, program) as (_, server, client):
        seen = await event_named(client, "seen")
        served = await event_named(server, "both")
        assert seen["count"] == 64 * ((1 << 20) + 8)
        assert seen["received"] == served["sent"]
        assert seen["sent"] == served["received"]


@pytest.mark.parametrize("way", WAYS)
async def test_200_connections_at_once(tmp_path: Path, way: Way) -> None:
    seen = await seen_by_client(
        tmp_path,
        way,
        """
connections = [connect(5000) for _ in range(200)]
for index, connection in enumerate(connections):
    connection.sendall(struct.pack("!I", index) * 1000)
right = 0
for index, connection in enumerate(connections):
    data = b""
    while len(data) < 4000:
        data += connection.recv(4000)
    right += data == struct.pack("!I", index) * 1000
tell(event="seen", right=right)
""",
    )
    assert seen["right"] == 200


@pytest.mark.parametrize("way", WAYS)
async def test_half_close(tmp_path: Path, way: Way) -> None:
    """The answer comes after the question's end: for an empty, a small and a large question, many times."""
    seen = await seen_by_client(
        tmp_path,
        way,
        """
right = 0
questions = [b"", b"x", os.urandom(3 << 20)] * 10
for question in questions:
    with connect(5001) as connection:
        connection.sendall(question)
        connection.shutdown(socket.SHUT_WR)
        right += receive_all(connection).decode() == hashlib.sha256(question).hexdigest()
tell(event="seen", right=right, of=len(questions))
""",
    )
    assert seen["right"] == seen["of"] == 30


@pytest.mark.parametrize("way", WAYS)
async def test_nothing_is_lost_at_close(tmp_path: Path, way: Way) -> None:
    """A program that sends and closes at once: the other side gets everything, then the end."""
    seen = await seen_by_client(
        tmp_path,
        way,
        """
server = socket.create_server(("0.0.0.0", 6000))
right = 0
for index in range(30):
    with connect(5000) as connection:
        data = os.urandom(200_000)
        sender = threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR)))
        sender.start()
        right += receive_all(connection) == data
        sender.join()
tell(event="seen", right=right)
""",
    )
    assert seen["right"] == 30


@pytest.mark.parametrize("way", WAYS)
async def test_refused_port_and_strange_addresses_are_reset(tmp_path: Path, way: Way) -> None:
    seen = await seen_by_client(
        tmp_path,
        way,
        """
def ask(port, address=SERVER):
    with connect(port, address) as connection:
        connection.sendall(b"x")
        return connection.recv(1)
times = time.time()
tell(
    event="seen",
    refused=attempt(lambda: ask(5999)),
    nobody=attempt(lambda: ask(5000, "10.88.7.77")),
    works=attempt(lambda: ask(5000)),
)
""",
    )
    assert seen["refused"] == seen["nobody"] == "ConnectionResetError"
    assert seen["works"] == "b'x'"


@pytest.mark.parametrize("way", WAYS)
async def test_reset_travels(tmp_path: Path, way: Way) -> None:
    program = """
connection = connect(5003)
connection.sendall(b"x" * 10)
time.sleep(0.3)
connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
connection.close()
with connect(5004) as connection:
    connection.sendall(b"x")
    tell(event="seen", how=attempt(lambda: connection.recv(1)))
time.sleep(3600)
"""
    async with running_pair(tmp_path, way, program) as (_, server, client):
        assert (await event_named(server, "ended"))["how"] == "ConnectionResetError"
        assert (await event_named(client, "seen"))["how"] == "ConnectionResetError"


@pytest.mark.parametrize("way", WAYS)
async def test_death_of_a_cell_resets_the_others(tmp_path: Path, way: Way) -> None:
    program = """
connection = connect(5003)
connection.sendall(b"x")
tell(event="seen")
time.sleep(3600)
"""
    async with running_pair(tmp_path, way, program) as (_, server, client):
        await event_named(client, "seen")
        await trio.sleep(0.3)
        await client.kill()
        assert (await event_named(server, "ended"))["how"] in ("ConnectionResetError", "end of stream")


@pytest.mark.parametrize("way", WAYS)
async def test_slow_reader_costs_no_memory(tmp_path: Path, way: Way) -> None:
    program = """
connection = connect(5002)
connection.shutdown(socket.SHUT_WR)
tell(event="waiting")
time.sleep(5)
count = 0
while data := connection.recv(1 << 16):
    count += len(data)
tell(event="seen", count=count)
"""
    async with running_pair(tmp_path, way, program) as (_, _, client):
        await event_named(client, "waiting")
        # All of it would have come by now.
        await trio.sleep(3)
        carriers = [
            child for child in psutil.Process().children() if "edgellm.overlay.carrier" in child.cmdline()
        ]
        assert len(carriers) == 2
        assert all(carrier.memory_info().rss < 100 << 20 for carrier in carriers)
        assert (await event_named(client, "seen"))["count"] == 64 * ((1 << 20) + 8)


async def test_stranger_with_another_certificate_gets_nowhere(tmp_path: Path) -> None:
    """Whoever reaches the listener without a member's key: no byte of the cell, and members go on."""
    program = """
with connect(5000) as connection:
    connection.sendall(b"still here")
    tell(event="seen", answer=connection.recv(10).decode())
time.sleep(3600)
"""
    async with running_pair(tmp_path, "tls", program) as (pair, _, client):
        host, port = pair[0].endpoint
        stranger = make_member_identity()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        path = tmp_path / "stranger.pem"
        path.write_bytes(stranger.private_key_pem + stranger.certificate_pem)
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname = False
        bare.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(path)

        def try_in(using: ssl.SSLContext) -> bytes:
            with (
                socket.create_connection((host, port), timeout=10) as tcp,
                using.wrap_socket(tcp) as tls,
            ):
                tls.sendall((5000).to_bytes(2, "big") + bytes(32))
                return tls.recv(1)

        for using in (context, bare):
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await trio.to_thread.run_sync(try_in, using)
        with socket.create_connection((host, port)) as garbage:
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        assert (await event_named(client, "seen"))["answer"] == "still here"
        assert pair[0].overlay.stats().keys() == {"10.88.7.2"}


async def test_impostor_at_an_endpoint_is_not_believed(tmp_path: Path) -> None:
    """Another certificate answers at the member's endpoint: the connection goes by libp2p instead."""
    true, impostor, own = make_member_identity(), make_member_identity(), make_member_identity()
    asked: list[tuple[str, int]] = []

    async def open_stream(address: str, port: int) -> Any:
        asked.append((address, port))
        raise NetworkError("no stream either")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        context = server_context(impostor, [own.certificate_der])

        def pretend() -> None:
            while True:
                try:
                    tcp, _ = listening.accept()
                    with context.wrap_socket(tcp, server_side=True) as tls:
                        tls.recv(1)
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: trio.to_thread.run_sync(pretend, abandon_on_cancel=True))
            plan = (
                OverlayMember("10.88.7.1", true.certificate_der, (listening.getsockname(),)),
                OverlayMember("10.88.7.2", own.certificate_der),
            )
            runtime = tmp_path / "run"
            runtime.mkdir()
            program = CLIENT + (
                "def ask():\n"
                "    with connect(5000) as connection:\n"
                "        connection.sendall(b'x')\n"
                "        return connection.recv(1)\n"
                "tell(event='seen', how=attempt(ask))\n"
                "time.sleep(3600)\n"
            )
            async with (
                open_overlay(
                    OverlaySpec("10.88.7.2", plan), runtime, bind_listener("127.0.0.1"), own, open_stream
                ),
                open_cell(python_cell(program, runtime, address="10.88.7.2", subnet=SUBNET)) as cell,
            ):
                assert (await event_named(cell, "seen"))["how"] == "ConnectionResetError"
            nursery.cancel_scope.cancel()
    assert asked == [("10.88.7.1", 5000)]


async def test_hostile_cell_cannot_hurt_its_carrier(tmp_path: Path) -> None:
    """It has the same socket directory as the redirector, and may send what it likes."""
    program = """
def channel():
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect("/run/edgellm/overlay.sock")
    return connection
def message(kind, port, address, number=0):
    return struct.pack("!BxH4sI", kind, port, socket.inet_aton(address), number)
reader, writer = os.pipe()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
unix, _ = socket.socketpair()
listening = socket.create_server(("127.0.0.1", 0))
unconnected = socket.socket()
passed = [reader, udp.fileno(), unix.fileno(), listening.fileno(), unconnected.fileno()]
packets = [b"", b"x", os.urandom(12), os.urandom(4000)]
packets += [message(1, 5000, SERVER), message(3, 1, SERVER, 1), message(9, 1, SERVER)]
for fds in [[], *[[fd] for fd in passed], passed]:
    for packet in packets:
        try:
            with channel() as connection:
                socket.send_fds(connection, [packet], fds)
                time.sleep(0.005)
        except OSError:
            pass
many = []
for _ in range(20):
    try:
        many.append(channel())
    except OSError:
        pass
# A connection whose socket this side keeps and makes blocking again.
with connect(5000) as connection:
    connection.sendall(b"still here")
    tell(event="seen", answer=connection.recv(10).decode())
time.sleep(3600)
"""
    async with running_pair(tmp_path, "tls", program) as (pair, _, client):
        assert (await event_named(client, "seen"))["answer"] == "still here"
        with trio.move_on_after(0.5):
            await pair[1].overlay.wait_dead()
            pytest.fail("the carrier died")


async def test_death_of_the_carrier_is_told_and_cuts_the_cell_off(tmp_path: Path) -> None:
    program = """
connection = connect(5000)
connection.sendall(b"x")
connection.recv(1)
tell(event="seen")
tell(event="after", how=attempt(lambda: connection.recv(1)), again=attempt(lambda: connect(5000).recv(1)))
time.sleep(3600)
"""
    async with running_pair(tmp_path, "tls", program) as (pair, _, client):
        await event_named(client, "seen")
        carriers = [
            child for child in psutil.Process().children() if "edgellm.overlay.carrier" in child.cmdline()
        ]
        carriers[1].kill()
        with trio.fail_after(2):
            await pair[1].overlay.wait_dead()
        after = await event_named(client, "after")
        assert after["how"] == "ConnectionResetError"
        assert after["again"] in ("ConnectionResetError", "ConnectionRefusedError")


async def test_three_members_reach_each_other(tmp_path: Path) -> None:
    program = """
def echo():
    server = socket.create_server(("0.0.0.0", 5000))
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(100) + b" from " + sys.argv[1].encode())
threading.Thread(target=echo, daemon=True).start()
time.sleep(1)
answers = []
for number in (1, 2, 3):
    with connect(5000, f"10.88.7.{number}") as connection:
        connection.sendall(b"hello")
        answers.append(connection.recv(100).decode())
tell(event="seen", answers=answers)
time.sleep(3600)
"""
    async with members(tmp_path, 3) as three, trio.open_nursery() as nursery:
        seen = []

        async def run(member: RunningMember) -> None:
            spec = python_cell(
                CLIENT + program, member.runtime, member.address, address=member.address, subnet=SUBNET
            )
            async with open_cell(spec) as cell:
                seen.append((await event_named(cell, "seen"))["answers"])
                while len(seen) < 3:
                    await trio.sleep(0.05)

        for member in three:
            nursery.start_soon(run, member)
        with trio.fail_after(30):
            while not all(_connections(member, "tls", "stream") == [2, 2] for member in three):
                await trio.sleep(0.05)
        assert [_connections(member, "tls") for member in three] == [[2, 2]] * 3, "none needed the node"
    assert seen == [[f"hello from 10.88.7.{number}" for number in (1, 2, 3)]] * 3


def _connections(member: RunningMember, *ways: str) -> list[int]:
    return [sum(by_way[way].connections for way in ways) for by_way in member.overlay.stats().values()]


async def test_addresses_of_a_plan_are_checked(tmp_path: Path) -> None:
    identity = make_member_identity()
    for addresses in (("10.88.7.2", "10.88.8.1"), ("10.88.7.2", "127.0.0.1"), ("10.88.7.2", "10.88.7.3")):
        spec = OverlaySpec(
            addresses[0], tuple(OverlayMember(address, identity.certificate_der) for address in addresses)
        )
        with pytest.raises(ProtocolViolation):
            async with open_overlay(spec, tmp_path, bind_listener("127.0.0.1"), identity, _no_stream):
                pass


async def _no_stream(address: str, port: int) -> Any:
    raise NetworkError("there are no streams")


CHANGING = """
def ask(connection):
    connection.sendall(b"x")
    if connection.recv(1) != b"x":
        raise ConnectionResetError

connection = connect(5000)
ask(connection)
tell(event="asked")
try:
    while True:
        ask(connection)
        time.sleep(0.02)
except OSError:
    tell(event="cut")
while True:
    try:
        ask(connect(5000))
        break
    except OSError:
        time.sleep(0.05)
tell(event="asked again")
time.sleep(3600)
"""


@pytest.mark.parametrize("way", ["tls", "stream"])
async def test_a_member_that_is_one_no_longer_is_cut_off_and_one_that_stays_is_not(
    tmp_path: Path, way: Way
) -> None:
    stranger = OverlayMember("10.88.7.9", make_member_identity().certificate_der)
    async with running_pair(tmp_path, way, CHANGING) as ((server, client), _, cell):
        await event_named(cell, "asked")
        # Somebody new comes, who stays is not disturbed.
        await server.overlay.admit((server.known, client.known, stranger))
        with trio.move_on_after(0.5) as undisturbed:
            await event_named(cell, "cut")
        assert undisturbed.cancelled_caught

        await server.overlay.admit((server.known, stranger))
        await event_named(cell, "cut")
        with trio.move_on_after(0.5) as refused:
            await event_named(cell, "asked again")
        assert refused.cancelled_caught

        await server.overlay.admit((server.known, client.known))
        await event_named(cell, "asked again")


async def test_members_of_another_cluster_are_not_admitted(tmp_path: Path) -> None:
    async with members(tmp_path, 2) as (first, second):
        with pytest.raises(ProtocolViolation):
            await first.overlay.admit((second.known, OverlayMember("10.88.8.3", b"")))
