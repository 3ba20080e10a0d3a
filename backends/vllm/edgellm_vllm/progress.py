"""From the engine core's process to the head's: what bring-up does now, why it failed, that a member is lost or slow.

vLLM tells its caller none of these: bring-up is one blocking call, and after a rank's death requests just hang. And what an
answer cost each stage.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from edgellm_vllm.spent import Spent

_PATH = "EDGELLM_VLLM_PROGRESS"

Kind = Literal["phase", "failed", "lost", "slow", "spent"]
"""The name of a "lost" or a "slow" is the member's address, "" where it is not known.

The detail of a "spent", as JSON: for each request that has ended its name, seconds of each stage for the prompt and for the
answer, and whether that is all of it."""
_TELL_S = 5.0
_AT_ONCE = 100
_MAX_BYTES = 1 << 17


def tell(kind: Kind, name: str, detail: str = "") -> None:
    """In the engine core. Does nothing where nobody listens: progress must not be what breaks a start."""
    # The kernel keeps ten messages for a listener that is busy; without the word of a rank's death requests would hang.
    _send([kind, name, detail[:4000]], timeout_s=_TELL_S if kind in ("failed", "lost") else 0.0)


def tell_spent(ended: Sequence[tuple[str, Spent]]) -> None:
    """In the engine core: what requests that have ended cost each stage. In few messages, for many may end together."""
    for start in range(0, len(ended), _AT_ONCE):
        some = ended[start : start + _AT_ONCE]
        detail = [[name, spent.prefill_s, spent.decode_s, spent.whole] for name, spent in some]
        _send(["spent", "", json.dumps(detail)], timeout_s=0.0)


def _send(message: Sequence[str], timeout_s: float) -> None:
    path = os.environ.get(_PATH)
    if path is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(timeout_s)
        try:
            sender.sendto(json.dumps(message).encode(), path)
        except OSError:
            return


class ProgressListener:
    """In the head: hears what any engine core forked from it tells, inside a `with` block, in the event loop."""

    def __init__(self) -> None:
        self.heard: Callable[[Kind, str, str], None] = lambda kind, name, detail: None
        """Called with each message; whoever loads an engine sets it."""

    def __enter__(self) -> ProgressListener:
        self._directory = tempfile.TemporaryDirectory(prefix="edgellm-")
        path = str(Path(self._directory.name) / "progress")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.setblocking(False)
        os.environ[_PATH] = path
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._directory.cleanup()
        os.environ.pop(_PATH, None)

    def _read(self) -> None:
        kind, name, detail = json.loads(self._socket.recv(_MAX_BYTES))
        self.heard(kind, name, detail)
