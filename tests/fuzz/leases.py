"""What requester and host say to each other over a lease, and the plan of a cluster."""

from __future__ import annotations

from functools import cache

from edgellm.leasing.accept import objection
from edgellm.leasing.codec import DOMAIN as PLAN_DOMAIN
from edgellm.leasing.codec import PAYLOAD_TYPE as PLAN_TYPE
from edgellm.leasing.codec import open_plan, seal_plan
from edgellm.leasing.hold import Denial, HeldLease, Wish, _reserve
from edgellm.leasing.lease import Lease, Phase
from edgellm.leasing.terms import certificate_from_wire, endpoints_from_wire, terms_from_wire, terms_to_wire
from edgellm.p2p.envelope import seal
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import PeerAddress
from edgellm.p2p.varint import encode_varint
from edgellm.types.plan import ClusterPlan, Endpoint, KvSharing, Member
from edgellm.wire import wire_pb2
from tests.fuzz.decoder import EARLY, Decoder
from tests.fuzz.peer import NOW, SELF, Bytes, Serving, in_trio, payload, prefixed, wire
from tests.unit.samples import DIGEST, GIB, terms


@cache
def sample_plan() -> ClusterPlan:
    member = Member(SELF.peer, "10.88.7.1", b"certificate", (Endpoint("10.0.0.1", 7000),))
    worker = Member(
        SELF.peer, "10.88.7.2", b"certificate", (), "l1", 0, 8, ("0",), GIB, ("/ip4/10.0.0.1/tcp/1",)
    )
    scope = bytes(range(16))
    sharing = KvSharing("session", scope, bytes(32), SELF.peer, ("/ip4/10.0.0.1/tcp/1",), 100.0)
    return ClusterPlan(
        "c" * 32,
        DIGEST,
        1,
        (member, worker),
        "overlay",
        256,
        1 << 20,
        "10.88.7.0/24",
        "ab" * 32,
        NOW,
        sharing,
    )


def read_plan(data: bytes) -> None:
    signer, plan = open_plan(data)
    lease = Lease("l1", "c" * 32, SELF.peer, ("0",), GIB, 0, 8, DIGEST, "overlay", Phase.RESERVED, NOW)
    objection(plan, signer=signer, peer=SELF.peer, lease=lease, certificate=b"certificate", now=NOW)
    for each in plan.members:
        plan.at(each.address)


def read_signed_plan(data: bytes) -> None:
    read_plan(seal(SELF, PLAN_DOMAIN, PLAN_TYPE, data))


def read_from_requester(data: bytes) -> None:
    message = wire_pb2.FromRequester.FromString(data)
    match message.WhichOneof("message"):
        case "reserve":
            terms_from_wire(message.reserve)
        case "commit":
            read_plan(message.commit.plan_envelope)


def read_from_host(data: bytes) -> None:
    message = wire_pb2.FromHost.FromString(data)
    endpoints_from_wire(list(message.granted.overlay_endpoints))
    certificate_from_wire(message.granted.overlay_certificate)
    str(message)


def read_grant(data: bytes) -> None:
    """Whatever a host answers is a lease or a denial."""

    async def reserve() -> None:
        wish = Wish(PeerAddress(SELF.peer), "alice", terms())
        lease = await _reserve(Serving(Bytes(data)), wish)  # type: ignore[arg-type]
        assert isinstance(lease, HeldLease | Denial)
        if isinstance(lease, HeldLease):
            assert len(lease.devices) == 1

    in_trio(reserve)


def read_messages(data: bytes) -> None:
    async def read() -> None:
        messages = MessageStream(Bytes(data), max_bytes=4096)
        while True:
            await messages.receive(wire_pb2.FromRequester)

    in_trio(read)


def _grants() -> list[bytes]:
    endpoint = wire_pb2.Endpoint(host="10.0.0.1", port=7)
    granted = wire_pb2.Granted(lease="l", devices=["0"], overlay_endpoints=[endpoint])
    return [
        prefixed(wire_pb2.FromHost(granted=granted)),
        prefixed(wire_pb2.FromHost(refused=wire_pb2.Refused(reason="no", code="busy"))),
    ]


DECODERS = (
    Decoder("grants", read_grant, _grants, ()),
    Decoder("plan", read_plan, lambda: [seal_plan(sample_plan(), SELF)]),
    Decoder(
        "signed plan",
        read_signed_plan,
        lambda: [payload(seal_plan(sample_plan(), SELF), PLAN_DOMAIN, PLAN_TYPE)],
        share=2,
    ),
    Decoder(
        "messages to a host",
        read_from_requester,
        lambda: [
            wire(wire_pb2.FromRequester(reserve=terms_to_wire(terms()))),
            wire(
                wire_pb2.FromRequester(commit=wire_pb2.Commit(plan_envelope=seal_plan(sample_plan(), SELF)))
            ),
        ],
        EARLY,
    ),
    Decoder(
        "messages of a host",
        read_from_host,
        lambda: [
            wire(
                wire_pb2.FromHost(
                    granted=wire_pb2.Granted(
                        lease="l",
                        devices=["0"],
                        overlay_endpoints=[wire_pb2.Endpoint(host="10.0.0.1", port=7)],
                    )
                )
            ),
            wire(wire_pb2.FromHost(refused=wire_pb2.Refused(reason="no", code="busy"))),
        ],
        EARLY,
    ),
    Decoder(
        "message stream",
        read_messages,
        lambda: [
            encode_varint(len(body)) + body
            for body in (wire(wire_pb2.FromRequester(reserve=terms_to_wire(terms()))),)
        ],
    ),
)
