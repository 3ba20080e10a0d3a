"""Serves what a head needs of a model (manifest, config, tokenizer) to requesters that do not hold it. Never weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from edgellm.errors import ProtocolViolation
from edgellm.p2p.framing import MessageStream
from edgellm.p2p.network import Network, Stream
from edgellm.wire import wire_pb2

PROTOCOL = "/edgellm/model/1"
ANSWER_TIMEOUT_S = 30.0
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ServedModel:
    directory: Path
    manifest: bytes
    """Canonical encoding."""
    light_files: frozenset[str]
    """Paths that may be asked for."""


def serve_model_files(network: Network, models: Mapping[str, ServedModel]) -> None:
    """Answers `/edgellm/model/1` for `models`, keyed by digest (hex). Only their `light_files` are ever read."""

    async def answer(stream: Stream) -> None:
        messages = MessageStream(stream)
        with trio.fail_after(ANSWER_TIMEOUT_S):
            request = await messages.receive(wire_pb2.ModelRequest, max_bytes=4096)
            model = models.get(request.digest.hex())
            if model is None:
                await messages.send(wire_pb2.ModelReply(error="no model of this digest"))
                return
            if not request.path:
                await messages.send(wire_pb2.ModelReply(size_bytes=len(model.manifest)))
                await stream.send_all(model.manifest)
                return
            if request.path not in model.light_files:
                await messages.send(wire_pb2.ModelReply(error="no such file"))
                raise ProtocolViolation(f"peer {stream.peer} asked for a file that is not served")
            async with await trio.open_file(model.directory / request.path, "rb") as file:
                size = await file.seek(0, 2)
                await file.seek(0)
                await messages.send(wire_pb2.ModelReply(size_bytes=size))
                while chunk := await file.read(CHUNK_BYTES):
                    await stream.send_all(chunk)

    network.serve(PROTOCOL, answer)
