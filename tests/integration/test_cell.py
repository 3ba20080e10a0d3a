"""Real cells, and in them what a hostile requester could run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trio

from edgellm.cells.cell import default_environment, open_cell
from edgellm.cells.spec import CellSpec, Mount
from edgellm.errors import CellError
from tests.integration.cells import event_named, events_of, python_cell

ISOLATIONS = ("bwrap", "none")


@pytest.fixture
def secret() -> Iterator[Path]:
    path = Path.home() / f".edgellm-test-secret-{os.getpid()}"
    path.write_text("secret")
    yield path
    path.unlink()


async def test_sees_only_what_it_was_given(tmp_path: Path, secret: Path) -> None:
    model = tmp_path / "weights"
    model.mkdir()
    (model / "config.json").write_text("{}")
    extra = tmp_path / "extra"
    extra.write_text("given")
    [seen] = await events_of(
        python_cell(
            """
            secret, home = sys.argv[1:]
            tell(
                secret=attempt(lambda: Path(secret).read_text()),
                home=sorted(os.listdir(home)) if Path(home).exists() else [],
                etc=sorted(os.listdir("/etc")),
                users=Path("/etc/passwd").read_text().count("\\n"),
                root=sorted(os.listdir("/")),
                model=os.listdir("/model"),
                given=Path("/given").read_text(),
                write_model=attempt(lambda: Path("/model/config.json").write_text("bad")),
                write_system=attempt(lambda: Path("/usr/bin/evil").write_text("bad")),
                write_root=attempt(lambda: Path("/evil").write_text("bad")),
                write_python=attempt(lambda: Path(sys.prefix, "evil").write_text("bad")),
                write_runtime=Path("/run/edgellm/out").write_text("good"),
                write_tmp=Path("/tmp/out").write_text("good"),
                devices=sorted(os.listdir("/dev")),
                environment=sorted(os.environ),
            )
            """,
            tmp_path / "run",
            str(secret),
            str(Path.home()),
            model_directory=model,
            read_only=(Mount(extra, Path("/given")),),
        )
    )
    assert seen["secret"] == "FileNotFoundError"
    # At most the way to a Python installation that lies in the home directory.
    assert set(seen["home"]) <= {
        path.relative_to(Path.home()).parts[0]
        for path in (Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2])
        if path.is_relative_to(Path.home())
    }
    assert set(seen["etc"]) <= {"alternatives", "group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd"}
    assert seen["users"] == 2
    assert seen["model"] == ["config.json"]
    assert seen["given"] == "given"
    for name in ("write_model", "write_system", "write_root", "write_python"):
        assert seen[name] == "OSError", name
    assert (tmp_path / "run" / "out").read_text() == "good"
    assert not Path("/tmp/out").exists()
    assert not {"vda", "sda", "mem", "kmsg", "kvm", "vsock"} & set(seen["devices"])
    assert set(seen["environment"]) <= {*default_environment(), "PWD", "LC_CTYPE"}


async def test_sees_no_other_process(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "3600"]) as outside:
        try:
            [seen] = await events_of(
                python_cell(
                    """
                    tell(
                        commands=[
                            Path(f"/proc/{pid}/cmdline").read_text().split("\\0")[0]
                            for pid in os.listdir("/proc") if pid.isdigit()
                        ],
                        hostname=socket.gethostname(),
                        kill=attempt(lambda: os.kill(int(sys.argv[1]), 9)),
                    )
                    """,
                    tmp_path / "run",
                    str(outside.pid),
                )
            )
            assert outside.poll() is None
        finally:
            outside.kill()
    names = {Path(command).name for command in seen["commands"]}
    assert names <= {"bwrap", Path(sys.executable).name}
    assert len(seen["commands"]) == 3
    assert seen["kill"] == "ProcessLookupError"
    assert seen["hostname"] == "cell"


async def test_reaches_no_network(tmp_path: Path) -> None:
    """Neither services on the host's loopback, nor its addresses, nor the hypervisor, nor another cell."""
    abstract = f"\0edgellm-test-{os.getpid()}"
    with (
        socket.create_server(("0.0.0.0", 0)) as service,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(abstract)
        local.listen()
        port = service.getsockname()[1]
        addresses = [
            entry.address
            for entries in psutil.net_if_addrs().values()
            for entry in entries
            if entry.family == socket.AF_INET
        ]
        other = python_cell(
            "server = socket.create_server(('0.0.0.0', 7000)); tell(event='up'); time.sleep(60)",
            tmp_path / "other",
            address="10.88.7.3",
        )
        async with open_cell(other) as other_cell:
            await event_named(other_cell, "up")
            [seen] = await events_of(
                python_cell(
                    """
                    port, abstract, *addresses = sys.argv[1:]
                    def reach(address, port):
                        with socket.create_connection((address, int(port)), timeout=3) as connection:
                            connection.sendall(b"x")
                            return connection.recv(1)
                    def local():
                        with socket.socket(socket.AF_UNIX) as connection:
                            connection.connect("\\0" + abstract)
                    tell(
                        hosts=[attempt(lambda: reach(address, port)) for address in addresses],
                        outside=attempt(lambda: reach("1.1.1.1", 53)),
                        other_cell=attempt(lambda: reach("10.88.7.3", 7000)),
                        stranger=attempt(lambda: reach("10.88.9.1", 7000)),
                        abstract=attempt(local),
                        vsock=attempt(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)),
                        packet=attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
                        raw=attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)),
                        loaded=attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)),
                        filters=attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)),
                        interfaces=sorted(name for _, name in socket.if_nameindex()),
                    )
                    """,
                    tmp_path / "run",
                    str(port),
                    abstract[1:],
                    *addresses,
                )
            )
    assert "127.0.0.1" in addresses
    assert set(seen["hosts"]) <= {"OSError", "ConnectionRefusedError"}
    assert seen["outside"] == "OSError"
    assert seen["other_cell"] == "ConnectionResetError"
    assert seen["stranger"] == "OSError"
    assert seen["abstract"] == "ConnectionRefusedError"
    assert seen["vsock"] == seen["packet"] == "OSError"
    assert seen["raw"] == "PermissionError"
    assert seen["loaded"] == seen["filters"] == "OSError"
    assert seen["interfaces"] == ["edge0", "lo"]


@pytest.mark.parametrize("fabric", ["overlay", "direct"])
async def test_has_no_privilege_and_gets_none(tmp_path: Path, fabric: str) -> None:
    [seen] = await events_of(
        python_cell(
            """
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            NEWUSER, NEWNET = 0x10000000, 0x40000000
            def errno(result):
                return ctypes.get_errno() if result < 0 else 0
            def run(*command):
                return subprocess.run(command, capture_output=True).returncode
            lines = Path("/proc/self/status").read_text().splitlines()
            status = dict(line.split(":", 1) for line in lines)
            after_exec = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
            tell(
                capabilities=[status["Cap" + kind].strip() for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")],
                after_exec=[line.split()[1] for line in after_exec.splitlines() if line.startswith("Cap")],
                no_new_privs=status["NoNewPrivs"].strip(),
                nft=run("nft", "flush", "ruleset"),
                route=run("ip", "route", "add", "default", "dev", "lo"),
                link=run("ip", "link", "set", "lo", "down"),
                address=run("ip", "addr", "add", "10.88.7.9/24", "dev", "lo"),
                unshare_user=errno(libc.unshare(NEWUSER | NEWNET)),
                unshare_net=errno(libc.unshare(NEWNET)),
                bwrap=run("bwrap", "--ro-bind", "/", "/", "true"),
                mount=errno(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
                sysctl=attempt(lambda: Path("/proc/sys/kernel/core_pattern").write_text("core")),
                keyctl=errno(libc.syscall(250, 0, -3, 1)),
                io_uring=errno(libc.syscall(425, 8, 0)),
                threads=[thread.start() or thread.join() for thread in [threading.Thread(target=int)]],
            )
            """,
            tmp_path / "run",
            fabric=fabric,
        )
    )
    assert set(seen["capabilities"]) == {"0" * 16}
    assert set(seen["after_exec"]) == {"0" * 16}
    assert seen["no_new_privs"] == "1"
    for name in ("nft", "route", "link", "address", "bwrap"):
        assert seen[name] != 0, name
    assert seen["unshare_user"] == 1
    assert seen["unshare_net"] == 1
    assert seen["mount"] == 1
    assert seen["sysctl"] in ("OSError", "PermissionError")
    assert seen["keyctl"] == 1
    assert seen["io_uring"] == 38


async def test_direct_fabric_has_the_hosts_network_and_nothing_else(tmp_path: Path, secret: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:
        [seen] = await events_of(
            python_cell(
                """
                port, secret = sys.argv[1:]
                socket.create_connection(("127.0.0.1", int(port))).close()
                tell(secret=attempt(lambda: Path(secret).read_text()), pids=len(os.listdir("/proc")))
                """,
                tmp_path / "run",
                str(service.getsockname()[1]),
                str(secret),
                fabric="direct",
                address=None,
            )
        )
    assert seen["secret"] == "FileNotFoundError"


async def test_memory_behind_tmp_and_shm_is_limited(tmp_path: Path) -> None:
    [seen] = await events_of(
        python_cell(
            """
            def fill(path):
                with open(path, "wb") as file:
                    for _ in range(64):
                        file.write(bytes(1 << 20))
            tell(**{path[1:4]: attempt(lambda: fill(path)) for path in ("/tmp/x", "/dev/shm/x", "/dev/x")})
            """,
            tmp_path / "run",
            tmp_bytes=8 << 20,
            shm_bytes=8 << 20,
        )
    )
    assert set(seen.values()) == {"OSError"}


STUBBORN = """
import signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
marker = sys.argv[1]
# A daemon of its own session, orphaned, and an ordinary child: both as hard to find as a cell can make them.
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", marker])
    os._exit(0)
subprocess.Popen(["sleep", marker])
while subprocess.run(["pgrep", "-cf", f"^sleep {marker}"], capture_output=True, text=True).stdout.strip() != "2":
    time.sleep(0.02)
tell(event="up")
time.sleep(3600)
"""


def running(marker: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] == ["sleep", marker]:
            found.append(process.pid)
    return found


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_kill_leaves_nothing(tmp_path: Path, isolation: str) -> None:
    marker = str(100_000 + os.getpid())
    async with open_cell(python_cell(STUBBORN, tmp_path / "run", marker, isolation=isolation)) as cell:
        await event_named(cell, "up")
        assert len(running(marker)) == 2
        with trio.fail_after(10):
            await cell.kill()
        assert running(marker) == []
        assert await cell.wait() == (137 if isolation == "bwrap" else 143)
        with pytest.raises(trio.EndOfChannel):
            await cell.events.receive()


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_leaving_the_context_leaves_nothing(tmp_path: Path, isolation: str) -> None:
    marker = str(200_000 + os.getpid())
    async with open_cell(python_cell(STUBBORN, tmp_path / "run", marker, isolation=isolation)) as cell:
        await event_named(cell, "up")
    assert running(marker) == []


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_death_of_the_node_leaves_nothing(tmp_path: Path, isolation: str) -> None:
    marker = str(300_000 + os.getpid())
    node = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.cell_owner", str(tmp_path / "run"), isolation, marker],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert node.stdout is not None
    line = await trio.to_thread.run_sync(node.stdout.readline)
    assert line == "up\n"
    assert len(running(marker)) == 2
    node.kill()
    node.wait()
    node.stdout.close()
    with trio.fail_after(5):
        while running(marker):
            await trio.sleep(0.01)


async def test_outlives_idle_worker_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The death signal belongs to the thread that started the cell, and trio's worker threads end when they have been idle."""
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 1)
    monkeypatch.setattr("edgellm.cells.cell.LOOK_S", 60)  # looking at a cell is done in such a thread
    async with open_cell(python_cell("tell(event='up'); time.sleep(3600)", tmp_path / "run")) as cell:
        await event_named(cell, "up")
        worker = await trio.to_thread.run_sync(threading.current_thread)
        with trio.fail_after(15):
            while worker.is_alive():
                await trio.sleep(0.1)
        with trio.move_on_after(1):
            pytest.fail(f"the cell ended with {await cell.wait()}")


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(("ending", "status"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
async def test_exit_status(tmp_path: Path, isolation: str, ending: str, status: int) -> None:
    async with open_cell(python_cell(ending, tmp_path / "run", isolation=isolation)) as cell:
        with trio.fail_after(10):
            assert await cell.wait() == status


async def test_hostile_output_is_bounded(tmp_path: Path) -> None:
    async with open_cell(
        python_cell(
            """
            tell(event="first")
            print("not json")
            print("[1, 2]")
            print("{" * 100_000)
            sys.stdout.write("x" * (8 << 20) + "\\n")
            sys.stderr.write("y" * (8 << 20) + "the end")
            sys.stdout.flush()
            tell(event="last")
            """,
            tmp_path / "run",
        )
    ) as cell:
        events = [event async for event in cell.events]
        await cell.wait()
        assert [event["event"] for event in events] == ["first", "last"]
        assert len(cell.stderr_tail()) <= 64 << 10
        assert "the end" in cell.stderr_tail()


async def test_engine_cannot_flood_events(tmp_path: Path) -> None:
    """Who does not read the events makes the engine wait; the node holds a bounded number."""
    async with open_cell(
        python_cell("while True: tell(event='flood', x='x' * 1000)", tmp_path / "run")
    ) as cell:
        await trio.sleep(1)
        assert cell.events.statistics().current_buffer_used <= 256
        with trio.fail_after(5):
            await cell.kill()


async def test_starts_fast(tmp_path: Path) -> None:
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        async with open_cell(python_cell("time.sleep(60)", tmp_path / "run")):
            times.append(time.perf_counter() - begun)
    assert min(times) < 0.5


async def test_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = python_cell("", tmp_path / "run")
    with pytest.raises(CellError, match="did not start"):
        async with open_cell(
            CellSpec(argv=("/no/such/program",), runtime_directory=tmp_path / "run", address="10.88.7.2")
        ):
            pass
    with pytest.raises(CellError, match="does not exist"):
        async with open_cell(python_cell("", tmp_path / "run", model_directory=tmp_path / "no")):
            pass
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CellError, match="bubblewrap is not installed") as caught:
        async with open_cell(spec):
            pass
    assert caught.value.remedy == "apt install bubblewrap"


async def test_no_user_namespaces(tmp_path: Path) -> None:
    """As on a machine that forbids them: bwrap in a user namespace that may have no others."""
    program = (
        "import ctypes, pathlib, sys, trio\n"
        f"assert ctypes.CDLL(None).unshare({0x10000000}) == 0\n"
        "pathlib.Path('/proc/sys/user/max_user_namespaces').write_text('0')\n"
        "from tests.integration.cells import events_of, python_cell\n"
        "try:\n"
        f"    trio.run(events_of, python_cell('', pathlib.Path({str(tmp_path / 'run')!r})))\n"
        "except Exception as error:\n"
        "    print(error, '|', getattr(error, 'remedy', None))\n"
    )
    done = await trio.run_process([sys.executable, "-c", program], capture_stdout=True)
    said = done.stdout.decode()
    assert "refuses a user namespace" in said
    assert "sysctl user.max_user_namespaces=15000" in said
