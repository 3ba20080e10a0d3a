"""All checks, in the order in which they are best mended, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edgellm.doctor.check import Check, Examination
from edgellm.doctor.engines import check_engines
from edgellm.doctor.fences import check_fences
from edgellm.doctor.machine import check_machine
from edgellm.doctor.network import check_network
from edgellm.doctor.sandbox import check_sandbox
from edgellm.doctor.system import LocalSystem, System

_CHECKS: tuple[Callable[[System, Examination], Iterator[Check]], ...] = (
    check_sandbox,
    check_fences,
    check_engines,
    check_network,
    check_machine,
)


def run_doctor(examination: Examination, system: System | None = None) -> Iterator[Check]:
    """Each check as it is done; takes a few seconds in all. Without a `system` it examines this machine."""
    examined = system or LocalSystem()
    for check in _CHECKS:
        yield from check(examined, examination)


def exit_code(checks: Sequence[Check]) -> int:
    """0 when nothing failed; a warning is no failure."""
    return int(any(check.status == "fail" for check in checks))
