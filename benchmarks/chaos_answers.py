"""Answers that are disturbed: who asks for them, and whether what came is what would have come without."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.system.machine import Machine

Ids = tuple[int, ...]
SILENCE_S = 240.0
"""A stream that says nothing for so long counts as broken."""


@dataclass(slots=True)
class Answer:
    """What came of an answer that streams, with times of `time.monotonic`."""

    parts: list[tuple[float, Ids]] = field(default_factory=list)
    finish_reason: str = ""
    failure: str = ""
    is_whole: bool = False

    @property
    def ids(self) -> Ids:
        return tuple(token for _, ids in self.parts for token in ids)

    def came_before(self, instant: float) -> int:
        """Tokens that had come by then."""
        return sum(len(ids) for at, ids in self.parts if at <= instant)


def wrong_of(answer: Answer, expected: Ids) -> str:
    """What is wrong with an answer; "" where it is the one that was expected. Pure."""
    if answer.failure:
        return f"broke after {len(answer.ids)} tokens: {answer.failure}"
    if not answer.is_whole:
        return f"ended without its end after {len(answer.ids)} tokens"
    return difference(answer.ids, expected)


def difference(came: Sequence[int], expected: Sequence[int]) -> str:
    """How tokens that came differ from those that were expected, in words; "" where they do not. Pure."""
    if tuple(came) == tuple(expected):
        return ""
    pairs = zip(came, expected, strict=False)
    at = next(
        (place for place, (one, other) in enumerate(pairs) if one != other), min(len(came), len(expected))
    )
    if at == len(came):
        return f"{len(expected) - at} tokens missing at the end"
    if at == len(expected):
        return f"{len(came) - at} tokens too many at the end"
    rest = tuple(expected[at:])
    for count in range(1, min(64, len(rest), len(came) - at)):
        if tuple(came[at + count :])[:8] == rest[:8]:
            return f"{count} tokens doubled at {at}"
        if rest[count:][:8] == tuple(came[at:])[:8]:
            return f"{count} tokens lost at {at}"
    return f"another answer from token {at} on"


def gap_of(times: Sequence[float], fault_at: float) -> float | None:
    """From a fault to the first token after the longest silence that followed it, in seconds; None where no token followed.

    Tokens that were on their way already are not the answer that goes on. Pure.
    """
    after = [at for at in times if at > fault_at]
    if not after:
        return None
    starts = [fault_at, *after[:-1]]
    end = max(zip(starts, after, strict=True), key=lambda pair: pair[1] - pair[0])[1]
    return end - fault_at


class Stream:
    """A streamed answer of a session's endpoint, read by a thread of its own."""

    def __init__(self, machine: Machine, port: int, prompt: str, tokens: int, model: str) -> None:
        self.answer = Answer()
        self._came = threading.Condition()
        self.is_over = False
        self._body = json.dumps(
            {
                "model": model,
                "prompt": prompt,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "return_token_ids": True,
            }
        )
        self._machine, self._port = machine, port
        self.asked_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_tokens(self, count: int, timeout_s: float) -> int:
        """How many have come, once there are so many, the answer is over, or the time is."""
        with self._came:
            self._came.wait_for(lambda: len(self.answer.ids) >= count or self.is_over, timeout_s)
        return len(self.answer.ids)

    def wait(self) -> Answer:
        """The whole of it, or what is wrong."""
        self._thread.join()
        return self.answer

    def _run(self) -> None:
        try:
            self._read()
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self.answer.failure = self.answer.failure or f"{type(error).__name__}: {error}"
        finally:
            with self._came:
                self.is_over = True
                self._came.notify_all()

    def _read(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=SILENCE_S)
        with self._machine.namespaces.network():
            connection.sock = socket.create_connection(("127.0.0.1", self._port), timeout=SILENCE_S)
        try:
            connection.request("POST", "/v1/completions", self._body, {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                self.answer.failure = (
                    f"status {response.status}: {response.read(500).decode(errors='replace')}"
                )
                return
            for line in response:
                if line.startswith(b"data: "):
                    self._event(line[6:].strip())
        finally:
            connection.close()

    def _event(self, said: bytes) -> None:
        now = time.monotonic()
        if said == b"[DONE]":
            self.answer.is_whole = True
            return
        event = json.loads(said)
        if "error" in event:
            self.answer.failure = str(event["error"].get("message", event["error"]))
            return
        for choice in event["choices"]:
            with self._came:
                if ids := tuple(choice.get("token_ids") or ()):
                    self.answer.parts.append((now, ids))
                self.answer.finish_reason = choice.get("finish_reason") or self.answer.finish_reason
                self._came.notify_all()
