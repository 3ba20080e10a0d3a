"""What the seccomp program answers, run on a small machine of our own for both architectures."""

from __future__ import annotations

import ctypes
import struct

import pytest

from edgellm.cells.seccomp import _ARCHITECTURES, _DENIED, seccomp_filter


def run_filter(program: bytes, token: int, number: int, *arguments: int) -> int:
    """A small machine for the classic BPF that the filter uses."""
    data = struct.pack("=IIQ6Q", number, token, 0, *arguments, *(0,) * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, k = instructions[position]
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, k)
            case 0x06:
                return int(k)
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
                position += if_true if holds else if_false
            case _:
                raise AssertionError(f"instruction {code:#x}")


ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x50001, 0x50026
EAFNOSUPPORT, EPROTONOSUPPORT = 0x50061, 0x5005D
NAMESPACES = {
    "mnt": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}


@pytest.fixture(params=sorted(_ARCHITECTURES))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def verdict(machine: str, number: int, *arguments: int) -> int:
    return run_filter(seccomp_filter(machine), _ARCHITECTURES[machine][1], number, *arguments)


def call(machine: str, name: str, *arguments: int) -> int:
    return verdict(machine, _ARCHITECTURES[machine][2][name], *arguments)


def test_everything_denied_is_and_all_else_is_not(machine: str) -> None:
    column = _ARCHITECTURES[machine][0]
    denied = {numbers[column] for numbers in _DENIED.values()} - {None}
    unknown = {425, 426, 427, 435}
    judged = set(_ARCHITECTURES[machine][2].values())
    for number in range(470):
        expected = EPERM if number in denied else ENOSYS if number in unknown or number > 462 else ALLOW
        if number not in judged:
            assert verdict(machine, number) == expected, number


def test_another_architecture_is_refused(machine: str) -> None:
    for token in (0x40000003, 0x40000028, 0):  # i386, arm
        assert run_filter(seccomp_filter(machine), token, 0) == EPERM
    if machine == "x86_64":
        assert verdict(machine, 0x40000000) == verdict(machine, 0x40000000 + 101) == EPERM


def test_threads_and_processes_but_no_namespaces(machine: str) -> None:
    assert call(machine, "clone", 0x11) == call(machine, "clone", 0x3D0F00) == ALLOW
    assert call(machine, "unshare", 0x200) == ALLOW
    for flag in NAMESPACES.values():
        assert call(machine, "clone", flag | 0x11) == EPERM
        assert call(machine, "unshare", flag) == EPERM


def test_sockets(machine: str) -> None:
    assert call(machine, "socket", 1, 1, 0) == ALLOW
    for family in (2, 10):
        assert [call(machine, "socket", family, 1, protocol) for protocol in (0, 6, 17)] == [ALLOW] * 3
        assert {call(machine, "socket", family, 1, protocol) for protocol in (1, 33, 132, 262)} == {
            EPROTONOSUPPORT
        }
    assert call(machine, "socket", 16, 3, 0) == ALLOW
    assert {call(machine, "socket", 16, 3, protocol) for protocol in (2, 4, 12)} == {EPROTONOSUPPORT}
    filters = seccomp_filter(machine, sets_up=True), _ARCHITECTURES[machine][1], _ARCHITECTURES[machine][2]
    assert [run_filter(*filters[:2], filters[2]["socket"], 16, 3, kind) for kind in (0, 12, 4)] == [
        ALLOW,
        ALLOW,
        EPROTONOSUPPORT,
    ]
    others = set(range(46)) - {1, 2, 10, 16}
    assert {call(machine, "socket", family) for family in others} == {EAFNOSUPPORT}
    assert [call(machine, "socketpair", family) for family in (1, 2, 30)] == [
        ALLOW,
        EAFNOSUPPORT,
        EAFNOSUPPORT,
    ]


def test_terminals_and_personalities(machine: str) -> None:
    assert {call(machine, "ioctl", 3, request) for request in (0x5412, 0x541C, 0x541D, 0x5423)} == {EPERM}
    # What fills the upper half of the register is the kernel's to ignore.
    assert call(machine, "ioctl", 3, 0xFFFFFFFF_00005412) == EPERM
    assert call(machine, "ioctl", 3, 0x5413) == call(machine, "ioctl", 3, 0xC020462A) == ALLOW
    assert [call(machine, "personality", value) for value in (0, 0xFFFFFFFF)] == [ALLOW] * 2
    assert [call(machine, "personality", value) for value in (0x40000, 8, 0x400000)] == [EPERM] * 3


def test_numbers_are_those_of_libseccomp() -> None:
    """Which knows each architecture's; where it is not installed, the tables have been compared elsewhere."""
    try:
        resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name_arch
    except OSError:
        pytest.skip("libseccomp is not installed")
    for column, token, judged in _ARCHITECTURES.values():
        for name, numbers in _DENIED.items():
            known = resolve(ctypes.c_uint32(token), name.encode())
            assert numbers[column] == (known if known >= 0 else None), name
        for name, number in judged.items():
            assert resolve(ctypes.c_uint32(token), name.encode()) == number, name
