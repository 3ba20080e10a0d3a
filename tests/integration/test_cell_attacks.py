"""What a hostile requester's code may try in a cell on Linux itself. Beside each attempt stands a control that succeeds, so
that one which was made the wrong way cannot pass for one that was fenced.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import trio

from edgellm.cells.cell import Cell, open_cell
from edgellm.cells.cgroup import _make_for_processes, find_place
from edgellm.cells.seccomp import _ARCHITECTURES, _DENIED
from edgellm.cells.spec import Limits
from tests.integration.cells import event_named, events_of, python_cell

MIB = 1 << 20
NUMBERS = {
    name: number
    for name, numbers in _DENIED.items()
    if (number := numbers[_ARCHITECTURES[platform.machine()][0]]) is not None
}
NUMBERS |= _ARCHITECTURES[platform.machine()][2]

# Arguments with which a call that is let through fails for another reason than permission, or does nothing.
CALLS = """
import ctypes, pty
libc = ctypes.CDLL(None, use_errno=True)
nowhere, path = ctypes.c_void_p(0), ctypes.c_char_p(b"/nonexistent")
ATTEMPTS = {
    "mount": (path, path, path, 0, nowhere), "umount2": (path, 0), "pivot_root": (path, path), "chroot": (path,),
    "fsopen": (nowhere, 0), "open_tree": (-1, path, 0), "move_mount": (-1, path, -1, path, 0),
    "mount_setattr": (-1, path, 0, nowhere, 0), "ptrace": (3, 2**22, 0, 0),
    "process_vm_readv": (2**22, nowhere, 0, nowhere, 0, 0), "process_vm_writev": (2**22, nowhere, 0, nowhere, 0, 0),
    "kcmp": (2**22, 2**22, 0, 0, 0), "setns": (-1, 0), "bpf": (999, nowhere, 0), "perf_event_open": (nowhere, 0, -1, -1, 0),
    "userfaultfd": (0xF0F0F0,), "add_key": (nowhere, nowhere, nowhere, 0, 0), "keyctl": (9999, 0, 0, 0, 0),
    "request_key": (nowhere, nowhere, nowhere, 0), "name_to_handle_at": (-1, path, nowhere, nowhere, 0),
    "open_by_handle_at": (-1, nowhere, 0), "fanotify_init": (0xF0F0F0, 0), "kexec_load": (0, 0, nowhere, 0xF0F0),
    "init_module": (nowhere, 0, nowhere), "finit_module": (-1, path, 0), "delete_module": (nowhere, 0),
    "swapon": (nowhere, 0), "swapoff": (nowhere,), "reboot": (0, 0, 0, nowhere), "clock_settime": (99, nowhere),
    "acct": (path,), "quotactl": (0xF0F0, path, 0, nowhere), "syslog": (99, nowhere, 0), "vmsplice": (-1, nowhere, 0, 0),
    "iopl": (9,), "ioperm": (2**20, 1, 1),
}
def outcome(number, arguments):
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return 0 if libc.syscall(ctypes.c_long(number), *words) >= 0 else ctypes.get_errno()
def try_all(numbers):
    found = {name: outcome(numbers[name], ATTEMPTS[name]) for name in ATTEMPTS if name in numbers}
    for name, flag in {"mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000,
                       "pid": 0x20000000, "net": 0x40000000}.items():
        if os.fork() == 0:
            os._exit(outcome(numbers["unshare"], (flag,)))
        found["unshare " + name] = os.waitstatus_to_exitcode(os.wait()[1])
    master, slave = pty.openpty()
    byte = ctypes.c_char(b"x")
    if os.fork() == 0:
        os.setsid()
        os.close(os.open(os.ttyname(slave), os.O_RDWR))
        os._exit(outcome(numbers["ioctl"], (slave, 0x5412, ctypes.byref(byte))))
    found["ioctl TIOCSTI"] = os.waitstatus_to_exitcode(os.wait()[1])
    if os.fork() == 0:
        os._exit(outcome(numbers["personality"], (0x40000,)))
    found["personality"] = os.waitstatus_to_exitcode(os.wait()[1])
    found["io_uring_setup"] = outcome(425, (0, nowhere))
    return found
tell(event="calls", **try_all(json.loads(sys.argv[1])))
"""


async def test_system_calls_that_engines_have_no_business_with(tmp_path: Path) -> None:
    spec = python_cell(CALLS, tmp_path / "run", json.dumps(NUMBERS))
    [seen] = await events_of(spec)
    outside = subprocess.run(spec.argv, capture_output=True, text=True, check=True)
    control = json.loads(outside.stdout)
    assert set(seen) == set(control)
    assert len(seen) > 40
    assert seen.pop("io_uring_setup") == errno.ENOSYS
    assert control.pop("io_uring_setup") in (errno.EINVAL, errno.EFAULT, errno.EPERM)
    del seen["event"], control["event"]
    assert set(seen.values()) == {errno.EPERM}, seen
    if os.geteuid() == 0:
        # Root outside gets past the question of permission everywhere, save what this kernel's settings shut to all.
        assert {name for name, error in control.items() if error == errno.EPERM} <= {"ioctl TIOCSTI"}, control


async def test_tricks_by_proc(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    [seen] = await events_of(
        python_cell(
            """
            import ctypes
            secret, init = sys.argv[1], os.getppid()
            def fds(pid):
                return sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
            def status(pid):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                return dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
            libc = ctypes.CDLL(None, use_errno=True)
            def steal(pid, fd):
                pidfd = os.pidfd_open(pid)
                return libc.syscall(438, pidfd, fd, 0), ctypes.get_errno()
            child = subprocess.Popen(["sleep", "60"])
            time.sleep(0.2)
            tell(
                own_memory=attempt(lambda: open("/proc/self/mem", "rb").close()),
                childs_memory=attempt(lambda: open(f"/proc/{child.pid}/mem", "rb").close()),
                inits_memory=attempt(lambda: open(f"/proc/{init}/mem", "rb")),
                inits_files=attempt(lambda: fds(init)),
                inits_root=attempt(lambda: os.listdir(f"/proc/{init}/root")),
                stolen=[steal(init, fd) for fd in range(3, 24)],
                stolen_of_child=steal(child.pid, 1)[0],
                firsts_root=attempt(lambda: Path("/proc/1/root" + secret).read_text()),
                firsts_directory=attempt(lambda: Path("/proc/1/cwd" + secret).read_text()),
                own_root=attempt(lambda: sorted(os.listdir("/proc/self/root")) == sorted(os.listdir("/"))),
                filters=[status(pid)["Seccomp"] for pid in os.listdir("/proc") if pid.isdigit()],
                privileges=[status(pid)["NoNewPrivs"] for pid in os.listdir("/proc") if pid.isdigit()],
                capabilities={status(pid)["CapPrm"] for pid in os.listdir("/proc") if pid.isdigit()}.pop(),
                written={
                    path: attempt(lambda path=path: os.open(path, os.O_WRONLY))
                    for path in (
                        "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
                        "/proc/mtrr", "/proc/kcore", "/proc/sys/vm/drop_caches",
                    )
                },
                kernel=[attempt(lambda path=path: os.open(path, os.O_RDONLY)) for path in ("/proc/kcore", "/proc/kmsg")],
                oom=attempt(lambda: Path("/proc/self/oom_score_adj").write_text("-500")),
                maps=attempt(lambda: Path("/proc/self/uid_map").write_text("0 0 4294967295")),
            )
            child.kill()
            """,
            tmp_path / "run",
            str(secret),
        )
    )
    assert (seen["own_memory"], seen["childs_memory"], seen["own_root"]) == ("None", "None", "True")
    assert seen["stolen_of_child"] > 2
    assert {seen[name] for name in ("inits_memory", "inits_files", "inits_root")} == {"PermissionError"}
    assert {(result, error) for result, error in seen["stolen"]} == {(-1, errno.EPERM)}
    assert seen["firsts_root"] in ("FileNotFoundError", "NotADirectoryError")
    assert seen["firsts_directory"] in ("FileNotFoundError", "PermissionError", "NotADirectoryError")
    assert set(seen["filters"]) == {"2"}, "also the process whose memory can be written"
    assert set(seen["privileges"]) == {"1"}
    assert seen["capabilities"] == "0" * 16
    assert set(seen["written"].values()) <= {"OSError", "PermissionError", "FileNotFoundError"}
    assert set(seen["kernel"]) <= {"OSError", "PermissionError", "FileNotFoundError"}
    assert seen["oom"] == seen["maps"] == "PermissionError"


async def test_nothing_of_the_node_is_open_in_the_cell(tmp_path: Path) -> None:
    with (tmp_path / "private").open("w") as private:
        os.set_inheritable(private.fileno(), True)
        [seen] = await events_of(
            python_cell(
                """
                fds = [(int(fd), os.readlink(f"/proc/self/fd/{fd}")) for fd in os.listdir("/proc/self/fd")
                       if os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}")]
                tell(fds=fds, limits=Path("/proc/self/limits").read_text())
                """,
                tmp_path / "run",
            )
        )
    inherited = {fd: name for fd, name in seen["fds"] if not name.startswith("/proc/")}
    assert set(inherited) == {0, 1, 2}, inherited
    assert inherited[0] == "/dev/null"
    limits = {line[:25].strip(): line[26:].split()[:2] for line in seen["limits"].splitlines()[1:]}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max realtime priority"] == ["0", "0"]
    assert int(limits["Max open files"][1]) <= 65536
    assert int(limits["Max file size"][1]) == 8 << 30


async def neighbour(tmp_path: Path, cells: trio.Nursery) -> trio.MemoryReceiveChannel[float]:
    """Another requester's cell, whose beats this gives: how long after the one before each came."""
    send, beats = trio.open_memory_channel[float](10_000)

    async def run() -> None:
        program = "while True: tell(event='beat'); time.sleep(0.05)"
        async with open_cell(python_cell(program, tmp_path / "other", address="10.88.7.3")) as cell:
            last = time.monotonic()
            async for _ in cell.events:
                now = time.monotonic()
                send.send_nowait(now - last)
                last = now

    cells.start_soon(run)
    await beats.receive()
    return beats


async def ended_by_its_limit(cell: Cell, within_s: float = 20.0) -> str:
    with trio.fail_after(within_s):
        await cell.wait()
    return cell.broken_limit


def processes_of(marker: str) -> int:
    return sum(marker in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


def _make_for_processes_works() -> bool:
    group = _make_for_processes(Limits())
    if group is not None:
        group.directory.rmdir()
    return group is not None


async def test_fork_bomb(tmp_path: Path) -> None:
    """Its cell ends, or can fork no more; another requester's cell and this process go on; nothing is left."""
    # Root without a cgroup is bounded by the node's watch alone, which an unchecked bomb would starve: there it is a slow one.
    is_checked = os.geteuid() != 0 or find_place().directory is not None or _make_for_processes_works()
    bomb = f"""
    tell(event="up")
    while True:
        try:
            if os.fork() == 0 and not {is_checked}:
                time.sleep(60)
            time.sleep({0 if is_checked else 0.002})
        except OSError:
            time.sleep(0.05)
    """
    marker = f"edgellm-fork-bomb-{os.getpid()}"
    async with trio.open_nursery() as nursery:
        beats = await neighbour(tmp_path, nursery)
        limits = Limits(processes=200)
        begun = time.monotonic()
        async with open_cell(python_cell(bomb, tmp_path / "run", marker, limits=limits)) as cell:
            await event_named(cell, "up")
            if not is_checked:
                assert "too many processes" in await ended_by_its_limit(cell)
            else:
                await trio.sleep(3)
                # bwrap and the cell's first program were there before the limit was.
                assert processes_of(marker) <= 204
                assert processes_of(marker) > 100 or "too many processes" in cell.broken_limit
        assert time.monotonic() - begun < 20
        assert processes_of(marker) == 0
        await trio.sleep(0.5)
        gaps = [beats.receive_nowait() for _ in range(beats.statistics().current_buffer_used)]
        assert len(gaps) > 5
        assert max(gaps) < 5
        nursery.cancel_scope.cancel()


async def test_few_processes_are_no_bomb(tmp_path: Path) -> None:
    program = """
    children = [subprocess.Popen(["sleep", "1.5"]) for _ in range(50)]
    tell(event="up", ended=[child.wait() for child in children])
    """
    spec = python_cell(program, tmp_path / "run", limits=Limits(processes=200, memory_bytes=1 << 30))
    [seen] = await events_of(spec)
    assert seen["ended"] == [0] * 50


BOMBS = {
    "memory": "held = [bytearray(b'x' * (4 << 20)) for _ in range(10_000)]",
    "children": """
    for _ in range(20):
        if os.fork() == 0:
            held = bytearray(b"x" * (24 << 20))
            time.sleep(60)
    time.sleep(60)
    """,
    "shared": """
    import mmap
    held = mmap.mmap(-1, 1 << 30)
    for start in range(0, 1 << 30, 1 << 20):
        held[start:start + (1 << 20)] = b"x" * (1 << 20)
    time.sleep(60)
    """,
    "tmp": "open('/tmp/x', 'wb').write(b'x' * (400 << 20)); time.sleep(60)",
    "shm": "open('/dev/shm/x', 'wb').write(b'x' * (100 << 20)); open('/tmp/x', 'wb').write(b'x' * (200 << 20)); time.sleep(60)",
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_memory_bombs(tmp_path: Path, bomb: str) -> None:
    """By any way that a process has to take memory the cell ends, and whoever leased it hears why."""
    program = 'tell(event="up")\n' + textwrap.dedent(BOMBS[bomb])
    limits = Limits(memory_bytes=256 * MIB)
    before = psutil.virtual_memory().available
    async with open_cell(python_cell(program, tmp_path / "run", limits=limits)) as cell:
        await event_named(cell, "up")
        assert "out of memory in its cell" in await ended_by_its_limit(cell, 30.0)
        assert "0.25 GiB" in cell.broken_limit
    assert psutil.virtual_memory().available > before - (1 << 30)


async def test_memory_within_the_lease_is_its_own(tmp_path: Path) -> None:
    program = """
    held = bytearray(b"x" * (100 << 20))
    open("/tmp/x", "wb").write(b"x" * (50 << 20))
    time.sleep(2)
    tell(event="alive")
    """
    [seen] = await events_of(python_cell(program, tmp_path / "run", limits=Limits(memory_bytes=256 * MIB)))
    assert seen["event"] == "alive"


async def test_what_forked_processes_share_is_counted_once(tmp_path: Path) -> None:
    program = """
    held = bytearray(b"x" * (100 << 20))
    for _ in range(5):
        if os.fork() == 0:
            time.sleep(60)
    time.sleep(2)
    tell(event="alive")
    """
    [seen] = await events_of(python_cell(program, tmp_path / "run", limits=Limits(memory_bytes=256 * MIB)))
    assert seen["event"] == "alive"


async def test_a_worker_writes_nothing_of_the_machine(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    program = """
    import stat
    (Path("/tmp") / "own").write_text("x")
    tell(
        file=attempt(lambda: Path("/run/edgellm/x").write_text("x")),
        link=attempt(lambda: os.symlink("/etc", "/run/edgellm/link")),
        pipe=attempt(lambda: os.mkfifo("/run/edgellm/pipe")),
        device=attempt(lambda: os.mknod("/tmp/mem", stat.S_IFCHR | 0o666, os.makedev(1, 1))),
        gone=attempt(lambda: os.unlink("/run/edgellm/given")),
        mode=attempt(lambda: os.chmod("/run/edgellm/given", 0o777)),
        given=Path("/run/edgellm/given").read_text(),
        devices=sorted(str(path) for path in Path("/dev").rglob("*") if path.is_block_device()),
    )
    """
    spec = python_cell(program, runtime, writes_runtime=False)
    (runtime / "given").write_text("given")
    [seen] = await events_of(spec)
    assert {seen[name] for name in ("file", "link", "pipe", "gone", "mode")} == {"OSError"}
    assert seen["device"] == "PermissionError"
    assert (seen["given"], seen["devices"]) == ("given", [])
    assert [path.name for path in runtime.iterdir()] == ["given"]


@pytest.mark.parametrize(
    "filling",
    [
        "open('/run/edgellm/big', 'wb').write(b'x' * (80 << 20))",
        "[open(f'/run/edgellm/{n}', 'wb') for n in range(100)]",
        "os.makedirs('/run/edgellm/' + 'a/' * 100)",
    ],
    ids=["bytes", "files", "depth"],
)
async def test_a_head_that_fills_its_runtime_directory_ends(tmp_path: Path, filling: str) -> None:
    program = f"tell(event='up')\n{filling}\ntime.sleep(60)"
    async with open_cell(python_cell(program, tmp_path / "run")) as cell:
        await event_named(cell, "up")
        assert "filled the directory" in await ended_by_its_limit(cell)


async def test_signals_stay_in_the_cell(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as outside:
        try:
            [seen] = await events_of(
                python_cell(
                    """
                    import signal
                    child = subprocess.Popen(["sleep", "60"])
                    def reach(pid):
                        os.kill(pid, signal.SIGKILL)
                    outside = [attempt(lambda pid=pid: reach(pid)) for pid in map(int, sys.argv[1:])]
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    reach(child.pid)
                    tell(outside=outside, child=child.wait())
                    """,
                    tmp_path / "run",
                    str(outside.pid),
                    str(os.getpid()),
                )
            )
            assert outside.poll() is None
        finally:
            outside.kill()
    assert set(seen["outside"]) == {"ProcessLookupError"}
    assert seen["child"] == -9


@pytest.mark.parametrize("where", ["stderr", "stdout", "events"])
async def test_endless_output(tmp_path: Path, where: str) -> None:
    """Costs the node neither memory nor much of a core, and its other work goes on."""
    program = {
        "stderr": "while True: sys.stderr.write('x' * 65536)",
        "stdout": "while True: sys.stdout.write('x' * 65536)",
        "events": "line = json.dumps({'event': 'e', 'x': [[]] * 12_000})\nwhile True: print(line)",
    }[where]
    this = psutil.Process()
    async with open_cell(python_cell("tell(event='up')\n" + program, tmp_path / "run")) as cell:
        await event_named(cell, "up")
        used_s, held = sum(this.cpu_times()[:2]), this.memory_info().rss
        begun = latest = time.monotonic()
        longest = 0.0
        while latest - begun < 2.5:
            await trio.sleep(0.01)
            now = time.monotonic()
            longest, latest = max(longest, now - latest), now
        assert sum(this.cpu_times()[:2]) - used_s < 0.6 * (latest - begun)
        assert this.memory_info().rss - held < 150 * MIB
        assert longest < 1.0
        with trio.fail_after(5):
            await cell.kill()
    assert len(cell.stderr_tail()) <= 64 << 10
