"""The doctor on this machine: a real sandbox with a real network, real ports and files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.doctor.check import Check, Examination
from edgellm.doctor.doctor import run_doctor
from edgellm.doctor.system import LocalSystem
from edgellm.p2p.identity import load_or_create_identity

PEER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    return tmp_path


def examined(examination: Examination) -> dict[str, Check]:
    return {check.name: check for check in run_doctor(examination)}


def test_this_machine_can_run_cells_and_an_engine(home: Path) -> None:
    checks = examined(Examination(listen=("/ip4/127.0.0.1/tcp/0",)))
    failed = {check.name: check.detail for check in checks.values() if check.status == "fail"}
    assert not failed
    assert checks["cell"].detail.endswith("a connection redirected")
    assert "torch" in checks["engine vllm"].detail
    assert not (home / "state" / "identity.key").exists()


def test_ports_and_peers_are_really_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"
        open_ = examined(Examination(listen=(address,), bootstrap=(f"{address}/p2p/{PEER}",)))
    closed = examined(Examination(listen=(address,), bootstrap=(f"{address}/p2p/{PEER}",)))
    assert (open_["port"].status, open_["reachability"].status) == ("fail", "ok")
    assert (closed["port"].status, closed["reachability"].status) == ("ok", "fail")
    assert "refused" in closed["reachability"].detail


def test_an_identity_that_others_may_read_is_a_cross(home: Path) -> None:
    identity = load_or_create_identity(home / "state" / "identity.key")
    assert identity.peer in examined(Examination())["identity"].detail
    (home / "state" / "identity.key").chmod(0o644)
    assert "chmod 600" in examined(Examination())["identity"].remedy


def test_the_border_says_why_not(tmp_path: Path) -> None:
    system = LocalSystem()
    assert system.run(["/nonexistent"]).returncode == 127
    assert system.run(["sleep", "9"], timeout_s=0.1).returncode == 124
    assert system.open_error("/dev/null") == ""
    assert "No such file" in system.open_error(str(tmp_path / "none"))
    assert system.write_error(str(tmp_path / "not" / "yet")) == ""
    assert system.write_error("/proc/sys") != ""
    assert system.read(str(tmp_path)) is None


def test_the_command_s_exit_code_is_the_verdict(home: Path) -> None:
    doctor = [sys.executable, "-m", "edgellm", "doctor", "--listen", "/ip4/127.0.0.1/tcp/0"]
    well = subprocess.run([*doctor, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert (well.returncode, json.loads(well.stdout)["ok"]) == (0, True), well.stderr
    without = os.environ | {"EDGELLM_HOME": "/proc/edgellm"}
    ill = subprocess.run(doctor, capture_output=True, text=True, timeout=60, check=False, env=without)
    assert ill.returncode == 1
    assert "✗ directories" in ill.stdout
    assert "EDGELLM_HOME" in ill.stdout
