"""Can cells be made here? The programs, the kernel's permission, and a trial of the whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from edgellm.doctor.check import Check, Examination, fail, ok
from edgellm.doctor.system import Outcome, System

MINIMUM_BWRAP = (0, 8, 0)
"""Debian 12's bubblewrap: the oldest on which cells are tested."""

_NO_SYSCTL = (
    "a setting of this machine that is not one of the usual three (in a container: its seccomp profile)"
)
_PACKAGES = {"bwrap": "bubblewrap", "nft": "nftables", "ip": "iproute2"}
SANDBOX = ("--ro-bind", "/", "/", "--unshare-user", "--unshare-pid", "--die-with-parent")
_CELL = (
    "--unshare-net",
    "--uid",
    "0",
    "--gid",
    "0",
    "--cap-add",
    "CAP_NET_ADMIN",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
)


def check_sandbox(system: System, _examination: Examination) -> Iterator[Check]:
    """bwrap, nft, ip; user namespaces; the tun device; a cell's network tried inside a sandbox."""
    programs = [_program(system, program) for program in ("bwrap", "nft", "ip")]
    yield from programs
    namespaces = _user_namespaces(system)
    tun = _tun(system)
    yield namespaces
    yield tun
    missing = [check.name for check in (*programs, namespaces, tun) if check.status == "fail"]
    if missing:
        yield fail("cell", "not tried: it needs all of the above", f"first mend: {', '.join(missing)}")
    else:
        yield _cell(system)


def install_line(system: System, *packages: str) -> str:
    """The command that installs packages of the system, by the package manager that is here."""
    sudo = "" if system.uid() == 0 else "sudo "
    names = " ".join(packages)
    for manager, command in (("apt-get", "install -y"), ("dnf", "install -y"), ("pacman", "-S --noconfirm")):
        if system.which(manager):
            return f"{sudo}{manager} {command} {names}"
    return f"install {names} with your system's package manager"


def _program(system: System, program: str) -> Check:
    install = install_line(system, _PACKAGES[program])
    path = system.which(program)
    if path is None:
        return fail(program, "not installed", install)
    said = system.run([path, "-V" if program == "ip" else "--version"])
    if said.returncode != 0:
        return fail(program, f"{path} does not run: {said.said}", install)
    shown = said.stdout.strip().splitlines()[0] if said.stdout.strip() else path
    if program == "bwrap":
        found = _version(shown)
        if found < MINIMUM_BWRAP:
            wanted = ".".join(map(str, MINIMUM_BWRAP))
            return fail(program, f"{shown} is older than {wanted}", install)
    return ok(program, shown)


def _version(text: str) -> tuple[int, ...]:
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def _user_namespaces(system: System) -> Check:
    name = "user namespaces"
    bwrap = system.which("bwrap")
    if bwrap:
        tried = system.run([bwrap, *SANDBOX, "--proc", "/proc", "true"])
    else:
        tried = system.run(["unshare", "--user", "--map-root-user", "true"])
    if tried.returncode == 0:
        return ok(name, "a process may make its own")
    return fail(name, f"refused: {tried.said}", _permit_namespaces(system, tried))


def _permit_namespaces(system: System, tried: Outcome) -> str:
    sudo = "" if system.uid() == 0 else "sudo "

    def setting(key: str) -> str | None:
        text = system.read("/proc/sys/" + key.replace(".", "/"))
        return text.strip() if text else None

    for key, refusing, value in (
        ("user.max_user_namespaces", "0", "15000"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ):
        if setting(key) == refusing:
            return f"{sudo}sysctl -w {key}={value}  (to keep it: write {key}={value} to /etc/sysctl.d/60-edgellm.conf)"
    if "proc" in tried.said and "mount" in tried.said.lower():
        return "this is a container whose /proc is masked: docker run --security-opt systempaths=unconfined"
    return f"refused by {_NO_SYSCTL}; for docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined"


def _tun(system: System) -> Check:
    name = "/dev/net/tun"
    sudo = "" if system.uid() == 0 else "sudo "
    if not system.exists(name):
        make = f"{sudo}sh -c 'modprobe tun; mkdir -p /dev/net; mknod -m 666 {name} c 10 200'"
        return fail(name, "no such device", f"{make}  (in docker: --device {name})")
    if error := system.open_error(name):
        if error == "Permission denied":
            return fail(name, "this user may not open it", f"{sudo}chmod 666 {name}")
        return fail(name, f"cannot be opened: {error}", f"{sudo}modprobe tun")
    return ok(name, "can be opened")


def _cell(system: System) -> Check:
    name = "cell"
    bwrap = system.which("bwrap") or "bwrap"
    tun = ("--dev-bind", "/dev/net/tun", "/dev/net/tun")
    trial = (system.python(), "-m", "edgellm.doctor.cell_trial")
    tried = system.run([bwrap, *SANDBOX, *_CELL, *tun, *trial], timeout_s=30)
    step, reason = told(tried)
    sudo = "" if system.uid() == 0 else "sudo "
    if step == "done":
        return ok(name, "made one: its own network, and a connection redirected")
    if step == "tun":
        return fail(name, f"no network device in a sandbox: {reason}", f"{sudo}modprobe tun")
    if step in ("nft", "redirect"):
        detail = tried.stderr.strip().splitlines()[0] if tried.stderr.strip() else reason
        modules = "nf_tables nft_chain_nat nft_redir nf_nat"
        return fail(
            name,
            f"the kernel does not redirect connections in a sandbox: {detail}",
            f"{sudo}modprobe -a {modules}  (kernel {system.kernel()} needs NF_TABLES, NFT_NAT and NFT_REDIR)",
        )
    return fail(name, f"bwrap failed: {tried.said}", f"{_permit_namespaces(system, tried)}")


def told(tried: Outcome) -> tuple[str, str]:
    """The step and the reason that a trial program printed last; empty where it printed none."""
    for line in reversed(tried.stdout.splitlines()):
        try:
            told = json.loads(line)
            return str(told["step"]), str(told["reason"])
        except (ValueError, KeyError, TypeError):
            continue
    return "", ""
