"""Which signed plans a host acts on, and which bytes are a plan at all."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.cluster.assemble import Grant, HeadDoor, assemble, head_alone
from edgellm.cluster.limits import cell_limits
from edgellm.discovery.check import CLOCK_SKEW_S
from edgellm.errors import ProtocolViolation
from edgellm.kv.scope import ScopeKeys
from edgellm.leasing.accept import MAX_AGE_S, OVERLAY_RANGE, objection
from edgellm.leasing.codec import DOMAIN, MAX_ADDRESSES, MAX_CONTEXT, PAYLOAD_TYPE, open_plan, seal_plan
from edgellm.leasing.lease import Lease, Phase
from edgellm.p2p.envelope import seal
from edgellm.p2p.identity import Identity
from edgellm.planning.fit import ENGINE_BYTES
from edgellm.types.plan import (
    ClusterPlan,
    Endpoint,
    KvSharing,
    Member,
    PlanRequest,
    Prediction,
    Stage,
    StagePlan,
)
from tests.unit.samples import DIGEST, ENGINE, GIB, SHAPE

CLUSTER = "c8" + "0" * 30
LEASE = Lease(
    "lease-b", CLUSTER, "asker", ("1",), GIB, 3, 8, DIGEST, "overlay", Phase.RESERVED, granted_at=1000.0
)
CERTIFICATE = b"certificate-b"
NOW = 1003.0


def make_plan(fabric: str = "overlay", addresses: tuple[str, ...] = ("/ip4/10.0.0.1/tcp/4",)) -> ClusterPlan:
    """Two stages: host a has layers 0 to 2, host b 3 to 7."""
    stages = StagePlan(
        request=PlanRequest("tiny", DIGEST, SHAPE, context=256, fabric=fabric),
        engine=ENGINE,
        tensor_parallel=1,
        stages=(Stage("a", "alice", 0, 3, GIB), Stage("b", "bob", 3, 8, GIB)),
        kv_cache_bytes=1 << 20,
        prediction=Prediction(1.0, 1.0),
    )
    grants = [
        Grant(
            "a",
            "lease-a",
            ("0",),
            GIB,
            b"certificate-a",
            (Endpoint("10.0.0.1", 7000),),
            addresses,
            2,
        ),
        Grant("b", "lease-b", ("1",), GIB, CERTIFICATE, (Endpoint("10.0.0.2", 7000),), (), 3),
    ]
    head = HeadDoor("asker", b"certificate-head", (Endpoint("10.0.0.9", 7001),), ())
    alone = head_alone(stages.request, head, cluster=CLUSTER, token="ab" * 32, issued_at=1000.0)
    return assemble(alone, stages, grants, issued_at=1000.0)


PLAN = make_plan()
SECRET = b"s" * 32
KV = KvSharing(
    "session", ScopeKeys.derive(SECRET).scope_id, SECRET, "asker", ("/ip4/10.0.0.9/tcp/4001",), 812.5
)


def mine(**changes: object) -> ClusterPlan:
    return with_member(2, **changes)


def with_member(index: int, **changes: object) -> ClusterPlan:
    members = list(PLAN.members)
    members[index] = replace(members[index], **changes)  # type: ignore[arg-type]
    return replace(PLAN, members=tuple(members))


def with_idle_member() -> ClusterPlan:
    """A further member that runs no layer, and so is only there to be connected."""
    idle = replace(
        PLAN.members[1], peer="c", lease="lease-c", address="10.88.200.4", first_layer=3, end_layer=3
    )
    return replace(PLAN, members=(*PLAN.members[:2], idle, PLAN.members[2]))


def judge(plan: ClusterPlan, *, signer: str = "asker", lease: Lease = LEASE) -> str | None:
    return objection(plan, signer=signer, peer="b", lease=lease, certificate=CERTIFICATE, now=NOW)


def test_assembled_addresses_are_in_pipeline_order() -> None:
    assert PLAN.subnet == "10.88.200.0/24"
    assert [(member.peer, member.address) for member in PLAN.members] == [
        ("asker", "10.88.200.1"),
        ("a", "10.88.200.2"),
        ("b", "10.88.200.3"),
    ]
    assert [(member.first_layer, member.end_layer) for member in PLAN.workers] == [(0, 3), (3, 8)]
    assert (PLAN.head.lease, PLAN.head.devices, PLAN.head.memory_bytes) == ("", (), 0)


def test_on_the_direct_fabric_members_have_their_own_addresses() -> None:
    plan = make_plan("direct")
    assert [member.address for member in plan.members] == ["10.0.0.9", "10.0.0.1", "10.0.0.2"]
    assert judge(plan, lease=replace(LEASE, fabric="direct")) is None


def test_a_host_that_advertises_odd_addresses_spoils_no_plan() -> None:
    many = tuple(f"/ip4/10.0.0.{number}/tcp/1" for number in range(64))
    plan = make_plan(addresses=("", "/ip4/10.0.0.9/tcp/1 ", "/" + "a" * 256, *many))
    _, opened = open_plan(seal_plan(plan, Identity.generate()))
    assert opened.workers[0].addresses == many[:MAX_ADDRESSES]


def test_the_plan_that_was_granted_is_accepted() -> None:
    assert judge(PLAN) is None


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (replace(PLAN, cluster="d" * 32), "another cluster"),
        (replace(PLAN, digest="cd" * 32), "another cluster, model"),
        (replace(PLAN, fabric="direct"), "fabric"),
        (replace(PLAN, members=PLAN.members[:2]), "exactly once"),
        (replace(PLAN, members=(*PLAN.members, PLAN.members[2])), "exactly once"),
        (mine(lease="lease-z"), "exactly once"),
        (mine(first_layer=2), "other layers"),
        (mine(end_layer=7), "other layers"),
        (mine(devices=("0",)), "other devices"),
        (mine(devices=("1", "0")), "other devices"),
        (replace(PLAN, tensor_parallel=2), "other devices"),
        (mine(memory_bytes=GIB + 1), "more memory"),
        (replace(PLAN, kv_cache_bytes=GIB), "more memory"),
        (mine(overlay_certificate=b"certificate-a"), "another certificate"),
        (with_member(0, peer="a"), "head on another peer"),
        (replace(PLAN, kv=replace(KV, tracker="mallory")), "another tracker"),
        (replace(PLAN, kv=replace(KV, secret=b"t" * 32)), "not its secret's"),
        (replace(PLAN, max_model_len=0), "impossible context"),
        (replace(PLAN, max_model_len=MAX_CONTEXT + 1), "impossible context"),
        (with_member(1, address="10.88.200.3"), "one address"),
        (with_member(1, address="10.88.200.300"), "that is none"),
        (replace(PLAN, subnet="10.88.200.7/24"), "that is none"),
        (replace(PLAN, subnet="everywhere"), "that is none"),
        (replace(PLAN, subnet="10.88.200.0/255.255.255.0"), "unusual way"),
        (replace(PLAN, subnet="10.88.200.0"), "unusual way"),
        (replace(PLAN, issued_at=NOW - MAX_AGE_S - 1), "another time"),
        (replace(PLAN, issued_at=NOW + CLOCK_SKEW_S + 1), "another time"),
        (replace(PLAN, subnet="0.0.0.0/0"), "outside the overlay"),
        (with_member(1, address="10.88.201.2"), "outside the overlay"),
        (with_member(1, address="127.0.0.1"), "outside the overlay"),
        (with_member(1, end_layer=2), "exactly one stage"),
        (with_member(1, end_layer=4), "exactly one stage"),
        (with_member(1, first_layer=1), "exactly one stage"),
        (with_member(1, first_layer=3, end_layer=3), "exactly one stage"),
        (with_idle_member(), "exactly one stage"),
    ],
)
def test_each_objection(plan: ClusterPlan, why: str) -> None:
    said = judge(plan)
    assert said is not None
    assert why in said


def test_only_the_one_that_reserved_may_sign() -> None:
    assert "signed by another peer" in (judge(PLAN, signer="a") or "")


def test_a_plan_survives_the_wire() -> None:
    signer = Identity.generate()
    assert open_plan(seal_plan(PLAN, signer)) == (signer.peer, PLAN)
    sharing = replace(PLAN, kv=KV)
    assert open_plan(seal_plan(sharing, signer)) == (signer.peer, sharing)


def test_a_plan_that_shares_is_accepted_and_does_not_show_its_secret() -> None:
    plan = replace(PLAN, kv=KV)
    assert judge(plan) is None
    assert "ssss" not in repr(plan)
    assert KV.secret.hex() not in repr(plan)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (replace(PLAN, members=PLAN.members[:1]), "1 members"),
        (replace(PLAN, members=PLAN.members[:1] * 65), "65 members"),
        (replace(PLAN, cluster_token="short"), "digest or token"),
        (replace(PLAN, cluster_token="a" * 31 + "$"), "digest or token"),
        (replace(PLAN, digest="ab"), "digest or token"),
        (replace(PLAN, kv=replace(KV, scope="everybody")), "scope"),
        (replace(PLAN, kv=replace(KV, scope_id=b"")), "scope"),
        (replace(PLAN, kv=replace(KV, secret=b"short")), "secret"),
        (replace(PLAN, kv=replace(KV, tracker_addresses=("/ip4/10.0.0.9/tcp/1",) * 17)), "tracker"),
        (replace(PLAN, kv=replace(KV, prefill_tok_s=float("nan"))), "prefill"),
        (replace(PLAN, kv=replace(KV, prefill_tok_s=-1.0)), "prefill"),
        (with_member(1, address="edge.example"), "not of its form"),
        (with_member(1, address="10.0.0.1\n"), "not of its form"),
        (with_member(1, devices=("0",) * 65), "not of its form"),
        (with_member(1, overlay_certificate=bytes(4097)), "certificate"),
        (with_member(1, overlay_endpoints=(Endpoint("10.0.0.1", 0),)), "endpoint"),
        (with_member(1, overlay_endpoints=(Endpoint("-oProxy", 22),)), "endpoint"),
        (with_member(1, overlay_endpoints=(Endpoint("10.0.0.1", 1),) * 17), "17 overlay endpoints"),
        *(
            (with_member(1, overlay_endpoints=(Endpoint(host, 80),)), "endpoint")
            for host in (
                "face.dead",
                "fe80::1%eth0",
                "169.254.169.254",
                "0.0.0.0",
                "224.0.0.1",
                "255.255.255.255",
                "::ffff:127.0.0.1",
                "2002:7f00:1::",
                "0x7f000001",
                "127.1",
            )
        ),
        (replace(PLAN, cluster="C" * 32), "cluster or a fabric"),
        (replace(PLAN, cluster="../" * 10), "cluster or a fabric"),
        (replace(PLAN, fabric="host"), "cluster or a fabric"),
        (replace(PLAN, subnet="10.88.0.0/16; add table"), "subnet"),
        (replace(PLAN, subnet="1" * 100), "subnet"),
        (replace(PLAN, tensor_parallel=65), "ranks or tokens"),
        (replace(PLAN, tensor_parallel=0), "ranks or tokens"),
        (replace(PLAN, max_model_len=MAX_CONTEXT + 1), "ranks or tokens"),
        (replace(PLAN, max_model_len=0), "ranks or tokens"),
        (replace(PLAN, kv_cache_bytes=1 << 60), "size or time"),
        (replace(PLAN, issued_at=1e15), "size or time"),
        (with_member(1, peer="p" * 129), "not of its form"),
        (with_member(1, peer=""), "not of its form"),
        (with_member(1, lease="../../x\n"), "not of its form"),
        (with_member(1, devices=("0 --privileged",)), "not of its form"),
        (with_member(1, devices=("../kvm",)), "not of its form"),
        (with_member(1, addresses=("/ip4/10.0.0.1/tcp/1\n",)), "not of its form"),
        (with_member(1, addresses=("/" + "a" * 256,)), "not of its form"),
        (with_member(1, addresses=("/ip4/10.0.0.1/tcp/1",) * 17), "not of its form"),
        (with_member(1, address="١0.0.0.1"), "not of its form"),
        (with_member(1, end_layer=5000), "layers or bytes"),
        (with_member(1, memory_bytes=1 << 60), "layers or bytes"),
        (replace(PLAN, kv=replace(KV, tracker="a b")), "tracker"),
        (replace(PLAN, kv=replace(KV, tracker_addresses=("x",))), "tracker"),
    ],
)
def test_what_is_out_of_form_is_not_a_plan(plan: ClusterPlan, why: str) -> None:
    with pytest.raises(ProtocolViolation, match=why):
        open_plan(seal_plan(plan, Identity.generate()))


def test_a_changed_byte_anywhere_is_noticed() -> None:
    envelope = seal_plan(PLAN, Identity.generate())
    for index in range(0, len(envelope), 7):
        changed = bytearray(envelope)
        changed[index] ^= 1
        with pytest.raises(ProtocolViolation):
            open_plan(bytes(changed))


@given(st.binary(max_size=300))
def test_garbage_is_a_violation_and_nothing_else(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        open_plan(data)


SIGNER = Identity.generate()


@given(st.binary(max_size=300))
def test_signed_garbage_is_a_violation_too(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        open_plan(seal(SIGNER, DOMAIN, PAYLOAD_TYPE, data))


@given(
    address=st.from_regex(r"\A[0-9]{1,3}(\.[0-9]{1,3}){3}\Z"),
    subnet=st.text(max_size=20),
    first=st.integers(0, 99),
    end=st.integers(0, 99),
)
def test_no_plan_makes_the_judge_fail(address: str, subnet: str, first: int, end: int) -> None:
    plan = replace(with_member(1, address=address, first_layer=first, end_layer=end), subnet=subnet)
    said = judge(plan)
    assert said is None or said
    if said is None:
        assert (first, end) == (0, 3)


def plans() -> st.SearchStrategy[ClusterPlan]:
    """The plan that was granted with up to three of its fields changed, often to something that fits another field."""
    names = st.sampled_from(
        ["a", "b", "asker", "lease-a", "lease-b", "0", "1", "2", "nvidiactl", "..", "c" * 32]
    )
    numbers = st.sampled_from([0, 1, 2, 3, 5, 8, 64, 256, 1 << 20, GIB - 1, GIB, GIB + 1, 1 << 49])
    texts = st.sampled_from(
        ["10.88.200.3", "10.88.0.1", "0.0.0.0", "10.88.200.0/24", "10.88.0.0/16", "0.0.0.0/0"]
    )
    of_member = st.fixed_dictionaries(
        {},
        optional={
            "peer": names,
            "address": texts.filter(lambda text: "/" not in text),
            "overlay_certificate": st.sampled_from([CERTIFICATE, b"certificate-a", b""]),
            "lease": names,
            "first_layer": numbers.map(lambda number: number % 4096),
            "end_layer": numbers.map(lambda number: number % 4096),
            "devices": st.lists(names, max_size=4).map(tuple),
            "memory_bytes": numbers,
        },
    )
    of_plan = st.fixed_dictionaries(
        {},
        optional={
            "cluster": st.sampled_from([CLUSTER, "d" * 32]),
            "digest": st.sampled_from([DIGEST, "cd" * 32]),
            "tensor_parallel": numbers.filter(lambda number: 0 < number <= 64),
            "fabric": st.sampled_from(["overlay", "direct"]),
            "max_model_len": numbers.filter(lambda number: 0 < number <= MAX_CONTEXT),
            "kv_cache_bytes": numbers,
            "subnet": texts.filter(lambda text: "/" in text),
            "issued_at": st.sampled_from([1000.0, 0.0, 5000.0]),
            "spares": st.sampled_from([(), PLAN.members[2:], PLAN.members[1:2]]),
            "members": st.just(PLAN.members[:2]),
        },
    )

    def changed(values: tuple[int, dict[str, object], dict[str, object]]) -> ClusterPlan:
        index, member, rest = values
        return replace(with_member(index, **member), **rest)  # type: ignore[arg-type]

    return st.tuples(st.integers(0, 2), of_member, of_plan).map(changed)


@settings(max_examples=400, deadline=None)
@given(plans())
def test_no_plan_gets_more_than_its_lease(plan: ClusterPlan) -> None:
    """Whatever passes the codec and the judge: all that the host builds a cell from is the lease's."""
    signer, read = open_plan(seal_plan(plan, SIGNER))
    assert (signer, read) == (SIGNER.peer, plan)
    if judge(read) is not None:
        return
    own = read.of_lease(LEASE.id)
    assert own is not None
    assert own.devices == LEASE.devices
    assert own.memory_bytes <= LEASE.memory_bytes
    layers = (own.first_layer, own.end_layer)
    assert layers[0] == layers[1] if own in read.spares else layers == (LEASE.first_layer, LEASE.end_layer)
    assert (read.digest, read.cluster, read.fabric) == (LEASE.digest, LEASE.cluster, LEASE.fabric)
    assert (read.tensor_parallel, read.head.peer) == (len(LEASE.devices), LEASE.requester)
    assert own.overlay_certificate == CERTIFICATE
    assert read.kv_cache_bytes < LEASE.memory_bytes
    assert abs(read.issued_at - NOW) <= MAX_AGE_S
    subnet = IPv4Network(read.subnet)
    assert subnet.subnet_of(OVERLAY_RANGE)
    assert len({member.address for member in read.everyone}) == len(read.everyone)
    assert all(IPv4Address(member.address) in subnet for member in read.everyone)
    limits = cell_limits(
        "cpu",
        devices=len(own.devices),
        memory_bytes=own.memory_bytes,
        threads=1,
        usable_threads=2,
        is_head=False,
    )
    assert limits.memory_bytes is not None
    assert limits.memory_bytes <= LEASE.memory_bytes + ENGINE_BYTES["cpu"]


def test_a_plan_fits_no_other_lease() -> None:
    """Replayed: to the same host for its next lease, to another host, under another certificate, and late."""
    envelope = seal_plan(PLAN, SIGNER)
    _, replayed = open_plan(envelope)
    assert judge(replayed) is None
    again = replace(LEASE, id="lease-c")
    assert "its lease exactly once" in (judge(replayed, lease=again) or "")

    def elsewhere(peer: str = "b", certificate: bytes = CERTIFICATE, now: float = NOW) -> str:
        return (
            objection(replayed, signer="asker", peer=peer, lease=LEASE, certificate=certificate, now=now)
            or ""
        )

    assert "its lease exactly once" in elsewhere(peer="a")
    assert "another certificate" in elsewhere(certificate=b"new")
    assert "another time" in elsewhere(now=NOW + 3600)


def test_members_are_found_by_peer_and_address() -> None:
    found: Member | None = PLAN.at("10.88.200.3")
    assert found is PLAN.member("b")
    assert PLAN.at("10.88.200.9") is None
