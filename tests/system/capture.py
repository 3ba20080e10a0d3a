"""Every packet that crosses a `Lan`'s switch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.system.lan import Lan

_POLL_S = 0.2


@contextmanager
def captured(lan: Lan) -> Iterator[list[bytes]]:
    """The frames that cross the switch while the context lasts, complete once it is left."""
    frames: list[bytes] = []
    ended = threading.Event()
    tap = lan.tap()
    tap.settimeout(_POLL_S)

    def listen() -> None:
        while True:
            try:
                frames.append(tap.recv(65535))
            except TimeoutError:
                if ended.is_set():
                    return

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield frames
    finally:
        ended.set()
        thread.join()
        tap.close()
