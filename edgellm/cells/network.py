"""The cell's network: one interface with the member's address, and a redirect for the whole overlay range.

Needs CAP_NET_ADMIN over the network namespace it runs in. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
import subprocess

INTERFACE = "edge0"

# linux/if_tun.h, linux/sockios.h, linux/if.h, linux/sched.h
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU = 0x8916, 0x891C, 0x8922
_IFF_UP = 0x1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000

# The largest that a tun device takes. The address of the first route decides a connection's segment size, and
# every connection that is made through edge0 really runs over the loopback interface.
_MTU_BYTES = 65535

_NFT_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


def set_up_loopback() -> None:
    """Bring up `lo`."""
    _set_up("lo")


def set_up_overlay(address: str, subnet: str, redirect_port: int) -> int:
    """Make `edge0` with `address` and redirect TCP for `subnet` to `redirect_port` on loopback.

    Returns the descriptor of the tun device, which must stay open: the interface lives as long as it is, and
    no other process can attach to the device meanwhile. Packets that are not TCP end there, unread.
    """
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    request = struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(tun, _TUNSETIFF, request)
    network = ipaddress.IPv4Network(subnet)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFADDR, _address_request(address))
        fcntl.ioctl(control, _SIOCSIFNETMASK, _address_request(str(network.netmask)))
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", INTERFACE.encode(), _MTU_BYTES))
    _set_up(INTERFACE)
    subprocess.run(
        ["nft", "-f", "-"],
        input=nft_rules(address, subnet, redirect_port),
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
        env={"PATH": _NFT_PATH},
    )
    return tun


def nft_rules(address: str, subnet: str, redirect_port: int) -> str:
    """The ruleset, in nft's own language."""
    return (
        "table ip overlay {\n"
        "  chain output {\n"
        "    type nat hook output priority -100; policy accept;\n"
        f"    ip daddr {subnet} ip daddr != {address} meta l4proto tcp redirect to :{redirect_port}\n"
        "  }\n"
        "}\n"
    )


def enter_own_network() -> None:
    """Leave the current network namespace for a new, empty one, in a new user namespace where that is needed.

    For cells without bubblewrap. Raises `PermissionError` where the container allows neither.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        raise PermissionError(ctypes.get_errno(), "no new network namespace")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def _set_up(interface: str) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as control:
        request = struct.pack("16sH22x", interface.encode(), 0)
        flags = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", interface.encode(), flags | _IFF_UP))


def _address_request(address: str) -> bytes:
    return struct.pack("16sHH4s16x", INTERFACE.encode(), socket.AF_INET, 0, socket.inet_aton(address))


def _write(path: str, content: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(content)
