"""A long line between two network interfaces: every frame arrives later. For kernels without netem.

`python -m tests.system.delay_line SECONDS FD FD` moves frames between two packet sockets until it is killed.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_PACKET_OUTGOING = 4
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_BUFFER_BYTES = 64 << 20
_FRAME_BYTES = 80 << 10
_AT_ONCE = 64
"""Frames of one end, before the other one has its turn."""


class DelayLine:
    """Runs until it is closed."""

    def __init__(self, one: str, other: str, one_way_s: float) -> None:
        """Between these interfaces of the network that the calling thread is in."""
        ends = [_end(one), _end(other)]
        numbers = [end.fileno() for end in ends]
        program = [sys.executable, "-m", "tests.system.delay_line", str(one_way_s), *map(str, numbers)]
        self._process = subprocess.Popen(program, pass_fds=numbers, cwd=Path(__file__).parents[2])
        for end in ends:
            end.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)


def _end(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
    # Frames come as the stack hands them over, larger than the line's and without checksums; this says so on both ends.
    end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    end.bind((interface, 0))
    end.setblocking(False)
    return end


def main() -> None:
    delay_s = float(sys.argv[1])
    ends = [socket.socket(fileno=int(number)) for number in sys.argv[2:]]
    others = {ends[0]: ends[1], ends[1]: ends[0]}
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()
    parent = os.getppid()
    while os.getppid() == parent:
        timeout_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1.0
        for end in select.select(ends, [], [], timeout_s)[0]:
            due = time.monotonic() + delay_s
            waiting.extend((due, others[end], frame) for frame in _frames(end))
        while waiting and waiting[0][0] <= time.monotonic():
            _, to, frame = waiting.popleft()
            # One that cannot be sent is lost, as on any line.
            with suppress(OSError):
                to.send(frame)


def _frames(end: socket.socket) -> list[bytes]:
    frames = []
    for _ in range(_AT_ONCE):
        try:
            frame, (_, _, kind, *_) = end.recvfrom(_FRAME_BYTES)
        except OSError:
            break
        if kind != _PACKET_OUTGOING:
            frames.append(frame)
    return frames


if __name__ == "__main__":
    main()
