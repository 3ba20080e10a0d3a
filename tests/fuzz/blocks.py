"""Blocks, what they are asked for by, and manifests of models."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from edgellm.blocks.bitswap import Bitswap
from edgellm.blocks.cid import Cid
from edgellm.blocks.exchange import BlockExchange, serve_blocks
from edgellm.hosting.model_files import ServedModel, serve_model_files
from edgellm.models.manifest import build_manifest, decode_manifest, encode_manifest
from edgellm.p2p.network import PeerAddress
from edgellm.p2p.varint import encode_varint
from edgellm.requester.model_files import _fetch
from edgellm.wire import wire_pb2
from edgellm.wire.bitswap_pb2 import BitswapMessage
from tests.fuzz.decoder import Decoder
from tests.fuzz.peer import SELF, Bytes, Serving, in_trio, prefixed, wire
from tests.unit.samples import DIGEST
from tests.unit.swarm_in_memory import TINY


class Blocks:
    """A store that has one block."""

    def __init__(self) -> None:
        self.block = b"block"

    async def has(self, cid: Cid) -> bool:
        return cid.matches(self.block)

    async def get(self, cid: Cid) -> bytes:
        from edgellm.errors import BlockMissing

        if not cid.matches(self.block):
            raise BlockMissing("no")
        return self.block


def read_blocks_question(data: bytes) -> None:
    network = Serving()
    serve_blocks(network, Blocks())  # type: ignore[arg-type]
    (handler,) = network.handlers.values()
    in_trio(lambda: handler(Bytes(data)))


def read_blocks_answer(data: bytes) -> None:
    exchange = BlockExchange(Serving(Bytes(data)))  # type: ignore[arg-type]
    in_trio(
        lambda: exchange.fetch([Cid.of(b"block"), Cid.of(b"other")], [PeerAddress(SELF.peer)], timeout_s=0.3)
    )


def read_bitswap(data: bytes) -> None:
    network = Serving()
    Bitswap(network, Blocks())  # type: ignore[arg-type]
    (handler,) = network.handlers.values()
    in_trio(lambda: handler(Bytes(encode_varint(len(data)) + data)))


def read_model_question(data: bytes) -> None:
    network: Any = Serving()
    serve_model_files(network, {DIGEST: ServedModel(Path("/nowhere"), b"manifest", frozenset())})
    (handler,) = network.handlers.values()
    in_trio(lambda: handler(Bytes(data)))


def read_model_answer(data: bytes) -> None:
    async def fetch() -> None:
        network: Any = Serving(Bytes(data))
        assert len(await _fetch(network, PeerAddress(SELF.peer), DIGEST, "", 1000)) <= 1000

    in_trio(fetch)


DECODERS = (
    Decoder(
        "model questions",
        read_model_question,
        lambda: [
            prefixed(wire_pb2.ModelRequest(digest=bytes.fromhex(DIGEST))),
            prefixed(wire_pb2.ModelRequest(digest=bytes.fromhex(DIGEST), path="config.json")),
        ],
        share=0.5,
    ),
    Decoder(
        "model answers",
        read_model_answer,
        lambda: [
            prefixed(wire_pb2.ModelReply(size_bytes=8)) + b"manifest",
            prefixed(wire_pb2.ModelReply(error="no model of this digest")),
        ],
        share=0.5,
    ),
    Decoder(
        "block questions", read_blocks_question, lambda: [struct.pack("!H", 1) + Cid.of(b"block").digest]
    ),
    Decoder(
        "block answers",
        read_blocks_answer,
        lambda: [struct.pack("!I", 5) + b"block" + struct.pack("!I", 0xFFFFFFFF)],
    ),
    Decoder(
        "bitswap",
        read_bitswap,
        lambda: [
            wire(
                BitswapMessage(
                    wantlist=BitswapMessage.Wantlist(
                        entries=[
                            BitswapMessage.Wantlist.Entry(block=bytes(Cid.of(b"block")), send_dont_have=True)
                        ]
                    ),
                    blocks=[BitswapMessage.Block(prefix=bytes(Cid.of(b"x"))[:4], data=b"x")],
                )
            )
        ],
    ),
    Decoder(
        "CID",
        Cid.of_same_bytes,
        lambda: [bytes(Cid.of(b"x"))],
        share=0.3,
    ),
    Decoder(
        "CID as text",
        lambda data: Cid.parse(data.decode("latin-1")),
        lambda: [str(Cid.of(b"x")).encode()],
        share=0.3,
    ),
    Decoder("manifest", decode_manifest, lambda: [encode_manifest(build_manifest(TINY, None))]),
)
