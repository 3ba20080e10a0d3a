"""What a host lends and what its advert says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgellm.errors import UsageError
from edgellm.hosting.devices import lend
from edgellm.hosting.service import ADVERT_LIFETIME_S, make_advert
from edgellm.leasing.lease import Refusal
from edgellm.types.advert import Device, HostAdvert
from tests.unit.samples import GIB, book, device, terms

CPU = device("0", 100 * GIB)
GPUS = tuple(Device(str(index), "cuda", "H200", 140 * GIB, 4.8e12, 9e14) for index in range(3))


def test_a_cpu_lends_a_share_of_what_is_free() -> None:
    (lent,) = lend((CPU,), wanted=None, memory_bytes=None, free_bytes=10 * GIB)
    assert lent.memory_bytes == int(10 * GIB * 0.7)
    assert lent.bandwidth_bytes_s == CPU.bandwidth_bytes_s


def test_a_cpu_counts_as_several_devices_that_share_all_of_it() -> None:
    lent = lend((CPU,), wanted="4", memory_bytes=None, free_bytes=10 * GIB)
    assert [dev.id for dev in lent] == ["0", "1", "2", "3"]
    assert sum(dev.memory_bytes for dev in lent) <= 7 * GIB
    assert sum(dev.flops for dev in lent) == pytest.approx(CPU.flops)


def test_gpus_are_lent_by_id_once_and_in_the_order_said() -> None:
    assert lend(GPUS, wanted=None, memory_bytes=None, free_bytes=0) == GPUS
    assert lend(GPUS, wanted="2, 0,2", memory_bytes=None, free_bytes=0) == (GPUS[2], GPUS[0])


def test_a_cap_is_for_all_devices_together() -> None:
    lent = lend(GPUS, wanted="0,1", memory_bytes=100 * GIB, free_bytes=0)
    assert [dev.memory_bytes for dev in lent] == [50 * GIB, 50 * GIB]
    uncapped = lend(GPUS, wanted="0", memory_bytes=1000 * GIB, free_bytes=0)
    assert uncapped[0].memory_bytes == 140 * GIB


@pytest.mark.parametrize("wanted", ["0", "65", "-1", "1.5", "two", "", "²"])
def test_a_number_of_cpu_devices_that_is_none(wanted: str) -> None:
    with pytest.raises(UsageError, match="on a CPU this is a number"):
        lend((CPU,), wanted=wanted, memory_bytes=None, free_bytes=GIB)


@pytest.mark.parametrize(("wanted", "named"), [("3", "3"), ("0,7,9", "7, 9"), ("", "named"), (",", "named")])
def test_gpus_that_are_not_there(wanted: str, named: str) -> None:
    with pytest.raises(UsageError, match=f"there is no device {named}") as caught:
        lend(GPUS, wanted=wanted, memory_bytes=None, free_bytes=0)
    assert caught.value.remedy == "this machine has 0, 1, 2"


def test_a_machine_without_devices_lends_nothing() -> None:
    with pytest.raises(UsageError, match="no device to lend"):
        lend((), wanted=None, memory_bytes=None, free_bytes=GIB)


def test_an_advert_shows_what_leases_leave_free() -> None:
    lending = book(devices=2, max_leases=2)
    granted = lending.reserve(terms(memory_bytes=3 * GIB), lease="one", requester="asker", now=1.0)
    assert not isinstance(granted, Refusal)
    advert = make_advert(
        granted[0], name="alice", peer="a", addresses=("/ip4/1.2.3.4",), sequence=7, now=50.0
    )
    assert [dev.memory_bytes for dev in advert.devices] == [GIB, 4 * GIB]
    assert advert.free_memory_bytes == 5 * GIB
    assert advert.free_devices == ("1", "0")
    assert advert.free_leases == 1
    assert (advert.lent_memory_bytes, advert.load) == (8 * GIB, 0.375)
    assert (advert.issued_at, advert.expires_at) == (50.0, 50.0 + ADVERT_LIFETIME_S)
    assert advert.sequence == 7
    assert not advert.draining


def test_a_full_or_draining_host_offers_no_device() -> None:
    def shown(lending):  # type: ignore[no-untyped-def]
        return make_advert(lending, name="alice", peer="a", addresses=(), sequence=1, now=0.0)

    lending = book(max_leases=1)
    full, _ = lending.reserve(terms(), lease="one", requester="asker", now=1.0)  # type: ignore[misc]
    assert shown(full).free_devices == ()
    assert shown(full).free_leases == 0
    draining = shown(replace(lending, draining=True))
    assert draining.draining
    assert draining.free_devices == ()
    assert draining.free_leases == 0


def test_an_advert_says_when_the_host_stops_and_promises_nothing_after_that() -> None:
    def shown(now: float) -> HostAdvert:
        lending = replace(book(), lends_until=1000.0)
        return make_advert(lending, name="alice", peer="a", addresses=(), sequence=1, now=now)

    assert (shown(100.0).lends_until, shown(100.0).expires_at) == (1000.0, 100.0 + ADVERT_LIFETIME_S)
    assert shown(950.0).expires_at == 1000.0
