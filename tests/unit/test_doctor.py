"""Each cross that `edgellm doctor` can draw, and what it then says to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from edgellm.cells.cgroup import Place
from edgellm.doctor.check import Check, Examination
from edgellm.doctor.doctor import exit_code, run_doctor
from edgellm.doctor.network import tcp_endpoint
from edgellm.doctor.report import print_check, print_verdict, to_json
from edgellm.doctor.system import Outcome
from edgellm.engine.backend import Backend, DeviceKind
from edgellm.errors import DiscoveryError, EdgeError, EngineError, UsageError
from edgellm.p2p.reachability import Verdict
from edgellm.paths import Paths

GIB = 1 << 30
PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
BOOTSTRAP = f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}"
DONE = Outcome(0, '{"step": "done", "reason": ""}\n')
GPU_FILES = {"/proc/driver/nvidia/version": "NVRM version: 580.1"}
SMI = "/usr/bin/nvidia-smi"


@dataclass
class Engine:
    kind: DeviceKind = "cpu"

    def versions(self) -> Mapping[str, str]:
        return {"vllm": "0.32.0", "ray": "2.60.0", "torch": "2.13.0"}

    def device_kind(self) -> DeviceKind:
        return self.kind


@dataclass
class Fake:
    """A machine on which all is well, until a test takes something away."""

    programs: set[str] = field(default_factory=lambda: {"bwrap", "nft", "ip", "apt-get"})
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By a word of the command line."""
    files: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    open_errors: dict[str, str] = field(default_factory=dict)
    write_errors: dict[str, str] = field(default_factory=dict)
    free: dict[str, int] = field(default_factory=dict)
    listening: dict[int, str] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)
    reached: Verdict | EdgeError = field(default_factory=lambda: Verdict("direct", "2 peers got through"))
    versions: dict[str, str] = field(default_factory=lambda: {"torch": "2.13.0+cpu"})
    engine: Engine | EngineError = field(default_factory=Engine)
    identity: UsageError | None = None
    no_paths: UsageError | None = None
    memory: tuple[int, int] = (8 * GIB, 6 * GIB)
    open_files: tuple[int, int] = (4096, 65536)
    time: tuple[float, bool | None] = (1_800_000_000.0, True)
    user: int = 1000
    place: Place = field(
        default_factory=lambda: Place(Path("/sys/fs/cgroup/host"), "", frozenset(("cpu", "memory", "pids")))
    )

    def run(self, argv: Sequence[str], timeout_s: float = 15.0) -> Outcome:
        found = (outcome for word, outcome in self.outcomes.items() if any(word in part for part in argv))
        default = DONE if any("_trial" in part for part in argv) else Outcome(0, f"{argv[0]} 1.2.3\n")
        return next(found, default)

    def which(self, program: str) -> str | None:
        return f"/usr/bin/{program}" if program in self.programs else None

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def exists(self, path: str) -> bool:
        return path not in self.missing

    def open_error(self, path: str) -> str:
        return self.open_errors.get(path, "")

    def free_bytes(self, path: str) -> int:
        return self.free.get(path, 50 * GIB)

    def write_error(self, directory: str) -> str:
        return self.write_errors.get(directory, "")

    def listen_error(self, host: str, port: int) -> str:
        return self.listening.get(port, "")

    def connect_error(self, host: str, port: int, timeout_s: float) -> str:
        return self.unreachable.get(host, "")

    def how_reached(self, listen: tuple[str, ...], bootstrap: tuple[str, ...]) -> Verdict:
        if isinstance(self.reached, EdgeError):
            raise self.reached
        return self.reached

    def version(self, distribution: str) -> str | None:
        return self.versions.get(distribution)

    def backend(self, name: str) -> Backend:
        if isinstance(self.engine, EngineError):
            raise self.engine
        return cast(Backend, self.engine)

    def paths(self) -> Paths:
        if self.no_paths:
            raise self.no_paths
        return Paths(Path("/home/u/state"), Path("/home/u/cache"), Path("/run/u"))

    def peer_of_identity(self, path: Path) -> str:
        if self.identity:
            raise self.identity
        return PEER

    def memory_bytes(self) -> tuple[int, int]:
        return self.memory

    def open_files_limit(self) -> tuple[int, int]:
        return self.open_files

    def clock(self) -> tuple[float, bool | None]:
        return self.time

    def cell_place(self) -> Place:
        return self.place

    def uid(self) -> int:
        return self.user

    def kernel(self) -> str:
        return "6.1.0"

    def python(self) -> str:
        return "/venv/bin/python"


WELL = Examination(listen=("/ip4/0.0.0.0/tcp/4001",), bootstrap=(BOOTSTRAP,))


def examined(system: Fake, examination: Examination = WELL) -> dict[str, Check]:
    return {check.name: check for check in run_doctor(examination, system)}


def test_a_machine_on_which_all_is_well() -> None:
    checks = tuple(run_doctor(WELL, Fake()))
    assert {check.status for check in checks} == {"ok"}
    assert not any(check.remedy for check in checks)
    assert exit_code(checks) == 0


@dataclass
class Cross:
    name: str
    detail: str
    remedy: str
    machine: Callable[[], Fake]


def denied(key: str, value: str) -> Callable[[], Fake]:
    refused = Outcome(1, stderr="bwrap: No permissions to create new namespace")
    path = "/proc/sys/" + key.replace(".", "/")
    return lambda: Fake(outcomes={"--unshare-user": refused}, files={path: f"{value}\n"})


def told(step: str, reason: str, stderr: str = "") -> Callable[[], Fake]:
    outcome = Outcome(1, json.dumps({"step": step, "reason": reason}) + "\n", stderr)
    return lambda: Fake(outcomes={"cell_trial": outcome})


def gpu(**changes: object) -> Callable[[], Fake]:
    def machine() -> Fake:
        listed = Outcome(0, "NVIDIA H200, 143771 MiB, 580.1\n")
        fake = Fake(engine=Engine("cuda"), files=dict(GPU_FILES), outcomes={"--query-gpu": listed})
        fake.programs.add("nvidia-smi")
        fake.outcomes[SMI] = Outcome(0, "| NVIDIA-SMI 580.1  Driver Version: 580.1  CUDA Version: 13.0 |\n")
        fake.versions = {"torch": "2.13.0", "nvidia-cuda-runtime": "13.0.1"}
        for name, value in changes.items():
            setattr(fake, name, value)
        return fake

    return machine


CROSSES = [
    Cross(
        "bwrap",
        "not installed",
        "sudo apt-get install -y bubblewrap",
        lambda: Fake(programs={"nft", "ip", "apt-get"}),
    ),
    Cross(
        "nft", "not installed", "sudo dnf install -y nftables", lambda: Fake(programs={"bwrap", "ip", "dnf"})
    ),
    Cross(
        "ip",
        "not installed",
        "apt-get install -y iproute2",
        lambda: Fake(programs={"bwrap", "nft", "apt-get"}, user=0),
    ),
    Cross("cell", "not tried", "first mend: nft", lambda: Fake(programs={"bwrap", "ip"})),
    Cross(
        "bwrap",
        "older than 0.8.0",
        "bubblewrap",
        lambda: Fake(outcomes={"--version": Outcome(0, "bubblewrap 0.4.1")}),
    ),
    Cross(
        "user namespaces",
        "No permissions",
        "sudo sysctl -w user.max_user_namespaces=",
        denied("user.max_user_namespaces", "0"),
    ),
    Cross(
        "user namespaces",
        "refused",
        "sysctl -w kernel.unprivileged_userns_clone=1",
        denied("kernel.unprivileged_userns_clone", "0"),
    ),
    Cross(
        "user namespaces",
        "refused",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        denied("kernel.apparmor_restrict_unprivileged_userns", "1"),
    ),
    Cross("user namespaces", "refused", "seccomp", denied("user.max_user_namespaces", "1000")),
    Cross(
        "user namespaces",
        "proc",
        "systempaths=unconfined",
        lambda: Fake(
            outcomes={"--unshare-user": Outcome(1, stderr="bwrap: Can't mount proc on /newroot/proc")}
        ),
    ),
    Cross(
        "/dev/net/tun",
        "no such device",
        "mknod -m 666 /dev/net/tun c 10 200",
        lambda: Fake(missing={"/dev/net/tun"}),
    ),
    Cross(
        "/dev/net/tun",
        "may not",
        "sudo chmod 666",
        lambda: Fake(open_errors={"/dev/net/tun": "Permission denied"}),
    ),
    Cross(
        "/dev/net/tun",
        "No such device",
        "modprobe tun",
        lambda: Fake(open_errors={"/dev/net/tun": "No such device"}),
    ),
    Cross("cell", "no network device", "modprobe tun", told("tun", "Operation not permitted")),
    Cross(
        "cell",
        "Could not process rule",
        "modprobe -a nf_tables",
        told("nft", "nft ended with 1", "Error: Could not process rule"),
    ),
    Cross("cell", "does not redirect", "nft_redir", told("redirect", "timed out")),
    Cross(
        "cell",
        "bwrap failed",
        "seccomp",
        lambda: Fake(outcomes={"cell_trial": Outcome(1, stderr="bwrap: loopback: Failed")}),
    ),
    Cross(
        "engine vllm",
        "not installed",
        "pip install 'edgellm-vllm[cpu]'",
        lambda: Fake(engine=EngineError("vLLM is not installed", remedy="pip install 'edgellm-vllm[cpu]'")),
    ),
    Cross(
        "torch's companions",
        "torchaudio",
        "/venv/bin/python -m pip uninstall -y torchvision torchaudio",
        lambda: Fake(versions={"torch": "2.13.0+cpu", "torchvision": "0.28.0", "torchaudio": "2.13.0"}),
    ),
    Cross("GPU", "no NVIDIA driver", "modprobe nvidia", gpu(files={})),
    Cross("GPU", "no nvidia-smi", "install", gpu(programs={"bwrap", "nft", "ip"})),
    Cross(
        "GPU",
        "mismatch",
        "reboot",
        gpu(outcomes={SMI: Outcome(18, "Failed: Driver/library version mismatch")}),
    ),
    Cross("GPU", "/dev/nvidia-uvm is missing", "nvidia-modprobe -u -c=0", gpu(missing={"/dev/nvidia-uvm"})),
    Cross(
        "GPU",
        "cannot be opened",
        "chmod 666 /dev/nvidiactl",
        gpu(open_errors={"/dev/nvidiactl": "Permission denied"}),
    ),
    Cross("GPU", "supports CUDA 13.0", "CUDA 14", gpu(versions={"nvidia-cuda-runtime": "14.1"})),
    Cross(
        "port",
        "4001 is taken",
        "ss -ltnp 'sport = :4001'",
        lambda: Fake(listening={4001: "Address already in use"}),
    ),
    Cross("port", "may not", "above 1023", lambda: Fake(listening={4001: "Permission denied"})),
    Cross(
        "port",
        "Cannot assign",
        "ip -brief address",
        lambda: Fake(listening={4001: "Cannot assign requested address"}),
    ),
    Cross(
        "reachability",
        "timed out",
        "nc -vz 192.0.2.7 4001",
        lambda: Fake(unreachable={"192.0.2.7": "timed out"}),
    ),
    Cross("disk (state)", "1.0 GiB", "EDGELLM_HOME", lambda: Fake(free={"/home/u/state": GIB})),
    Cross(
        "disk (cache)",
        "Read-only",
        "EDGELLM_HOME",
        lambda: Fake(write_errors={"/home/u/cache": "Read-only file system"}),
    ),
    Cross(
        "directories",
        "belongs to another",
        "EDGELLM_HOME",
        lambda: Fake(no_paths=UsageError("it belongs to another", remedy="set EDGELLM_HOME")),
    ),
    Cross(
        "identity",
        "others",
        "chmod 600",
        lambda: Fake(identity=UsageError("may be read by others", remedy="chmod 600 x")),
    ),
    Cross("/dev/shm", "no such directory", "mount -t tmpfs", lambda: Fake(missing={"/dev/shm"})),
    Cross("open files", "256", "ulimit -n 1024", lambda: Fake(open_files=(256, 4096))),
    Cross("clock", "1970-01-01", "timedatectl set-ntp true", lambda: Fake(time=(1000.0, None))),
]


@pytest.mark.parametrize("cross", CROSSES, ids=lambda cross: f"{cross.name}: {cross.detail}")
def test_each_cross_names_its_remedy(cross: Cross) -> None:
    checks = examined(cross.machine())
    check = checks[cross.name]
    assert check.status == "fail"
    assert cross.detail in check.detail
    assert cross.remedy in check.remedy
    assert exit_code(tuple(checks.values())) == 1


WARNINGS = [
    ("GPU", "unused by a CPU engine", gpu(engine=Engine("cpu"))),
    ("GPU", "no nvidia-smi", gpu(engine=Engine("cpu"), programs={"bwrap", "nft", "ip"})),
    ("/dev/shm", "too little", lambda: Fake(free={"/dev/shm": 64 << 20})),
    ("memory", "before any weights", lambda: Fake(memory=(2 * GIB, GIB))),
    ("clock", "nothing keeps it right", lambda: Fake(time=(1_800_000_000.0, False))),
]


@pytest.mark.parametrize(("name", "detail", "machine"), WARNINGS)
def test_a_warning_is_no_failure(name: str, detail: str, machine: Callable[[], Fake]) -> None:
    checks = examined(machine())
    assert checks[name].status == "warn"
    assert detail in checks[name].detail
    assert exit_code(tuple(checks.values())) == 0


def test_a_gpu_that_works_is_named() -> None:
    assert examined(gpu()())["GPU"].detail.startswith("NVIDIA H200")


def test_without_a_bootstrap_peer_reachability_is_skipped_in_words() -> None:
    check = examined(Fake(), Examination())["reachability"]
    assert (check.status, "skipped" in check.detail) == ("warn", True)


@pytest.mark.parametrize(
    ("reached", "status", "detail"),
    [
        (Verdict("mapped", "UPnP opened 45.9.0.7 port 4001"), "ok", "mapped: UPnP opened"),
        (Verdict("relayed", "through relay …abc only", remedy="forward"), "warn", "relayed: through relay"),
        (Verdict("unreachable", "nobody got through", remedy="forward"), "fail", "unreachable: nobody"),
        (DiscoveryError("no bootstrap peer answers"), "warn", "cannot be told"),
    ],
)
def test_which_way_others_reach_this_machine_is_said(
    reached: Verdict | EdgeError, status: str, detail: str
) -> None:
    check = examined(Fake(reached=reached))["reached"]
    assert check.status == status
    assert detail in check.detail
    assert status == "ok" or bool(check.remedy) == bool(getattr(reached, "remedy", ""))


def test_who_need_not_be_reached_is_not_failed_for_it() -> None:
    unreached = Fake(reached=Verdict("unreachable", "nobody got through", remedy="forward"))
    assert examined(unreached, Examination(bootstrap=(BOOTSTRAP,)))["reached"].status == "warn"


def test_the_default_port_may_be_a_running_host_s() -> None:
    taken = Fake(listening={4001: "Address already in use"})
    assert examined(taken, Examination())["port"].status == "warn"


def test_every_bootstrap_peer_is_tried() -> None:
    gone = BOOTSTRAP.replace("192.0.2.7", "192.0.2.8")
    examination = Examination(bootstrap=(BOOTSTRAP, gone, "garbage"))
    system = Fake(unreachable={"192.0.2.8": "timed out"})
    found = [check.status for check in run_doctor(examination, system) if check.name == "reachability"]
    assert found == ["ok", "fail", "fail"]


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        (BOOTSTRAP, ("192.0.2.7", 4001)),
        ("/ip6/::1/tcp/0", ("::1", 0)),
        ("/dns4/peer.example/tcp/4001", ("peer.example", 4001)),
        (f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}", ("192.0.2.7", 4001)),
        ("/ip4/192.0.2.7/udp/4001/quic-v1", None),
        ("/ip4/999.0.2.7/tcp/4001", None),
        ("192.0.2.7:4001", None),
        ("", None),
    ],
)
def test_tcp_endpoint(address: str, endpoint: tuple[str, int] | None) -> None:
    assert tcp_endpoint(address) == endpoint


@pytest.fixture
def checks() -> tuple[Check, ...]:
    return tuple(run_doctor(WELL, Fake(programs={"bwrap", "ip", "apt-get"}, memory=(GIB, GIB))))


def test_the_report_puts_each_remedy_under_its_cross(checks: tuple[Check, ...]) -> None:
    out = StringIO()
    console = Console(file=out, width=60)
    for check in checks:
        print_check(console, check)
    print_verdict(console, checks)
    lines = out.getvalue().splitlines()
    cross = next(index for index, line in enumerate(lines) if line.startswith("✗ nft"))
    assert lines[cross + 1].strip() == "→ sudo apt-get install -y nftables"
    assert lines[-1] == "2 to mend, 1 warning"


def test_json_holds_the_verdict_and_every_check(checks: tuple[Check, ...]) -> None:
    told = json.loads(to_json(checks))
    assert told["ok"] is False
    assert [check["name"] for check in told["checks"]] == [check.name for check in checks]
    assert set(told["checks"][0]) == {"name", "status", "detail", "remedy"}


def test_fences_and_limits_of_cells() -> None:
    checks = examined(Fake())
    assert checks["seccomp"].status == "ok"
    assert "memory, processes and CPUs by the kernel" in checks["cell limits"].detail
    assert "user" not in checks

    outside = Place(None, "/sys/fs/cgroup/x holds 3 processes besides this one")
    fake = Fake(
        place=outside, outcomes={"fence_trial": Outcome(1, '{"step": "seccomp", "reason": "no filter"}')}
    )
    fake.programs.add("systemd-run")
    checks = examined(fake)
    assert (checks["seccomp"].status, checks["cell limits"].status) == ("fail", "warn")
    assert "no filter" in checks["seccomp"].detail
    assert "CONFIG_SECCOMP_FILTER" in checks["seccomp"].remedy
    assert "3 processes besides this one" in checks["cell limits"].detail
    assert "systemd-run --user --scope -p Delegate=yes" in checks["cell limits"].remedy
    fake.user = 0
    checks = examined(fake)
    assert "systemd-run --scope" in checks["cell limits"].remedy
    assert checks["user"].status == "warn"
    fake.missing.add("/run/systemd/system")
    assert "cgroup is delegated" in examined(fake)["cell limits"].remedy
