"""In the cell: hands sockets over to the carrier. No byte of a connection passes through here.

Outbound, the kernel redirects each TCP connection for the overlay range to `port`; the accepted socket goes to
the carrier with the address and port that the program wanted. Inbound, the carrier names a port, and gets a
socket connected to it. Standard library only.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import selectors
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast

from edgellm.overlay import handover
from edgellm.overlay.handover import Kind, Message

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
_BACKLOG = 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Redirector:
    """Single-threaded; `address` is the cell's own, `subnet` the range that is redirected."""

    def __init__(self, address: str, subnet: str) -> None:
        self._address = address
        self._subnet = ipaddress.IPv4Network(subnet)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self._listener.setblocking(False)
        self._channel = handover.channel()
        self._joined = False
        self._selector = selectors.DefaultSelector()

    @property
    def port(self) -> int:
        """Where the kernel has to redirect connections to, on 127.0.0.1."""
        return int(self._listener.getsockname()[1])

    def join(self, path: Path) -> None:
        """Connect to the carrier. Without it every connection is reset. Raises `OSError` where there is none."""
        self._channel.connect(str(path))
        self._joined = True

    def serve_until_exit(self, pid: int) -> None:
        """Serve until process `pid`, a child, has ended, or the carrier has closed the channel."""
        process = os.pidfd_open(pid)
        self._selector.register(process, selectors.EVENT_READ, lambda: False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        if self._joined:
            self._selector.register(self._channel, selectors.EVENT_READ, self._connect)
        try:
            while all(cast("Callable[[], bool]", key.data)() for key, _ in self._selector.select()):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # The carrier is gone, and with it the network. The node sees that and ends the cell.
        finally:
            os.close(process)
            self._selector.close()
            self._listener.close()
            self._channel.close()

    # The three below handle one event each, and return False when there is nothing more to serve.

    def _accept(self) -> bool:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return True  # The program gave up while it stood in the queue.
        with client:
            try:
                wanted = client.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
            except OSError:
                return True
            (port,) = struct.unpack_from("!H", wanted, 2)
            address = ipaddress.IPv4Address(wanted[4:8])
            # Whatever happens before the carrier has it, the program shall not take for an orderly end.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            if self._joined and address in self._subnet:
                handover.send(self._channel, Message(Kind.OUTBOUND, port, str(address)), client)
        return True

    def _connect(self) -> bool:
        received = handover.receive(self._channel)
        if received is None:
            return False
        message, _ = received
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        result = server.connect_ex((self._address, message.port))
        if result in (0, errno.EINPROGRESS):
            self._selector.register(
                server, selectors.EVENT_WRITE, lambda: self._connected(server, message.number)
            )
        else:
            server.close()
            handover.send(self._channel, Message(Kind.REFUSED, number=message.number))
        return True

    def _connected(self, server: socket.socket, number: int) -> bool:
        self._selector.unregister(server)
        with server:
            if server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                handover.send(self._channel, Message(Kind.CONNECTED, number=number), server)
            else:
                handover.send(self._channel, Message(Kind.REFUSED, number=number))
        return True
