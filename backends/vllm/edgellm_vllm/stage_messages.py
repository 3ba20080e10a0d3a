"""Tensors from one pipeline stage to the next, in one message each way of the network instead of four there and back.

vLLM sends the size of a description, the description, and each tensor, every one of them a gloo message that waits for
the receiver to ask for it: six to eight crossings of the network for each token. Here one message holds all of it, and the
receiver has always asked for the next one already, so that a token crosses once.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed

INLINE_BYTES = 1 << 20
"""Larger tensors (a prefill's) follow their description as a second message, which crosses when it is asked for."""
_LENGTH_BYTES = 8
# Of nothing else in the group.
_TAG = 4471
_MAX_UNDER_WAY = 4


class StageMessages:
    """This rank's messages with others of `group`, a gloo group; ranks are global."""

    def __init__(self, group: torch.distributed.ProcessGroup) -> None:
        self._group = group
        self._expected: dict[int, tuple[Any, torch.Tensor]] = {}
        self._under_way: deque[list[tuple[Any, torch.Tensor]]] = deque()

    def send(self, tensors: Mapping[str, torch.Tensor], to: int) -> None:
        """Returns when the tensors may be overwritten; at most a few messages are under way at once.

        Raises TypeError for anything that is no tensor on the CPU.
        """
        parts = [_bytes_of(name, tensor) for name, tensor in tensors.items()]
        described = json.dumps(
            [
                (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
                for name, tensor in tensors.items()
            ]
        ).encode()
        length = torch.tensor([len(described)], dtype=torch.int64).view(torch.uint8)
        head = [length, torch.frombuffer(bytearray(described), dtype=torch.uint8)]
        inline = sum(part.numel() for part in (*head, *parts)) <= INLINE_BYTES
        messages = [torch.cat([*head, *parts])] if inline else [torch.cat(head), torch.cat(parts)]
        while len(self._under_way) >= _MAX_UNDER_WAY:
            for work, _ in self._under_way.popleft():
                work.wait()
        # Gloo says too early that it is done, so what is sent is kept until it has been waited for.
        self._under_way.append([(self._isend(message, to), message) for message in messages])

    def receive(self, source: int) -> dict[str, torch.Tensor]:
        """The next tensors from there, in the order they were sent."""
        if source not in self._expected:
            self._expect(source)
        work, buffer = self._expected.pop(source)
        work.wait()
        start = _LENGTH_BYTES + int(buffer[:_LENGTH_BYTES].view(torch.int64).item())
        described = json.loads(bytes(buffer[_LENGTH_BYTES:start].numpy()))
        shapes = [(name, getattr(torch, dtype), shape) for name, dtype, shape in described]
        sizes = [torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in shapes]
        if start + sum(sizes) <= INLINE_BYTES:
            content = buffer[start : start + sum(sizes)].clone()
        else:
            content = torch.empty(sum(sizes), dtype=torch.uint8)
            torch.distributed.recv(content, src=source, group=self._group, tag=_TAG)
        self._expect(source)
        return {
            # A copy of each, because a view would be wrongly aligned after an odd number of bytes.
            name: part.clone().view(dtype).view(shape)
            for (name, dtype, shape), part in zip(shapes, content.split(sizes), strict=True)
        }

    def _expect(self, source: int) -> None:
        buffer = torch.empty(INLINE_BYTES, dtype=torch.uint8)
        work = torch.distributed.irecv(buffer, src=source, group=self._group, tag=_TAG)
        self._expected[source] = (work, buffer)

    def _isend(self, message: torch.Tensor, to: int) -> Any:
        return torch.distributed.isend(message, dst=to, group=self._group, tag=_TAG)


def _bytes_of(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_cpu:
        raise TypeError(f"{name} is no tensor on the CPU")
    return tensor.contiguous().view(-1).view(torch.uint8)
