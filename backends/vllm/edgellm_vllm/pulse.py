"""A rank that is there answers at once, whatever it is doing; and when its process ends, its connection does.

The engine core has a connection to each rank, over TCP: nothing else crosses between cells.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from edgellm_vllm.stage_clock import CLOCK
from edgellm_vllm.watch import Silence, Steps

_ASK, _WORKS, _IDLE = b"?", b"w", b"i"
_KEY_BYTES = 16
_CONNECT_TIMEOUT_S = 10.0
_TICK_S = 0.25
_LATE_S = 0.5

Lost = Callable[[int | None, str], None]
"""Of which rank (None: of one that is not known), and why."""


class Pulse:
    """Mixed into vLLM's worker class."""

    def edgellm_pulse(self) -> tuple[str, int, bytes]:
        """Where this rank answers from now on, and to which key."""
        address, key = os.environ["VLLM_HOST_IP"], os.urandom(_KEY_BYTES)
        listener = socket.create_server((address, 0))
        threading.Thread(target=_answer_all, args=(listener, key), daemon=True).start()
        return address, listener.getsockname()[1], key


def _answer_all(listener: socket.socket, key: bytes) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, key), daemon=True).start()


def _answer(connection: socket.socket, key: bytes) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_CONNECT_TIMEOUT_S)
        said = connection.recv(_KEY_BYTES, socket.MSG_WAITALL)
        if not hmac.compare_digest(said, key):
            return
        connection.settimeout(None)
        while connection.recv(1):
            connection.sendall(_WORKS if CLOCK.works else _IDLE)


class Watch:
    """In the engine core: a thread that knows of each rank whether it is there."""

    def __init__(
        self, where: Sequence[tuple[str, int, bytes]], lost: Lost, *, stall_s: float, tells_work: bool
    ) -> None:
        """`where` as the ranks' `edgellm_pulse` said.

        `stall_s`: from a rank's falling silent in a step to the verdict, at most.
        `lost` is called once, in the thread. Raises OSError.
        """
        self.steps = Steps()
        self._lost = lost
        self._silence = Silence(len(where), stall_s, tells_work)
        self._connections = [_connect(*place) for place in where]
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="RankWatch")
        self._thread.start()

    def stop(self) -> None:
        """Nothing is told from now on."""
        self._stopping = True

    def _run(self) -> None:
        selector: Any = selectors.DefaultSelector()
        for rank, connection in enumerate(self._connections):
            selector.register(connection, selectors.EVENT_READ, rank)
        looked = time.monotonic()
        while not self._stopping:
            ready = [key.data for key, _ in selector.select(_TICK_S)]
            now = time.monotonic()
            gone = next((rank for rank in ready if not self._heard(rank, now)), None)
            if now - looked > _TICK_S + _LATE_S:
                self._silence.slept(now)
            looked = now
            stuck_s = self.steps.stuck_s(now)
            verdict = self._silence.verdict(stuck_s, now)
            if self._stopping:
                return
            if gone is not None:
                self._lost(gone, "a rank's connection is gone")
                return
            if verdict is not None:
                self._lost(verdict.rank, verdict.why)
                return
            for rank in self._silence.to_ask(stuck_s, now):
                # One byte at a time: there is always room. An error is seen by reading.
                with contextlib.suppress(OSError):
                    self._connections[rank].send(_ASK)

    def _heard(self, rank: int, now: float) -> bool:
        try:
            said = self._connections[rank].recv(1)
        except OSError:
            return False
        if said:
            self._silence.answered(rank, said == _WORKS, now)
        return bool(said)


def _connect(address: str, port: int, key: bytes) -> socket.socket:
    connection = socket.create_connection((address, port), timeout=_CONNECT_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(key)
    return connection
