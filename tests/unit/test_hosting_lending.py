"""When a host lends: times that its owner gives, pauses, and what the owner says to a host that runs."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from edgellm.cli.host import status_lines
from edgellm.discovery.collect import SequenceBook, find_hosts
from edgellm.discovery.publish import Publisher
from edgellm.errors import NetworkError, UsageError
from edgellm.hosting.control import (
    MAX_CALLERS,
    SOCKET,
    HostStatus,
    LeaseLine,
    Order,
    Pause,
    Resume,
    Status,
    control_socket,
    running,
    sockets,
    tell,
    the_one,
)
from edgellm.hosting.hours import format_moment, notice_s, parse_until
from edgellm.hosting.lending import Lending
from edgellm.hosting.service import Advertiser
from edgellm.leasing.serve import LeaseServer
from edgellm.testing.memory_network import MemoryNetwork, open_hub
from tests.unit.samples import book
from tests.unit.test_leasing_stream import FakeRunner

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("18:00", timedelta(hours=6)),
        ("12:01", timedelta(minutes=1)),
        ("12:00", timedelta(days=1)),
        ("9:30", timedelta(hours=21, minutes=30)),
        ("2h", timedelta(hours=2)),
        ("90s", timedelta(seconds=90)),
        ("2026-11-21T14:30", timedelta(hours=2, minutes=30)),
        ("2026-11-21 14:30", timedelta(hours=2, minutes=30)),
        ("2026-11-21T12:00Z", timedelta(hours=1)),
        ("2026-11-22", timedelta(hours=12)),
    ],
)
def test_until_when(text: str, after: timedelta) -> None:
    assert parse_until(text, NOON) == (NOON + after).timestamp()


@pytest.mark.parametrize(
    "text",
    ["", "0", "soon", "25:00", "18:00:00:00", "2026-11-21T11:00", "2026-13-01T00:00", "-1h", "1e9h", ":"],
)
def test_what_is_no_time_to_stop_at(text: str) -> None:
    with pytest.raises(UsageError):
        parse_until(text, NOON)


def test_a_moment_is_shown_with_its_date_where_that_is_another() -> None:
    assert format_moment(parse_until("18:00", NOON), NOON) == "18:00"
    assert format_moment(parse_until("9:30", NOON), NOON) == "2026-11-22 09:30"


def test_how_long_before_its_end_a_host_takes_no_new_leases() -> None:
    assert notice_s(7200, 30) == 120
    assert notice_s(7200, 600) == 600
    assert notice_s(60, 30) == 30
    assert notice_s(-5, 30) == 0


@dataclass
class Host:
    network: MemoryNetwork
    leases: LeaseServer
    lending: Lending
    said: list[str]
    stop: trio.Event = field(default_factory=trio.Event)
    over: list[bool] = field(default_factory=list)

    async def run(self) -> None:
        self.over.append(await self.lending.is_over(self.stop))


@dataclass
class Swarm:
    host: Host
    requester: MemoryNetwork

    async def seen(self) -> str:
        """How a requester finds the host: "free", "draining" or "nowhere"."""
        found = await find_hosts(self.requester, "tiny", book=SequenceBook(), now=trio.current_time)
        return (
            "draining"
            if found.sightings and found.sightings[0].advert.draining
            else ("free" if found.sightings else "nowhere")
        )


@asynccontextmanager
async def swarm(until: float | None = None) -> AsyncIterator[Swarm]:
    async with open_hub(provider_ttl_s=30.0) as hub, trio.open_nursery() as nursery:
        network, requester = hub.join(), hub.join()
        lent = book()
        advertiser = Advertiser("alice", network.peer, lambda: (), lent, now=trio.current_time)
        leases = LeaseServer(network, lent, FakeRunner(), now=trio.current_time, changed=advertiser.use)
        publisher = Publisher(network, advertiser.current)
        said: list[str] = []
        lending = Lending(
            leases,
            publisher,
            name="alice",
            grace_s=30.0,
            until=until,
            on_step=said.append,
            now=trio.current_time,
        )
        leases.attach()
        await publisher.announce()
        host = Host(network, leases, lending, said)
        nursery.start_soon(host.run)
        yield Swarm(host, requester)
        nursery.cancel_scope.cancel()


async def test_a_pause_withdraws_the_host_and_ends_by_itself(autojump_clock: MockClock) -> None:
    async with swarm() as it:
        assert await it.seen() == "free"
        status = it.host.lending.obey(Pause(for_s=3600))
        assert (status.state, status.resumes_at) == ("paused", trio.current_time() + 3600)
        assert await it.seen() == "draining"
        await trio.sleep(60)
        # What others knew of it has expired, and it does not renew it.
        assert await it.seen() == "nowhere"
        await trio.sleep(3500)
        assert it.host.lending.status().state == "paused"
        await trio.sleep(60)
        assert it.host.lending.status().state == "lending"
        assert await it.seen() == "free"
        assert it.host.said == ["paused: no new leases", "lends again"]


async def test_a_pause_lasts_until_it_is_ended(autojump_clock: MockClock) -> None:
    async with swarm() as it:
        it.host.lending.obey(Pause())
        await trio.sleep(100_000)
        assert it.host.lending.obey(Status()).state == "paused"
        assert it.host.lending.obey(Resume()).state == "lending"
        assert it.host.lending.obey(Resume()).state == "lending"
        await trio.sleep(1)
        assert await it.seen() == "free"


async def test_a_pause_on_a_pause_changes_its_times(autojump_clock: MockClock) -> None:
    async with swarm() as it:
        it.host.lending.obey(Pause(for_s=10))
        it.host.lending.obey(Pause())
        await trio.sleep(100)
        assert it.host.lending.status().state == "paused"
        it.host.lending.obey(Pause(for_s=10))
        await trio.sleep(11)
        assert it.host.lending.status().state == "lending"


async def test_a_host_stops_when_it_said_and_takes_nothing_new_before(autojump_clock: MockClock) -> None:
    async with swarm(until=trio.current_time() + 3600) as it:
        assert it.host.leases.book.lends_until == it.host.lending.until
        await trio.sleep(3600 - 125)
        assert await it.seen() == "free"
        await trio.sleep(10)
        status = it.host.lending.status()
        assert status.state == "ending"
        assert status.leases_end_at == pytest.approx(it.host.lending.until)
        assert await it.seen() == "draining"
        for order in (Pause(), Resume()):
            with pytest.raises(UsageError, match="about to end"):
                it.host.lending.obey(order)
        assert it.host.over == []
        await trio.sleep(120)
        assert it.host.over == [True]


async def test_ctrl_c_ends_it_before_its_time(autojump_clock: MockClock) -> None:
    async with swarm(until=trio.current_time() + 3600) as it:
        it.host.stop.set()
        await trio.sleep(1)
        assert it.host.over == [False]


def status(name: str = "alice", peer: str = "12D3KooWalice", **changes: object) -> HostStatus:
    shown = {
        "name": name,
        "peer": peer,
        "pid": 1,
        "state": "lending",
        "models": ("tiny",),
        "leases": (),
        "max_leases": 1,
        "lent_memory_bytes": 4 << 30,
        "free_memory_bytes": 4 << 30,
    } | changes
    return HostStatus(**shown)  # type: ignore[arg-type]


async def in_thread(call: Callable[[], HostStatus]) -> HostStatus:
    return await trio.to_thread.run_sync(call)


async def test_orders_go_through_a_socket_of_this_user_alone(tmp_path: Path) -> None:
    heard: list[Order] = []

    def obey(order: Order) -> HostStatus:
        heard.append(order)
        if isinstance(order, Resume):
            raise UsageError("not now", remedy="later")
        return status()

    path = tmp_path / SOCKET
    # What a host that was killed has left there.
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with control_socket(tmp_path, obey):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await in_thread(lambda: tell(path, Pause(within_s=30, for_s=7200))) == status()
        with pytest.raises(UsageError, match="not now") as refused:
            await in_thread(lambda: tell(path, Resume()))
        assert refused.value.remedy == "later"
        assert heard == [Pause(30, 7200), Resume()]
    assert not path.exists()
    with pytest.raises(NetworkError):
        tell(path, Status())


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b'{"type":"pause","for_s":"x"}\n', b"\xff\n", b"x" * 9000])
async def test_what_is_no_order_harms_nobody(line: bytes, tmp_path: Path) -> None:
    async with control_socket(tmp_path, lambda order: status()):
        for _ in range(MAX_CALLERS * 2):
            caller = await trio.open_unix_socket(str(tmp_path / SOCKET))
            await caller.send_all(line)
        assert await in_thread(lambda: tell(tmp_path / SOCKET, Status())) == status()


async def test_another_user_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.getuid()
    async with control_socket(tmp_path, lambda order: status()):
        caller = await trio.open_unix_socket(str(tmp_path / SOCKET))
        monkeypatch.setattr("edgellm.hosting.control.os.getuid", lambda: uid + 1)
        monkeypatch.setattr("edgellm.hosting.control._ROOT", -1)
        await caller.send_all(b'{"type":"status"}\n')
        answer = b""
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            answer = await caller.receive_some()
        assert answer == b""


async def test_a_path_that_is_too_long_costs_the_socket_and_no_host(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    async with control_socket(deep, lambda order: status()):
        assert not (deep / SOCKET).exists()


async def test_hosts_of_this_home_and_of_its_console_are_found(tmp_path: Path) -> None:
    runtime, theirs = tmp_path / "run", tmp_path / "cache" / "hosts" / "1" / "run"
    for directory in (runtime, theirs):
        directory.mkdir(parents=True)
    gone = tmp_path / "cache" / "hosts" / "2" / "run"
    gone.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(gone / SOCKET))
    bob = status("bob", "12D3KooWbobbob")
    async with control_socket(runtime, lambda order: status()), control_socket(theirs, lambda order: bob):
        hosts = await trio.to_thread.run_sync(lambda: running(sockets(runtime, tmp_path / "cache")))
        assert [shown.name for _, shown in hosts] == ["alice", "bob"]
    assert the_one(hosts, "bob") == the_one(hosts, "bobbob") == theirs / SOCKET
    assert the_one(hosts[:1], None) == runtime / SOCKET
    for name, what in ((None, "2 hosts run here"), ("carol", "no host here is called 'carol'")):
        with pytest.raises(UsageError, match=what) as refused:
            the_one(hosts, name)
        assert "alice, bob" in refused.value.remedy
    with pytest.raises(UsageError, match="no host of this user runs here"):
        the_one([], None)


def test_how_a_host_is_for_people() -> None:
    assert status_lines(status(), 0.0) == [
        "alice: lending",
        "  models  tiny",
        "  memory  4.00 GiB of 4.00 GiB free",
        "  leases  0 of 1",
    ]
    lease = LeaseLine("tiny", "12D3KooWrequester", 0, 4, 1 << 30, 40.0)
    assert status_lines(status(state="paused", leases=(lease,), leases_end_at=130.0), 100.0) == [
        "alice: paused until you say: edgellm host resume",
        "  models  tiny",
        "  memory  4.00 GiB of 4.00 GiB free",
        "  leases  1 of 1, ending in 30s",
        "    layers 0-3 of tiny, 1.00 GiB, for …equester since 1m",
    ]
    local = datetime.now(UTC).astimezone()
    later = local.timestamp() + 86400 * 2
    assert status_lines(status(until=later), 0.0)[0] == f"alice: lending until {format_moment(later, local)}"
