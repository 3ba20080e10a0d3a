"""What cannot work is said in one line with the cause and one with the remedy, before anything is brought up."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.lan import Lan
from tests.system.machine import Machine
from tests.system.swarm import TINY, Swarm, error_of

NOBODY = "12D3KooWJnLmUSaVvGzsDDFY4vsWnxVK4nWcFnuBfVbw2Gc9JzGs"


@pytest.fixture(scope="module")
def swarm(module_lan: Lan, tmp_path_factory: pytest.TempPathFactory) -> Swarm:
    """alice holds the model, bob a changed one of the same name; eve and frank lend too little for another."""
    swarm = Swarm(module_lan)
    models = tmp_path_factory.mktemp("models")
    changed, vast = models / "tiny", models / "vast"
    shutil.copytree(TINY, changed)
    shutil.copytree(TINY, vast)
    change_one_byte(changed / "model.safetensors")
    hosts = [
        swarm.start_host(swarm.machine("alice")),
        swarm.start_host(swarm.machine("bob"), model=changed),
        swarm.start_host(swarm.machine("eve"), model=vast, memory="300MiB"),
        swarm.start_host(swarm.machine("frank"), model=vast, memory="200MiB"),
    ]
    for host in hosts:
        host.wait_ready()
    return swarm


def change_one_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def refused(
    machine: Machine, argv: list[str], *, input: str = "", within_s: float = 20.0
) -> tuple[str, str, str]:
    """Error, remedy and all of stderr of a command that must fail before it has leased anything."""
    done = machine.run(argv, input=input, timeout_s=within_s)
    assert done.stdout == ""
    assert "leased" not in done.stderr
    return (*error_of(done), done.stderr)


def test_a_model_that_nobody_hosts(swarm: Swarm) -> None:
    error, remedy, _ = refused(swarm.requester, swarm.ask("hello", model="llama-unheard-of"))
    assert error == "nobody hosts 'llama-unheard-of' now"
    assert remedy.startswith("the swarm offers: tiny, vast")


def test_a_model_too_big_for_all_hosts_together(swarm: Swarm) -> None:
    for options, lent in ((), "the host that can hold most of it"), (("--pp", "2"), "in 500 MiB of memory"):
        error, remedy, _ = refused(swarm.requester, swarm.ask("hello", *options, model="vast"))
        assert error.startswith("vast is too big: it needs ")
        assert lent in error
        assert re.search(r"; [\d.]+ [MG]iB is missing$", error)
        assert "lend more memory" in remedy


def test_two_versions_under_one_name_share_no_cluster(swarm: Swarm) -> None:
    error, _, _ = refused(swarm.requester, swarm.ask("hello", "--pp", "2"))
    assert "hosts offer 2 different versions of tiny, which cannot share a cluster" in error
    assert "alice" in error
    assert "bob" in error


def test_more_hosts_than_there_are(swarm: Swarm) -> None:
    error, remedy, _ = refused(swarm.requester, swarm.ask("hello", "--pp", "3", model="vast"))
    assert "--pp 3 needs 3 hosts; 2 offer vast" in error
    assert "lower --pp to 2" in remedy


@pytest.mark.parametrize("verb", ["ask", "host", "peers"])
def test_no_bootstrap_peer_answers(swarm: Swarm, verb: str) -> None:
    address = f"/ip4/10.77.0.99/tcp/4001/p2p/{NOBODY}"
    words = {
        "ask": ["hello", "--model", "tiny"],
        "host": ["--allow-anyone", "--model", str(TINY)],
        "peers": [],
    }[verb]
    error, remedy, _ = refused(
        swarm.requester, ["edgellm", verb, *words, "--bootstrap", address], within_s=40
    )
    assert error.startswith(f"no bootstrap peer answers: {address}")
    assert "check the addresses" in remedy


def test_no_bootstrap_peer_is_known(swarm: Swarm, tmp_path: Path) -> None:
    argv = ["env", f"EDGELLM_HOME={tmp_path}", "edgellm", "ask", "hello", "--model", "tiny"]
    error, remedy, _ = refused(swarm.requester, argv)
    assert error == "no peer of the swarm is known yet"
    assert "--bootstrap" in remedy


def test_a_prompt_longer_than_the_context(swarm: Swarm) -> None:
    begun = time.monotonic()
    error, remedy, stderr = refused(
        swarm.requester, swarm.command("ask", "--model", "tiny"), input="word " * 5000
    )
    assert "the context of tiny only 2048" in error
    assert "shorten the prompt" in remedy
    assert "lease" not in stderr
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(swarm: Swarm, prompt: str) -> None:
    error, remedy, _ = refused(swarm.requester, swarm.ask(prompt))
    assert error == "the prompt is empty"
    assert "say something" in remedy
    error, _, _ = refused(swarm.requester, swarm.command("ask", "--model", "tiny"), input="\n")
    assert error == "the prompt is empty"


@pytest.mark.parametrize(
    "words", ["ask --nonsense", "ask hi --model tiny --max-tokens x", "host", "frobnicate"]
)
def test_a_command_that_is_none(swarm: Swarm, words: str) -> None:
    error, remedy, _ = refused(swarm.requester, ["edgellm", *words.split()])
    assert error
    assert re.fullmatch(r"see `edgellm( ask| host)? --help`", remedy)


def test_a_second_host_on_the_same_identity(swarm: Swarm) -> None:
    alice = swarm.lan.machines[2]
    argv = swarm.command("host", "--model", str(TINY), "--listen", "/ip4/0.0.0.0/tcp/4002")
    error, remedy, _ = refused(alice, argv)
    assert "identity.key is in use by process" in error
    assert "stop that process" in remedy


def test_a_port_that_is_taken(swarm: Swarm, tmp_path: Path) -> None:
    alice = swarm.lan.machines[2]
    argv = ["env", f"EDGELLM_HOME={tmp_path}", *swarm.command("host", "--model", str(TINY))]
    error, remedy, _ = refused(alice, argv, within_s=40)
    assert "4001" in error
    assert "taken" in error or "in use" in error
    assert remedy


@pytest.fixture
def full_disk(swarm: Swarm) -> Iterator[Path]:
    """A file system of the requester without a free byte, with nothing of the product on it."""
    carol = swarm.requester
    place = carol.home / "disk"
    carol.run(["sh", "-c", f"mkdir {place} && mount -t tmpfs -o size=64k tmpfs {place}"]).check()
    carol.run(["sh", "-c", f"cat /dev/zero > {place}/filling 2>/dev/null; ! echo x > {place}/more"]).check()
    yield place
    carol.run(["sh", "-c", f"umount {place} && rmdir {place}"]).check()


@pytest.mark.parametrize("verb", ["ask", "host", "session open", "bootstrap"])
def test_a_full_disk(swarm: Swarm, full_disk: Path, verb: str) -> None:
    words = {"ask": ["hello", "--model", "tiny"], "host": ["--model", str(TINY)], "bootstrap": []}
    argv = swarm.command(verb, *words.get(verb, ["--model", "tiny"]))
    error, remedy, _ = refused(swarm.requester, ["env", f"EDGELLM_HOME={full_disk}/h", *argv])
    assert "full" in error or "No space left" in error
    assert "space" in remedy


def test_no_user_namespaces(swarm: Swarm) -> None:
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    inside = ["unshare", "--user", "--map-root-user", "sh", "-euc", script, "--"]
    argv = swarm.command("host", "--model", str(TINY))
    error, remedy, _ = refused(swarm.requester, [*inside, *argv])
    assert "namespace" in error
    assert "sysctl user.max_user_namespaces=" in remedy


def test_no_bubblewrap(swarm: Swarm, tmp_path: Path) -> None:
    carol = swarm.requester
    for program in ("python3", "env", "nft", "ip", "lscpu"):
        if (found := shutil.which(program)) is not None:
            (tmp_path / program).symlink_to(found)
    edgellm = shutil.which("edgellm", path=carol.environment["PATH"])
    assert edgellm is not None
    argv = [edgellm, *swarm.command("host", "--model", str(TINY))[1:]]
    error, remedy, _ = refused(carol, ["env", f"PATH={tmp_path}", *argv])
    assert error == "bubblewrap is not installed"
    assert remedy == "apt install bubblewrap"


def test_ctrl_c_ends_a_host_and_its_offer(swarm: Swarm) -> None:
    dave = swarm.start_host(swarm.machine("dave")).wait_ready()
    assert "dave" in swarm.peers()
    done = dave.process.stop()
    assert done.returncode == 0
    assert done.stderr.rstrip().endswith("stopped: nothing is lent any more")
    assert "dave" not in swarm.peers()
    error, _, _ = refused(swarm.requester, swarm.ask("hello", "--peers", "dave"))
    assert "dave" in error


def test_ctrl_c_before_a_host_is_up_leaves_nothing(swarm: Swarm) -> None:
    grace = swarm.start_host(swarm.machine("grace"))
    grace.process.wait_for("measuring|reading|checking")
    grace.process.stop()
    assert "Traceback" not in grace.process.stderr
    assert "grace" not in swarm.peers()
