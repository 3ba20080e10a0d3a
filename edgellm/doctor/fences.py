"""Which fences this machine gives a cell besides its namespaces: the filter of system calls, and limits of what it takes."""

from __future__ import annotations

from collections.abc import Iterator

from edgellm.doctor.check import Check, Examination, fail, ok, warn
from edgellm.doctor.sandbox import SANDBOX, told
from edgellm.doctor.system import System


def check_fences(system: System, _examination: Examination) -> Iterator[Check]:
    """seccomp, tried in a sandbox; a cgroup for each cell; root, who is bounded by fewer of the kernel's limits."""
    if bwrap := system.which("bwrap"):
        yield _seccomp(system, bwrap)
    yield _limits(system)
    if system.uid() == 0:
        yield warn(
            "user",
            "root: code in a cell has no capability, yet its files and processes are root's to the kernel",
            "run the host as a user of its own  (useradd --system --create-home edgellm)",
        )


def _seccomp(system: System, bwrap: str) -> Check:
    name = "seccomp"
    trial = (system.python(), "-m", "edgellm.doctor.fence_trial")
    tried = system.run([bwrap, *SANDBOX, "--proc", "/proc", *trial], timeout_s=30)
    step, reason = told(tried)
    if step == "done":
        return ok(name, "system calls that engines have no business with are refused in cells")
    return fail(
        name,
        f"cells cannot be fenced: {reason or tried.said}",
        f"boot a kernel with CONFIG_SECCOMP_FILTER  (this one is {system.kernel()})",
    )


def _limits(system: System) -> Check:
    name = "cell limits"
    place = system.cell_place()
    if place.directory is not None:
        cpu = "memory, processes and CPUs" if "cpu" in place.controllers else "memory and processes"
        return ok(name, f"{cpu} by the kernel: each cell gets a cgroup in {place.directory}")
    user = "" if system.uid() == 0 else "--user "
    remedy = (
        f"start the host with: systemd-run {user}--scope -p Delegate=yes edgellm host ..."
        if system.which("systemd-run") and system.exists("/run/systemd/system")
        else "start the host where a cgroup is delegated to it  (a service with Delegate=yes)"
    )
    return warn(
        name,
        f"memory and processes by the host's own watch, twice a second; CPUs not: {place.why_not}",
        remedy,
    )
