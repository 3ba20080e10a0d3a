"""Numbers, names and addresses of peers, and where they are told."""

from __future__ import annotations

from types import SimpleNamespace

from edgellm.p2p.addresses import split_peer, without_peer, written
from edgellm.p2p.dht import _addresses
from edgellm.p2p.identity import public_key_of_peer
from edgellm.p2p.mdns import _addresses_of
from edgellm.p2p.varint import decode_varint, encode_varint
from tests.fuzz.decoder import EARLY, Decoder
from tests.fuzz.peer import SELF


def read_kad(data: bytes) -> None:
    from libp2p.kad_dht.pb.kademlia_pb2 import Message
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    message = Message.FromString(data)
    infos = []
    for provider in message.providerPeers:
        addresses = []
        for address in provider.addrs:
            try:
                addresses.append(Multiaddr(address))
            except Exception:  # noqa: BLE001, S112 - as libp2p does where it reads them
                continue
        infos.append(SimpleNamespace(peer_id=ID(provider.id), addrs=addresses))
    _addresses(infos)


def read_multiaddr(data: bytes) -> None:
    from multiaddr import Multiaddr

    text = data.decode("utf-8", "replace")
    without_peer(text)
    try:
        binary = Multiaddr(data)
    except Exception:  # noqa: BLE001 - what cannot be made is not kept
        binary = None
    if binary is not None:
        written([binary])
    split_peer(text)


def read_peer_id(data: bytes) -> None:
    public_key_of_peer(data.decode("utf-8", "replace"))


def read_mdns(data: bytes) -> None:
    _addresses_of(SimpleNamespace(text=data))


DECODERS = (
    Decoder("varint", decode_varint, lambda: [encode_varint(300), b"\xff" * 9], (ValueError,), 0.3),
    Decoder(
        "DHT providers",
        read_kad,
        lambda: [b"\x08\x03\x52\x04abcd\x4a\x0a\x0a\x02\x12\x20\x12\x04\x04\x7f\x00\x00"],
        EARLY,
    ),
    Decoder(
        "multiaddr",
        read_multiaddr,
        lambda: [b"/ip4/10.0.0.1/tcp/4001/p2p/" + SELF.peer.encode(), b"\x04\x7f\x00\x00\x01\x06\x0f\xa1"],
    ),
    Decoder("peer id", read_peer_id, lambda: [SELF.peer.encode()], (ValueError,), 0.5),
    Decoder(
        "mDNS",
        read_mdns,
        lambda: [
            bytes([len(entry)]) + entry
            for entry in (b"dnsaddr=/ip4/10.0.0.1/tcp/4001/p2p/" + SELF.peer.encode(),)
        ],
    ),
)
