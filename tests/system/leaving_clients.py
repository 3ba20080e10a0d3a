"""A program of a user's: clients that ask a session's endpoint and leave, each in one of the ways in which clients leave.

Prints as JSON how many left in which way, and how many had got what they waited for before.

`python leaving_clients.py PORT API_KEY MODEL COUNT`
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

AT_ONCE = 16
_TIMEOUT_S = 20.0
_ENDLESS = {"max_tokens": 900, "ignore_eos": True}
_CHAT = {"messages": [{"role": "user", "content": "What is a list?"}], **_ENDLESS}
QUESTIONS = (
    ("/v1/completions", {"prompt": "def", "stream": True, **_ENDLESS}),
    ("/v1/chat/completions", {"stream": True, **_CHAT}),
    ("/v1/completions", {"prompt": "def", "stream": True, "n": 2, **_ENDLESS}),
)
WHOLE = (("/v1/chat/completions", _CHAT), ("/v1/completions", {"prompt": "def", **_ENDLESS}))
"""Nothing comes of these before all of it is there."""


class Client:
    """One connection with one request, sent."""

    def __init__(self, port: int, key: str, model: str, question: tuple[str, dict[str, object]]) -> None:
        path, options = question
        body = json.dumps({"model": model, **options}).encode()
        head = [
            f"POST {path} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            f"Authorization: Bearer {key}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        self.request = "\r\n".join(head).encode() + b"\r\n\r\n" + body
        self.socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
        self.received = b""

    def ask(self) -> Client:
        self.socket.sendall(self.request)
        return self

    def read_until(self, part: bytes, times: int = 1, most_at_once: int = 65536) -> bool:
        """Whether it came so often before the end."""
        while self.received.count(part) < times:
            if not (data := self.socket.recv(most_at_once)):
                return False
            self.received += data
        return b" 200 " in self.received.partition(b"\r\n")[0]


def after_the_head(client: Client) -> bool:
    return client.ask().read_until(b"\r\n\r\n")


def after_a_token(client: Client) -> bool:
    return client.ask().read_until(b"data: ", times=2)


def in_an_event(client: Client) -> bool:
    """With the rest of it unread, which the system says by a reset."""
    return client.ask().read_until(b"data: ", most_at_once=8)


def by_reset(client: Client) -> bool:
    came = client.ask().read_until(b"data: ")
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return came


def by_half(client: Client) -> bool:
    """Closes the sending side, and goes on reading: the endpoint ends it."""
    came = client.ask().read_until(b"data: ")
    client.socket.shutdown(socket.SHUT_WR)
    while client.socket.recv(65536):
        pass
    return came


def before_anything_comes(client: Client) -> bool:
    """While it waits for its turn, or is computed as a whole."""
    client.ask()
    time.sleep(0.03)
    return True


def within_the_question(client: Client) -> bool:
    client.socket.sendall(client.request[:-20])
    return True


WAYS: tuple[tuple[Callable[[Client], bool], tuple[tuple[str, dict[str, object]], ...]], ...] = (
    (after_the_head, QUESTIONS),
    (after_a_token, QUESTIONS),
    (in_an_event, QUESTIONS),
    (by_reset, QUESTIONS),
    (by_half, QUESTIONS),
    (before_anything_comes, (*WHOLE, *QUESTIONS)),
    (within_the_question, QUESTIONS),
)


def main() -> None:
    port, key, model, count = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])

    def one(number: int) -> tuple[str, bool]:
        way, questions = WAYS[number % len(WAYS)]
        question = questions[number // len(WAYS) % len(questions)]
        client = Client(port, key, model, question)
        with client.socket:
            return way.__name__, way(client)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        left = list(threads.map(one, range(count)))
    print(json.dumps({"left": Counter(way for way, _ in left), "came": sum(came for _, came in left)}))


if __name__ == "__main__":
    main()
