"""A host's quota: what people write, what is counted, when it opens again, and that a restart forgets nothing."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from edgellm.cluster.switchboard import Switchboard
from edgellm.errors import HostLost, NetworkError, UsageError, unwrapped
from edgellm.hosting.quota import Allowance, Ledger, Work, began, ends, parse_lending_quota
from edgellm.hosting.quota_keeper import SAVE_S, QuotaKeeper
from edgellm.hosting.quota_ledger import load_ledger, save_ledger
from edgellm.hosting.runner import CellRunner
from edgellm.leasing.account import NOTICE_S
from edgellm.leasing.hold import LeasesRefused
from edgellm.leasing.lease import Lease, Phase
from edgellm.p2p.identity import Identity
from edgellm.testing.memory_network import open_hub
from edgellm.testing.scripted_machine import ScriptedMachine
from edgellm.types.plan import ClusterPlan, Member
from tests.unit.samples import DIGEST
from tests.unit.test_leasing_stream import FakeRunner, hold_leases, join_host, sealed, wish

NOON = datetime(2026, 3, 18, 12, 34, 56).timestamp()
"""A Wednesday."""


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def lease(identifier: str = "a", requester: str = "peer") -> Lease:
    return Lease(identifier, "c" * 32, requester, ("0",), 1, 0, 8, DIGEST, "overlay", Phase.RUNNING, 0.0)


def test_a_quota_is_read_as_people_write_it() -> None:
    assert parse_lending_quota("2h/day, 1e6tok/day,10GB/week,30min/Hour/member,1.5Mtok/month") == (
        Allowance("time", 7200, "day"),
        Allowance("tokens", 1e6, "day"),
        Allowance("bytes", 10e9, "week"),
        Allowance("time", 1800, "hour", each_member=True),
        Allowance("tokens", 1.5e6, "month"),
    )
    assert [str(part) for part in parse_lending_quota("90min/day,1e6tok/day,2GiB/hour/member")] == [
        "1h 30m/day",
        "1,000,000 tok/day",
        "2.00 GiB/hour/member",
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        (",", "empty"),
        ("2h", "'2h' is no quota"),
        ("2h/fortnight", "'fortnight' in '2h/fortnight' is no period"),
        ("2h/day/peer", "no quota"),
        ("2h/day,", "'' is no quota"),
        ("two hours/day", "'two hours'"),
        ("2/day", "'2' in '2/day' is no amount"),
        ("-2h/day", "no amount"),
        ("0tok/day", "no possible amount"),
        ("1e99tok/day", "no possible amount"),
        ("5s/day", "too short"),
        ("10XB/day", "no amount"),
        ("nan tok/day", "no amount"),
    ],
)
def test_what_is_no_quota_is_named(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        parse_lending_quota(text)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("period", "since", "until"),
    [
        ("hour", "2026-03-18T12:00", "2026-03-18T13:00"),
        ("day", "2026-03-18T00:00", "2026-03-19T00:00"),
        ("week", "2026-03-16T00:00", "2026-03-23T00:00"),
        ("month", "2026-03-01T00:00", "2026-04-01T00:00"),
    ],
)
def test_periods_are_those_of_the_calendar(period: str, since: str, until: str) -> None:
    assert began(period, NOON) == at(since)  # type: ignore[arg-type]
    assert ends(period, NOON) == at(until)  # type: ignore[arg-type]


def test_a_day_with_a_change_of_clocks_is_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        for noon, hours in (("2026-03-29T12:00", 23), ("2026-10-25T12:00", 25), ("2026-06-01T12:00", 24)):
            assert ends("day", at(noon)) - began("day", at(noon)) == hours * 3600
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_is_used_up_says_when_it_opens() -> None:
    quota = parse_lending_quota("2h/day,100tok/hour")
    ledger = Ledger({}).charge("", Work(7199.0, 100), quota, NOON)
    spent = ledger.spent("", quota, NOON)
    assert spent is not None
    assert str(spent).startswith("its quota of 100 tok/hour is used up; it opens again at 2026-03-18 13:00")
    ledger = ledger.charge("", Work(1.0), quota, NOON)
    assert "2h/day" in str(ledger.spent("", quota, NOON))
    assert ledger.spent("", quota, at("2026-03-19T00:00")) is None
    tomorrow = ledger.charge("", Work(5.0), quota, at("2026-03-19T08:00"))
    assert tomorrow.taken(quota[0], "", at("2026-03-19T08:00")) == 5.0
    assert len(tomorrow.entries) == 2


def test_members_have_accounts_of_their_own_and_one_together() -> None:
    quota = parse_lending_quota("100tok/day,40tok/day/member")
    ledger = Ledger({}).charge("alice", Work(tokens=40), quota, NOON)
    assert ledger.spent("alice", quota, NOON) is not None
    assert ledger.spent("bob", quota, NOON) is None
    ledger = ledger.charge("bob", Work(tokens=39), quota, NOON).charge("carol", Work(tokens=21), quota, NOON)
    assert ledger.taken(quota[0], "dave", NOON) == 100
    assert ledger.spent("dave", quota, NOON) is not None


def test_two_allowances_of_one_account_are_charged_once() -> None:
    quota = parse_lending_quota("100tok/day,50tok/day")
    ledger = Ledger({}).charge("", Work(tokens=10), quota, NOON)
    assert [ledger.taken(part, "", NOON) for part in quota] == [10, 10]
    assert ledger.charge("", Work(tokens=0), quota, NOON).taken(quota[0], "", NOON) == 10


def test_the_ledger_survives_a_restart_and_is_never_half_written(tmp_path: Path) -> None:
    path = tmp_path / "quota.json"
    ledger = Ledger({}).charge("alice", Work(5.0, 7, 9), parse_lending_quota("1h/day,9tok/week/member"), NOON)
    save_ledger(ledger, path)
    assert load_ledger(path).entries == ledger.entries
    assert [entry.name for entry in tmp_path.iterdir()] == ["quota.json"]
    path.write_bytes(b'{"version": 1, "taken": [{}]}')
    with pytest.raises(UsageError, match="damaged"):
        load_ledger(path)


async def test_a_keeper_counts_each_lease_once_and_writes_it_down(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "quota.json"
    quota = parse_lending_quota("2h/day,1000tok/day,1MB/day")
    keeper = QuotaKeeper(quota, path, now=lambda: NOON)
    with keeper.hold(lease()), keeper.hold(lease("b")):
        keeper.count("a", tokens=300, transferred_bytes=1000)
        keeper.count("a", tokens=200)
        keeper.count("nobody", tokens=10**9)
        await trio.sleep(60)
    again = QuotaKeeper(quota, path, now=lambda: NOON)
    taken = [again._ledger.taken(part, "", NOON) for part in quota]
    assert taken == [pytest.approx(120), 300, 1000]
    assert again.lines()[0] == "2h/day: 1h 58m left"
    assert again.refusal("anybody") is None


async def test_a_host_that_is_killed_has_forgotten_seconds_only(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "quota.json"
    quota = parse_lending_quota("2h/day")
    keeper = QuotaKeeper(quota, path, now=lambda: NOON)
    with keeper.hold(lease()), trio.move_on_after(60.5):
        await keeper.used_up(lease())
        pytest.fail("there is more")
    # As if it had been killed: what was written before the lease ended.
    with keeper.hold(lease("b")), trio.move_on_after(60.5):
        await keeper.used_up(lease("b"))
    written = load_ledger(path).taken(quota[0], "", NOON)
    assert 120 - 2 * SAVE_S <= written <= 122


async def test_a_lease_that_uses_up_the_quota_is_drained_with_notice_and_the_next_one_refused(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_hub() as hub:
        host, requester = join_host(hub), hub.join()
        keeper = QuotaKeeper(parse_lending_quota("60s/day"), tmp_path / "q", now=lambda: NOON)
        host.server.account = keeper
        assert isinstance(host.runner, FakeRunner)
        began_at = trio.current_time()
        with (
            pytest.raises(HostLost, match="quota of 1m/day is used up; it opens again at 2026-03-19"),
            unwrapped(),
        ):
            async with hold_leases(requester, [wish(host)]) as leases:
                await leases.commit(sealed(leases, requester.identity))
                told = [(await leases.news.receive()).phase for _ in range(2)]
                assert told == ["joined", "draining"]
                assert trio.current_time() - began_at == pytest.approx(60, abs=2)
                await trio.sleep_forever()
        assert trio.current_time() - began_at == pytest.approx(60 + NOTICE_S, abs=3)
        with pytest.raises(LeasesRefused, match="is used up") as refused:
            async with hold_leases(requester, [wish(host)]):
                pytest.fail("the quota is used up")
        assert refused.value.denials[0].code == "quota"
        assert host.free


async def test_what_a_cell_says_and_what_passes_its_network_is_counted(tmp_path: Path) -> None:
    keeper = QuotaKeeper(parse_lending_quota("1000tok/day,1MB/day"), tmp_path / "q", now=lambda: NOON)
    async with open_hub() as hub:
        network = hub.join()
        machine = ScriptedMachine()
        runner = CellRunner(network, Switchboard(network), machine, {DIGEST: tmp_path}, quota=keeper)
        requester = Identity.generate()
        plan = plan_for(network.peer, requester)
        held = lease(plan.workers[0].lease, requester.peer)
        with keeper.hold(held), pytest.raises(NetworkError, match="gone"), runner.prepare(held) as doorway:
            async with runner.run(held, plan, doorway) as cell:
                news = cell.news()
                assert (await anext(news)).phase == "cell"
                assert (await anext(news)).phase == "joined"
                assert (await anext(news)).phase == "warm"
                for count in (100, 250, -7, "9999", 1 << 70):
                    machine.cells[0].say.send_nowait({"event": "tokens", "count": count})
                machine.cells[0].say.send_nowait({"event": "phase", "name": "step"})
                assert (await anext(news)).phase == "step"
                # Comes out as it is, though tasks run beside the cell.
                raise NetworkError("gone")
        assert keeper._ledger.taken(keeper.quota[0], "", NOON) == 250


def plan_for(peer: str, requester: Identity) -> ClusterPlan:
    head = Member(requester.peer, "10.88.7.1", b"", ())
    worker = Member(peer, "10.88.7.2", b"", (), "a", 0, 8, ("0",), 1 << 30)
    return ClusterPlan(
        "c" * 32, DIGEST, 1, (head, worker), "overlay", 256, 1 << 20, "10.88.7.0/24", "ab" * 32, NOON
    )
