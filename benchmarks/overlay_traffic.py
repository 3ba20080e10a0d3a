"""The traffic that `benchmarks.overlay` measures: the same program in a cell and on the plain network.

    overlay_traffic.py serve
    overlay_traffic.py measure ADDRESS MIB

`measure` prints one JSON line: {"event": "measured", "sent_mb_s", "rtt_ms", "connect_ms"}; sent_mb_s counts 10^6
bytes from the first one sent until the server has confirmed the last one. Standard library only.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable

SINK_PORT, ECHO_PORT = 5000, 5001
BLOCK = bytes(1 << 20)
ROUND_TRIPS = 2000
CONNECTIONS = 30


def sink(connection: socket.socket) -> None:
    """Reads as many blocks as the first 4 bytes say, confirms with one byte, again and again."""
    buffer = memoryview(bytearray(1 << 20))
    while blocks := int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big"):
        left = blocks * len(BLOCK)
        while left:
            left -= connection.recv_into(buffer, min(left, len(buffer)))
        connection.sendall(b"x")


def echo(connection: socket.socket) -> None:
    """Sends back what comes."""
    while data := connection.recv(4096):
        connection.sendall(data)


def serve(port: int, behaviour: Callable[[socket.socket], None]) -> None:
    """Accept for ever."""
    server = socket.create_server(("0.0.0.0", port), backlog=128)
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=behaviour, args=(connection,), daemon=True).start()


def connect(address: str, port: int) -> socket.socket:
    """A connection without Nagle."""
    connection = socket.create_connection((address, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def send_blocks(connection: socket.socket, blocks: int) -> float:
    """MB/s until the other side has confirmed everything."""
    begun = time.perf_counter()
    connection.sendall(blocks.to_bytes(4, "big"))
    for _ in range(blocks):
        connection.sendall(BLOCK)
    connection.recv(1)
    return blocks * len(BLOCK) / 1e6 / (time.perf_counter() - begun)


def round_trip_ms(connection: socket.socket) -> float:
    """One byte there and back."""
    begun = time.perf_counter()
    connection.sendall(b"x")
    connection.recv(1)
    return 1000 * (time.perf_counter() - begun)


def connect_ms(address: str) -> float:
    """From nothing to the first answer."""
    begun = time.perf_counter()
    with connect(address, ECHO_PORT) as connection:
        round_trip_ms(connection)
    return 1000 * (time.perf_counter() - begun)


def measure(address: str, blocks: int) -> dict[str, float]:
    """Throughput, median round trip, median time to a new connection's first answer."""
    with connect(address, SINK_PORT) as connection:
        send_blocks(connection, max(1, blocks // 8))
        sent_mb_s = send_blocks(connection, blocks)
    with connect(address, ECHO_PORT) as connection:
        rtt_ms = statistics.median(round_trip_ms(connection) for _ in range(ROUND_TRIPS))
    times = []
    for _ in range(CONNECTIONS):
        times.append(connect_ms(address))
        time.sleep(0.02)
    return {"sent_mb_s": sent_mb_s, "rtt_ms": rtt_ms, "connect_ms": statistics.median(times)}


def main() -> None:
    """See above."""
    match sys.argv[1:]:
        case ["serve"]:
            threading.Thread(target=serve, args=(SINK_PORT, sink), daemon=True).start()
            print(json.dumps({"event": "serving"}), flush=True)
            serve(ECHO_PORT, echo)
        case ["measure", address, blocks]:
            result = measure(address, int(blocks))
            print(json.dumps({"event": "measured", **result}), flush=True)


if __name__ == "__main__":
    main()
