"""What a member tells the node: JSON objects, one a line, on the stdout it was started with."""

from __future__ import annotations

import json
import os
import sys
import time


class EventStream:
    """Takes stdout for itself: prints of libraries and of children go to stderr from then on."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._begun = time.monotonic()

    def phase(self, name: str, detail: str = "") -> None:
        """Says what the member does from now on."""
        self._write("phase", name=name, detail=detail)

    def serving(self) -> None:
        """Head: the gRPC socket answers."""
        self._write("serving")

    def joined(self) -> None:
        """Worker: this machine is a node of the head's cluster."""
        self._write("joined")

    def warm(self) -> None:
        """Worker on standby: all is there that its next ranks need."""
        self._write("warm")

    def lost(self, detail: str, address: str) -> None:
        """Head: the engine noticed by itself that a member is gone ("": not known which), and is suspended."""
        self._write("lost", detail=detail, address=address)

    def slow(self, detail: str, address: str) -> None:
        """Head: this member became far slower than it was."""
        self._write("slow", detail=detail, address=address)

    def tokens(self, count: int) -> None:
        """Worker: how many tokens its ranks have computed since the cell began."""
        self._write("tokens", count=count)

    def failed(self, detail: str) -> None:
        """The member cannot go on and exits."""
        self._write("failed", detail=detail)

    def _write(self, event: str, **fields: str | int) -> None:
        since_start_s = round(time.monotonic() - self._begun, 3)
        self._out.write(json.dumps({"event": event, **fields, "since_start_s": since_start_s}) + "\n")
