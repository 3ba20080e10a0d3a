"""Clients of a chat endpoint that stream: in one thread on raw sockets, for they share the cores with what they measure.

`python -m benchmarks.chat_load ORDER`, with an `Order` as JSON; prints a `Load`, or `FirstTokens`, as JSON. What came is kept
with its times and is read only after all of it has come.
"""

from __future__ import annotations

import json
import random
import resource
import selectors
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import count

import h11

Address = str | tuple[str, int]
"""Of a Unix socket, or host and port."""

_PART_BYTES = 64 << 10
_END = b"\r\n0\r\n\r\n"
"""Of a chunked answer; no event contains it."""
_DRAIN_S = 60.0
_WORDS = (
    "the",
    "list",
    "with",
    "of",
    "function",
    "value",
    "is",
    "object",
    "string",
    "module",
    "class",
    "key",
    "file",
    "line",
)
_QUESTION_WORDS = 32


class WrongAnswer(Exception):
    """One that is not what was asked for; the text says how."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be asked of whom. Either a load, for `window_s` after `warm_s`, or `rounds` of single requests."""

    addresses: Mapping[str, Address]
    """By name; a load goes to the only one."""
    model: str
    tokens: tuple[int, int]
    """Of each answer, at least and at most: as in life, they do not all end at the same time."""
    seed: str
    """Of the questions: the same ones come of the same seed."""
    clients: int = 1
    warm_s: float = 0.0
    window_s: float = 0.0
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What clients got that ask again as soon as their answer has ended."""

    tokens_each: tuple[float, ...]
    """Of each client, within the window."""
    tokens: int
    """Of all, also before and after the window."""
    errors: tuple[str, ...]
    window_s: float
    own_cpu_s: float
    """Of the clients themselves."""


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """From a request to its first token on an idle endpoint: each round's, by address and by "kept" or "new" connection."""

    seconds: Mapping[str, Mapping[str, tuple[float, ...]]]


@dataclass(slots=True)
class Answer:
    """What came, and when, by `time.monotonic`."""

    tokens: int
    """That it is to have."""
    parts: list[tuple[float, bytes]] = field(default_factory=list)

    def is_whole(self) -> bool:
        data = self.parts[-1][1]
        if len(data) < len(_END):
            data = b"".join(part for _, part in self.parts[-len(_END) :])
        return data.endswith(_END)

    def is_refusal(self) -> bool:
        return not self.parts[0][1].startswith(b"HTTP/1.1 200")

    def events(self) -> list[tuple[float, dict[str, object]]]:
        """Each with the time when its last byte came. Raises WrongAnswer where it is none, or half of one."""
        reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        reader.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        reader.send(h11.EndOfMessage())
        text = b""
        events = []
        for at_s, part in self.parts:
            reader.receive_data(part)
            while (event := reader.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response) and event.status_code != 200:
                    raise WrongAnswer(f"status {event.status_code}")
                if isinstance(event, h11.Data):
                    text += event.data
                    *whole, text = text.split(b"\n\n")
                    # Lines that begin with a colon are comments.
                    events += [(at_s, said[6:]) for said in whole if said.startswith(b"data: ")]
                if isinstance(event, h11.EndOfMessage):
                    if not events or events[-1][1] != b"[DONE]":
                        raise WrongAnswer("an answer without its end")
                    return [(at_s, json.loads(said)) for at_s, said in events[:-1]]
        raise WrongAnswer("half an answer")

    def token_times_s(self) -> list[float]:
        """When each event with tokens came. Raises WrongAnswer where there are not as many tokens as there should be."""
        times = []
        used: object = None
        for at_s, event in self.events():
            if usage := event.get("usage"):
                used = usage["completion_tokens"]  # type: ignore[index]
            for choice in event.get("choices") or ():  # type: ignore[attr-defined]
                if choice["delta"].get("content") or choice["finish_reason"]:
                    times.append(at_s)
        if used != self.tokens:
            raise WrongAnswer(f"{used} tokens instead of {self.tokens}")
        return times


def ask(connection: socket.socket, order: Order, seed: str) -> Answer:
    """Asks another question for each seed, and for just so many tokens; what comes is to be put into the answer."""
    chosen = random.Random(f"{order.seed} {seed}")
    question = " ".join(chosen.choices(_WORDS, k=_QUESTION_WORDS))
    answer = Answer(chosen.randint(*order.tokens))
    connection.sendall(_request(order, question, answer.tokens))
    return answer


def _request(order: Order, question: str, tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": order.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    port = next((address[1] for address in order.addresses.values() if not isinstance(address, str)), 80)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connect(address: Address) -> socket.socket:
    if isinstance(address, str):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
    else:
        connection = socket.create_connection(tuple(address))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class _Client:
    """One that asks again and again on one connection."""

    def __init__(self, order: Order, address: Address, number: int) -> None:
        self._order = order
        self._number = number
        self.connection = connect(address)
        self.answers: list[Answer] = []

    def ask(self) -> None:
        self.answers.append(ask(self.connection, self._order, f"{self._number} {len(self.answers)}"))

    def receive(self) -> bool:
        """Whether the answer has ended, well or not."""
        try:
            data = self.connection.recv(_PART_BYTES)
        except ConnectionError:
            data = b""
        answer = self.answers[-1]
        answer.parts.append((time.monotonic(), data))
        return not data or answer.is_refusal() or answer.is_whole()


def load(order: Order) -> Load:
    """Asks as many at once as there are clients; answers that run at the end of the window are read to their ends."""
    (address,) = order.addresses.values()
    clients = [_Client(order, address, number) for number in range(order.clients)]
    began_s = time.monotonic() + order.warm_s
    ends_s = began_s + order.window_s
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.connection, selectors.EVENT_READ, client)
            client.ask()
        running = len(clients)
        while running and time.monotonic() < ends_s + _DRAIN_S:
            for key, _ in selector.select(1.0):
                client = key.data
                if not client.receive():
                    continue
                broken = not client.answers[-1].is_whole()
                if broken or time.monotonic() > ends_s:
                    selector.unregister(client.connection)
                    running -= 1
                else:
                    client.ask()
    used = resource.getrusage(resource.RUSAGE_SELF)
    each = []
    errors = []
    for client in clients:
        tokens = 0.0
        for answer in client.answers:
            try:
                times = answer.token_times_s()
            except (WrongAnswer, h11.RemoteProtocolError, ValueError) as error:
                errors.append(str(error))
            else:
                # An event may carry several tokens; over an answer they even out.
                tokens += answer.tokens * sum(began_s < at_s <= ends_s for at_s in times) / len(times)
        each.append(tokens)
    all_tokens = sum(answer.tokens for client in clients for answer in client.answers)
    return Load(tuple(each), all_tokens, tuple(errors), order.window_s, used.ru_utime + used.ru_stime)


def first_tokens(order: Order) -> FirstTokens:
    """One request at a time, to each address in turn, on a connection that is kept and on a new one."""
    kept = {name: connect(address) for name, address in order.addresses.items()}
    found: dict[str, dict[str, list[float]]] = {name: {"kept": [], "new": []} for name in order.addresses}
    ways = [(name, how) for how in ("kept", "new") for name in order.addresses]
    numbers = count()
    for round_number in range(order.rounds):
        # Whoever goes first changes, so that none always follows the same other.
        turn = round_number % len(ways)
        for name, how in ways[turn:] + ways[:turn]:
            began_s = time.monotonic()
            connection = kept[name] if how == "kept" else connect(order.addresses[name])
            answer = ask(connection, order, str(next(numbers)))
            while not answer.parts or not answer.is_whole():
                data = connection.recv(_PART_BYTES)
                answer.parts.append((time.monotonic(), data))
                if not data or answer.is_refusal():
                    break
            if how == "new":
                connection.close()
            found[name][how].append(answer.token_times_s()[0] - began_s)
    return FirstTokens({name: {how: tuple(each) for how, each in by.items()} for name, by in found.items()})


def main() -> None:
    """See above."""
    order = Order(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(first_tokens(order) if order.rounds else load(order))))


if __name__ == "__main__":
    main()
