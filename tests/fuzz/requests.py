"""HTTP, as the gateway and the console are asked by programs and web pages."""

from __future__ import annotations

import h11

from edgellm.console import guard as console_guard
from edgellm.gateway import guard as gateway_guard
from edgellm.gateway.client import MAX_HEAD_BYTES
from edgellm.gateway.server import _head
from tests.fuzz.decoder import Decoder


def read_http(data: bytes) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    rules = gateway_guard.Rules(8000, "secret")
    console_rules = console_guard.Rules(frozenset({"127.0.0.1:8000"}), "t" * 20, cookie_value="c" * 20)
    for start in range(0, len(data), 300):
        connection.receive_data(data[start : start + 300])
        while not isinstance(event := connection.next_event(), type(h11.NEED_DATA)):
            if isinstance(event, h11.Request):
                head = _head(event)
                for refusal in (
                    gateway_guard.refused(head, rules),
                    gateway_guard.refused_of_console(head, rules),
                ):
                    if refusal is not None:
                        refusal.body(head.path)
                console_guard.refused(
                    console_guard.Head(head.method, head.path, head.headers, head.repeated), console_rules
                )
            if isinstance(event, h11.ConnectionClosed):
                return
            if isinstance(event, h11.EndOfMessage):
                return


HTTP = [
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAuthorization: Bearer secret\r\n"
    b'Content-Length: 13\r\nOrigin: http://127.0.0.1:8000\r\n\r\n{"model": ""}',
    b"POST /v1/messages HTTP/1.1\r\nHost: localhost:8000\r\nx-api-key: secret\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n",
    b"POST /login HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nCookie: edgellm-console=cccc; a=b\r\nSec-Fetch-Site: cross-site\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"GET http://other/ HTTP/1.1\r\nHost: a\r\n b: folded\r\n\r\n",
]


DECODERS = (Decoder("HTTP", read_http, lambda: list(HTTP), (h11.RemoteProtocolError,), 2),)
