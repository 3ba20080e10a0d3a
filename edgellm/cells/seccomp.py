"""Which system calls the code in a cell may make: a classic BPF program for seccomp(2), made from the tables below.

What Ray, vLLM, torch, CUDA, NCCL and LMCache ask the kernel for is more than anybody can list, so the filter names what
they have no business with: all that changes the machine, that reaches into other processes, that gives namespaces (and so
capabilities) anew, and kernel interfaces that no namespace fences. What is newer than these tables is unknown to the kernel,
as far as a cell can see: programs then do as they would on an older one. Standard library only: the cell imports this.
"""

from __future__ import annotations

import errno
import struct

# System call numbers of x86-64 and AArch64 (asm/unistd.h); None where an architecture has no such call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # the machine: its clock, modules, kernel, swap, accounting, log, ports, name
    "acct": (163, 89), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "clock_settime": (227, 112),
    "settimeofday": (164, 170), "create_module": (174, None), "delete_module": (176, 106),
    "finit_module": (313, 273), "get_kernel_syms": (177, None), "init_module": (175, 105),
    "query_module": (178, None), "ioperm": (173, None), "iopl": (172, None), "kexec_file_load": (320, 294),
    "kexec_load": (246, 104), "nfsservctl": (180, 42), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "reboot": (169, 142), "setdomainname": (171, 162), "sethostname": (170, 161), "swapoff": (168, 225),
    "swapon": (167, 224), "syslog": (103, 116), "sysfs": (139, None), "_sysctl": (156, None),
    "uselib": (134, None), "ustat": (136, None), "vhangup": (153, 58), "modify_ldt": (154, None),
    # file systems, and files by handles that know no mount namespace
    "chroot": (161, 51), "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430),
    "fspick": (433, 433), "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "open_tree": (428, 428), "pivot_root": (155, 41), "umount2": (166, 39), "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18),
    # other processes, also those of the same cell: the one that holds its way to the carrier is among them
    "kcmp": (312, 272), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117),
    "setns": (308, 268),
    # what no namespace fences, or has been a way into the kernel too often
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "memfd_secret": (447, 447),
    "vmsplice": (278, 75),
}  # fmt: skip

# The C library and others do without them, as on kernels that have them not. clone3 keeps its flags in memory, where no
# filter sees them.
_UNKNOWN = (425, 426, 427, 435)  # io_uring_setup, _enter, _register; clone3
_FIRST_UNKNOWN = 463  # setxattrat; the calls up to mseal were looked at

# Audit token (linux/audit.h), and the calls that are judged by their arguments.
_ARCHITECTURES: dict[str, tuple[int, int, dict[str, int]]] = {
    "x86_64": (
        0,
        0xC000003E,
        {"ioctl": 16, "socket": 41, "socketpair": 53, "clone": 56, "personality": 135, "unshare": 272},
    ),
    "aarch64": (
        1,
        0xC00000B7,
        {"ioctl": 29, "socket": 198, "socketpair": 199, "clone": 220, "personality": 92, "unshare": 97},
    ),
}
_X32_BIT = 0x40000000

# linux/sched.h: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_NAMESPACES = 0x7E020000
# AF_VSOCK and others know no network namespace: a cell could talk to the machine's hypervisor.
_AF_UNIX, _AF_NETLINK = 1, 16
_INTERNET = (2, 10)
_INTERNET_PROTOCOLS = (
    0,
    6,
    17,
)  # the family's own, TCP, UDP: others would be loaded into the kernel on demand
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
# asm-generic/ioctls.h: TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD
_TERMINAL_REQUESTS = (0x5412, 0x541C, 0x541D, 0x5423)
_PERSONALITIES = (0, 0xFFFFFFFF)  # the ordinary one; which one it is

# linux/bpf_common.h: load word, jump on equal / greater-or-equal / bit set, return
_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# offsets in struct seccomp_data; the low halves of arguments, both architectures are little-endian
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND, _THIRD = 0, 4, 16, 24, 32

_Instruction = tuple[int, int, int, int]
_ALLOW: _Instruction = (_RETURN, 0, 0, 0x7FFF0000)


def seccomp_filter(machine: str, *, sets_up: bool = False) -> bytes:
    """The program (array of `struct sock_filter`) for `machine` as `platform.machine()` names it.

    With `sets_up` it lets the cell's first program speak to nftables, which the kernel allows to nobody without
    CAP_NET_ADMIN. Raises KeyError for another machine than x86_64 and aarch64.
    """
    column, token, judged = _ARCHITECTURES[machine]
    netlink = (_NETLINK_ROUTE, _NETLINK_NETFILTER) if sets_up else (_NETLINK_ROUTE,)
    denied = sorted(number for numbers in _DENIED.values() if (number := numbers[column]) is not None)
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JEQ, 1, 0, token),
        _refuse(errno.EPERM),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_JGE, 0, 1, _X32_BIT), _refuse(errno.EPERM)]
    program += [(_JGE, 0, 1, _FIRST_UNKNOWN), _refuse(errno.ENOSYS)]
    for number in denied:
        program += _on(number, [_refuse(errno.EPERM)])
    for number in _UNKNOWN:
        program += _on(number, [_refuse(errno.ENOSYS)])
    for name, verdict in _verdicts(netlink).items():
        program += _on(judged[name], verdict)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in [*program, _ALLOW])


def _verdicts(netlink: tuple[int, ...]) -> dict[str, list[_Instruction]]:
    """By name of the call, instructions that look at its arguments and always return."""
    namespaces = [(_LOAD, 0, 0, _FIRST), (_JSET, 0, 1, _NEW_NAMESPACES), _refuse(errno.EPERM), _ALLOW]
    protocols = [(_LOAD, 0, 0, _THIRD), *_allow_only(_INTERNET_PROTOCOLS, errno.EPROTONOSUPPORT)]
    families: list[_Instruction] = [(_LOAD, 0, 0, _FIRST), *_on(_AF_UNIX, [_ALLOW])]
    for family in _INTERNET:
        families += _on(family, protocols)
    families += _on(_AF_NETLINK, [(_LOAD, 0, 0, _THIRD), *_allow_only(netlink, errno.EPROTONOSUPPORT)])
    requests: list[_Instruction] = [(_LOAD, 0, 0, _SECOND)]
    for request in _TERMINAL_REQUESTS:
        requests += _on(request, [_refuse(errno.EPERM)])
    return {
        "clone": namespaces,
        "unshare": namespaces,
        "socket": [*families, _refuse(errno.EAFNOSUPPORT)],
        "socketpair": [(_LOAD, 0, 0, _FIRST), *_allow_only((_AF_UNIX,), errno.EAFNOSUPPORT)],
        "ioctl": [*requests, _ALLOW],
        "personality": [(_LOAD, 0, 0, _FIRST), *_allow_only(_PERSONALITIES, errno.EPERM)],
    }


def _on(value: int, then: list[_Instruction]) -> list[_Instruction]:
    """`then`, which returns, where the word that was loaded is `value`; else what follows it."""
    return [(_JEQ, 0, len(then), value), *then]


def _allow_only(values: tuple[int, ...], error: int) -> list[_Instruction]:
    allowed = [instruction for value in values for instruction in _on(value, [_ALLOW])]
    return [*allowed, _refuse(error)]


def _refuse(error: int) -> _Instruction:
    return (_RETURN, 0, 0, 0x00050000 | error)
