"""Strangers at the door of the overlay: those who say nothing keep no member waiting."""

from __future__ import annotations

import socket

import pytest
import trio

from edgellm.overlay import links
from edgellm.overlay.identity import make_member_identity
from edgellm.overlay.links import Dialler, LinkMember, accept_link, server_context


async def test_silent_strangers_take_no_handshakes_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_HANDSHAKE_TIMEOUT_S", 3.0)
    here, there = make_member_identity(), make_member_identity()
    by_certificate = {there.certificate_der: LinkMember("10.88.0.2", there.certificate_der, ())}
    context = server_context(here, list(by_certificate))
    opening = trio.CapacityLimiter(2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        cells: list[socket.socket] = []

        async def connect(to: int) -> socket.socket:
            ours, theirs = socket.socketpair()
            cells.append(theirs)
            return ours

        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    tcp, _ = listener.accept()
                    nursery.start_soon(accept_link, tcp, context, by_certificate, connect, opening)

            nursery.start_soon(serve)
            silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
            await trio.sleep(0.1)
            member = LinkMember("10.88.0.1", here.certificate_der, (("127.0.0.1", port),))
            began = trio.current_time()
            link = await Dialler(there, nursery).open(member, 6379)
            assert trio.current_time() - began < 1.5
            link.tcp.close()
            # And they are not waited for for ever.
            await trio.sleep(3.5)
            for stranger in silent:
                stranger.setblocking(False)
                assert stranger.recv(1) == b""
                stranger.close()
            nursery.cancel_scope.cancel()
        for cell in cells:
            cell.close()


@pytest.mark.parametrize("given", [b"", b"no certificate", b"\x30\xff\xff", bytes(4096)])
def test_who_gives_no_certificate_keeps_no_other_member_out(given: bytes) -> None:
    here, there = make_member_identity(), make_member_identity()
    for admitted in ([given, there.certificate_der], [there.certificate_der, given]):
        assert server_context(here, admitted).cert_store_stats()["x509"] == 1
