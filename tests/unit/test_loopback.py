"""Who is at the other end of a connection over loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from edgellm.loopback import is_of_same_user, owner_of

CONNECT = """
import encodings.idna, os, socket, sys
# From here on it may not read where Python is.
os.setuid(int(sys.argv[2]))
one = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
one.recv(1)
"""


@pytest.fixture(params=["127.0.0.1", "::1", "::"])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        with socket.create_server(
            (request.param, 0), family=family, dualstack_ipv6=request.param == "::"
        ) as it:
            yield it
    except (OSError, ValueError):
        pytest.skip("no IP version 6 here")


def test_ones_own_program_is_known(listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]
    with socket.create_connection(("127.0.0.1" if host == "::" else host, port)):
        accepted, address = listening.accept()
        with accepted:
            assert owner_of(address[:2]) == os.getuid()
            assert is_of_same_user(address[:2])


def test_nobody_is_nobodys() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert owner_of(("127.0.0.1", port)) is None
    assert not is_of_same_user(("127.0.0.1", port))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_users_program_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)
        argv = [sys.executable, "-c", CONNECT, str(listening.getsockname()[1]), "65534"]
        with subprocess.Popen(argv) as other:
            accepted, address = listening.accept()
            with accepted:
                assert owner_of(address) == 65534
                assert not is_of_same_user(address)
            assert other.wait(20) == 0
