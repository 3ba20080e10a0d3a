"""What a process gives up, for itself and all its children, before engine code runs in the cell.

After `enter_fences` no code in the cell has or can regain a capability (so the cell's interface, routes and
nftables rules stay as they are), none can make a user namespace to get some in, and a few kernel interfaces
that namespaces do not fence are shut. Linux on x86-64 and AArch64. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct

# linux/prctl.h, linux/seccomp.h, linux/securebits.h
_PR_SET_PDEATHSIG = 1
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
_CLONE_NEWUSER = 0x10000000

# Per architecture: audit token (linux/audit.h) and system call numbers (asm/unistd.h).
_ARCHITECTURES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "clone": 56, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272,
            "perf_event_open": 298, "setns": 308, "bpf": 321, "userfaultfd": 323,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "socket": 198, "clone": 220, "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97,
            "perf_event_open": 241, "setns": 268, "bpf": 280, "userfaultfd": 282,
        },
    ),
}  # fmt: skip
_IO_URING_SETUP, _IO_URING_REGISTER, _CLONE3 = 425, 427, 435
_X32_BIT = 0x40000000

# AF_VSOCK and others know no network namespace: a cell could talk to the machine's hypervisor.
_ALLOWED_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK

# linux/bpf_common.h: load word, jump on equal / greater-or-equal / bit set, return
_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
# offsets in struct seccomp_data; the low half of the first argument, both architectures are little-endian
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16

_libc = ctypes.CDLL(None, use_errno=True)


def enter_fences() -> None:
    """Drop every capability for good, set no_new_privs, load the seccomp filter, forbid core dumps.

    Raises `OSError` where the kernel refuses: then no engine code may run.
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
    _load_filter(seccomp_filter(platform.machine()))


def seccomp_filter(machine: str) -> bytes:
    """The classic BPF program (array of `struct sock_filter`) for `machine` as `platform.machine()` names it."""
    token, numbers = _ARCHITECTURES[machine]
    denied = ("add_key", "request_key", "keyctl", "setns", "perf_event_open", "bpf", "userfaultfd")
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JEQ, 1, 0, token),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_JGE, 0, 1, _X32_BIT), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    for name in denied:
        program += [(_JEQ, 0, 1, numbers[name]), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    # clone3 keeps its flags in memory, out of a filter's sight; on ENOSYS the C library falls back to clone.
    for number in (*range(_IO_URING_SETUP, _IO_URING_REGISTER + 1), _CLONE3):
        program += [(_JEQ, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for name in ("clone", "unshare"):
        program += [
            (_JEQ, 0, 4, numbers[name]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_JSET, 0, 1, _CLONE_NEWUSER),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ]
    program += [(_JEQ, 1, 0, numbers["socket"]), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for family in _ALLOWED_FAMILIES:
        program += [(_JEQ, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    program += [(_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel for `signal_number` when the thread that started this process ends."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


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
