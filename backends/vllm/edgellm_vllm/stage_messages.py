"""Tensors from one pipeline stage to the next, over a TCP connection of their own.

vLLM sends the size of a description, the description, and each tensor, every one of them a gloo message that waits until the
receiver has asked for it: six to eight crossings of the network for each token. Here all of it is one message, and it crosses
once.
"""

from __future__ import annotations

import functools
import hmac
import json
import math
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed

from edgellm_vllm.stage_clock import CLOCK

_HEADER = struct.Struct("!IQH")
"""Bytes of the description, bytes of all tensors with their padding, and how many stages' computing times follow."""
_HELLO = struct.Struct("!I16s")
_CONNECT_TIMEOUT_S = 30.0
_HELLO_TIMEOUT_S = 10.0
# Every tensor begins at a multiple, as any of its types may want.
_ALIGNMENT = 16
_READ_BYTES = 64 << 10
_MAX_UNDER_WAY = 4

Part = bytes | memoryview


class StageMessages:
    """This rank's messages with others of `group`; ranks are global. To be made by all of them together."""

    def __init__(self, group: torch.distributed.ProcessGroup, address: str) -> None:
        """`address`: this rank's own, which the others can reach."""
        self._listener = socket.create_server((address, 0))
        # Whoever else can reach this port does not know it.
        self._key = os.urandom(16)
        self._rank = torch.distributed.get_rank()
        mine = (self._rank, self._listener.getsockname()[:2], self._key)
        everyone: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(everyone, mine, group=group)
        self._peers = {rank: (where, key) for rank, where, key in everyone}
        self._outgoing: dict[int, _Outgoing] = {}
        self._incoming: dict[int, Any] = {}

    def send(self, tensors: Mapping[str, torch.Tensor], to: int) -> None:
        """Returns when the tensors may be overwritten; at most a few messages are under way at once.

        Raises TypeError for anything that is no tensor on the CPU, OSError when the other rank is gone.
        """
        parts: list[Part] = []
        described = _described(
            tuple((name, _type_of(name, tensor), tuple(tensor.shape)) for name, tensor in tensors.items())
        )
        size = 0
        for tensor in tensors.values():
            if tensor.numel():
                parts.append(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()))
                size += len(parts[-1])
                if padding := -size % _ALIGNMENT:
                    parts.append(bytes(padding))
                    size += padding
        if to not in self._outgoing:
            self._outgoing[to] = self._connect(to)
        spent = CLOCK.spent_s()
        header = _HEADER.pack(len(described), size, len(spent)) + struct.pack(f"!{len(spent)}d", *spent)
        self._outgoing[to].send([header + described, *parts])

    def receive(self, source: int) -> dict[str, torch.Tensor]:
        """The next tensors from there, in the order they were sent. Raises OSError when the other rank is gone."""
        CLOCK.waits()
        while source not in self._incoming:
            self._accept()
        incoming = self._incoming[source].readinto1
        described_bytes, size, stages = _HEADER.unpack(_exactly(incoming, _HEADER.size))
        before = struct.unpack(f"!{stages}d", _exactly(incoming, 8 * stages))
        described = _understood(bytes(_exactly(incoming, described_bytes)))
        content = _exactly(incoming, size, CLOCK.heard)
        tensors, start = {}, 0
        for name, dtype, shape in described:
            count = math.prod(shape)
            if count:
                flat = torch.frombuffer(content, dtype=dtype, count=count, offset=start)
                start += -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
            else:
                flat = torch.empty(0, dtype=dtype)
            tensors[name] = flat.view(shape)
        CLOCK.received(before)
        return tensors

    def _connect(self, to: int) -> _Outgoing:
        where, key = self._peers[to]
        connection = socket.create_connection(where, timeout=_CONNECT_TIMEOUT_S)
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_HELLO.pack(self._rank, key))
        return _Outgoing(connection)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        try:
            connection.settimeout(_HELLO_TIMEOUT_S)
            rank, key = _HELLO.unpack(_exactly(connection.recv_into, _HELLO.size))
            connection.settimeout(None)
        except OSError:
            connection.close()
            return
        if rank not in self._peers or rank in self._incoming or not hmac.compare_digest(key, self._key):
            connection.close()
            return
        self._incoming[rank] = connection.makefile("rb", buffering=_READ_BYTES)


class _Outgoing:
    """Sends at once what the kernel takes; a thread sends the rest of a message, and those that come meanwhile."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._waiting: queue.Queue[bytes] = queue.Queue(_MAX_UNDER_WAY)
        self._failed: OSError | None = None
        self._thread: threading.Thread | None = None

    def send(self, parts: Sequence[Part]) -> None:
        if self._failed is not None:
            raise self._failed
        sent = 0
        if not self._waiting.unfinished_tasks:
            try:
                sent = self._connection.sendmsg(parts, [], socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent == sum(map(len, parts)):
                return
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_waiting, daemon=True)
            self._thread.start()
        self._waiting.put(b"".join(parts)[sent:])

    def _send_waiting(self) -> None:
        while True:
            message = self._waiting.get()
            try:
                if self._failed is None:
                    self._connection.sendall(message)
            except OSError as error:
                self._failed = error
            finally:
                self._waiting.task_done()


def _exactly(
    read_into: Callable[[memoryview], int], size: int, heard: Callable[[], None] = lambda: None
) -> bytearray:
    """So many bytes; `heard` is called for each piece but the last."""
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = read_into(view)
        if not count:
            raise ConnectionResetError("the rank at the other end is gone")
        view = view[count:]
        if view:
            heard()
    return buffer


def _type_of(name: str, tensor: torch.Tensor) -> str:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_cpu:
        raise TypeError(f"{name} is no tensor on the CPU")
    return str(tensor.dtype).removeprefix("torch.")


# The same for every token of a batch that does not change.
@functools.lru_cache(64)
def _described(tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    return json.dumps(tensors).encode()


@functools.lru_cache(64)
def _understood(described: bytes) -> tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]:
    return tuple((name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in json.loads(described))
