"""What Ray starts as a Python worker, where a `fork_server` makes them: asks for one, and lives as long as it does.

Ray runs this file in place of its own `setup_worker.py`. It imports little, for it is what is left to wait for.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys

SOCKET_VARIABLE = "EDGELLM_VLLM_FORK_SERVER"
ACCEPTED = b"+"
READY = "ready"
"""A file beside the server's socket, once it has imported all that a rank needs."""


def _program(arguments: list[str]) -> list[str]:
    """Without the flags for Python before it, which Ray takes from its own interpreter: in cells there is one."""
    return list(itertools.dropwhile(lambda argument: argument in ("-s", "-S"), arguments))


def main() -> None:
    """Ends when the worker has ended. Where no server answers it becomes an ordinary worker itself."""
    # Ray's runtime environments, of which there are none here.
    ours = ("--serialized-runtime-env-context", "--language")
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith(ours)]
    order = {"arguments": _program(arguments), "environment": dict(os.environ), "directory": os.getcwd()}  # noqa: PTH109
    message = json.dumps(order).encode()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.environ[SOCKET_VARIABLE])
        socket.send_fds(connection, [len(message).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(message)
        accepted = connection.recv(1)
    except OSError:
        accepted = b""
    if accepted != ACCEPTED:
        os.execv(sys.executable, [sys.executable, *arguments])
    while connection.recv(1):
        pass


if __name__ == "__main__":
    main()
