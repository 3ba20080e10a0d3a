"""Program that runs in a sandbox like a cell's and tries the network that a cell needs: `python -m ... ADDRESS`.

Prints one line of JSON: `{"step": "tun" | "nft" | "redirect" | "done", "reason": ...}`; "done" means that a
connection to another address of the overlay was made and really arrived at the redirect's port.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys

from edgellm.cells.network import set_up_loopback, set_up_overlay

SUBNET = "10.88.0.0/16"
ADDRESS = "10.88.255.1"
_OTHER = ("10.88.255.2", 6379)
# linux/netfilter_ipv4.h
_SO_ORIGINAL_DST = 80


def main() -> int:
    """0 when everything worked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            # The result holds the interface: it goes when the descriptor is closed, which the program's end does.
            set_up_loopback()
            set_up_overlay(ADDRESS, SUBNET, listener.getsockname()[1])
        except subprocess.CalledProcessError as error:
            return _say("nft", f"nft ended with {error.returncode}")
        except FileNotFoundError as error:
            return _say("nft" if error.filename == "nft" else "tun", f"{error.filename}: {error.strerror}")
        except OSError as error:
            return _say("tun", error.strerror or str(error))
        try:
            with socket.create_connection(_OTHER, timeout=3):
                listener.settimeout(3)
                arrived, _ = listener.accept()
                with arrived:
                    meant = arrived.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
        except OSError as error:
            return _say("redirect", error.strerror or str(error))
    port, address = struct.unpack_from("!2xH4s", meant)
    if (socket.inet_ntoa(address), port) != _OTHER:
        return _say("redirect", f"arrived as {socket.inet_ntoa(address)}:{port}")
    return _say("done", "")


def _say(step: str, reason: str) -> int:
    print(json.dumps({"step": step, "reason": reason}))
    return 0 if step == "done" else 1


if __name__ == "__main__":
    sys.exit(main())
