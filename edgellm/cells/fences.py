"""What a process gives up, for itself and all its children, before engine code runs in the cell.

After `enter_fences` no code in the cell has or can regain a capability (so the cell's interface, routes and
nftables rules stay as they are), none can make a user namespace to get some in, and a few kernel interfaces
that namespaces do not fence are shut. Linux on x86-64 and AArch64. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import signal
import struct

from edgellm.cells.seccomp import seccomp_filter

# linux/prctl.h, linux/seccomp.h, linux/securebits.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2
# SECBIT_NOROOT, SECBIT_NO_SETUID_FIXUP, SECBIT_NO_CAP_AMBIENT_RAISE, each with its lock
_UID_0_IS_NOTHING_SPECIAL = 0xCF
_CAP_SETPCAP = 1 << 8
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

# Ray asks for 65536.
_MAX_OPEN_FILES = 65536
_COUNTS_BY_NAMESPACE = (5, 14)

_libc = ctypes.CDLL(None, use_errno=True)


def enter_fences() -> None:
    """Drop every capability for good, set no_new_privs, load the seccomp filter, forbid core dumps.

    This process itself, which holds the cell's way to the carrier, closes itself to the others in the cell: none reads its
    memory or takes a descriptor from it. Raises `OSError` where the kernel refuses: then no engine code may run.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:  # noqa: PTH123
        last_capability = int(file.read())
    if _effective_capabilities() & _CAP_SETPCAP:
        for capability in range(last_capability + 1):
            _prctl(_PR_CAPBSET_DROP, capability)
        _prctl(_PR_SET_SECUREBITS, _UID_0_IS_NOTHING_SPECIAL)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, struct.pack("=6I", 0, 0, 0, 0, 0, 0)))
    _prctl(_PR_SET_DUMPABLE, 0)
    _load_filter(seccomp_filter(platform.machine()))


def enter_limits(processes: int, file_bytes: int) -> None:
    """Bound what one process and, with `processes` (0: no bound), this user in this user namespace may hold.

    Where the kernel counts processes by user alone (before Linux 5.14) they would be the owner's too: there it is left to
    the node's watch. Root of the machine is exempt from it by the kernel.
    """
    _lower(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    _lower(resource.RLIMIT_FSIZE, file_bytes)
    _lower(resource.RLIMIT_RTPRIO, 0)
    kernel = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    if processes and kernel >= _COUNTS_BY_NAMESPACE:
        _lower(resource.RLIMIT_NPROC, processes)


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel for `signal_number` when the thread that started this process ends."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _lower(limit: int, value: int) -> None:
    soft, hard = (bound if bound != resource.RLIM_INFINITY else value for bound in resource.getrlimit(limit))
    resource.setrlimit(limit, (min(soft, value), min(hard, value)))


def _effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))


def _load_filter(program: bytes) -> None:
    class SockFprog(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    filter_program = SockFprog(len(program) // 8, program)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(filter_program))


def _prctl(option: int, first: int, second: int = 0) -> None:
    arguments = (ctypes.c_ulong(value) for value in (first, second, 0, 0))
    _check(_libc.prctl(option, *arguments))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
