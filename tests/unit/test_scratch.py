"""Directories of running members: they go with their owner, and those of dead owners are swept."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.cluster.scratch import scratch_directory, sweep
from edgellm.cluster.sockets import keep_socket
from edgellm.errors import CellError

OWNER = """
import sys, time
from pathlib import Path
from edgellm.cluster.scratch import scratch_directory
with scratch_directory(Path(sys.argv[1])) as directory:
    (directory / "engine.sock").touch()
    print(directory.name, flush=True)
    time.sleep(60)
"""


def test_a_directory_goes_with_its_context(tmp_path: Path) -> None:
    with scratch_directory(tmp_path) as directory:
        (directory / "file").write_text("x")
        assert directory.stat().st_mode & 0o777 == 0o700
        sweep(tmp_path)
        assert (directory / "file").exists(), "its owner lives"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_owner_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    name = owner.stdout.readline().strip()
    sweep(tmp_path)
    assert (tmp_path / name / "engine.sock").exists()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_whatever_a_cell_has_put_there_goes(tmp_path: Path) -> None:
    """Deeper than paths and recursion reach, closed, linked to what is another's, and named as one would name it here."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    runtime = tmp_path / "run"
    runtime.mkdir()
    with scratch_directory(runtime) as directory:
        (directory / "link").symlink_to(outside)
        (directory / "loop").symlink_to(directory)
        os.mkfifo(directory / "pipe")
        closed = directory / "closed"
        (closed / "inner").mkdir(parents=True)
        (closed / "inner" / "file").write_text("x")
        (closed / "inner").chmod(0)
        closed.chmod(0)
        here = os.open(directory, os.O_RDONLY)
        for _ in range(1200):
            os.mkdir("a" * 200, dir_fd=here)
            deeper = os.open("a" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = deeper
        os.close(here)
    assert list(runtime.iterdir()) == []
    assert (outside / "precious").exists()


def test_a_cells_socket_is_its_own_or_refused(tmp_path: Path) -> None:
    shown, other = tmp_path / "c", tmp_path / "other.sock"
    shown.mkdir()
    with socket.socket(socket.AF_UNIX) as private, socket.socket(socket.AF_UNIX) as served:
        private.bind(str(other))
        private.listen()
        served.bind(str(shown / "engine.sock"))
        served.listen()
        keep_socket(shown / "engine.sock", tmp_path / "engine.sock")
        keep_socket(shown / "engine.sock", tmp_path / "engine.sock")
        # Once kept, whatever the cell puts in its place is not what the node connects to.
        (shown / "engine.sock").unlink()
        (shown / "engine.sock").symlink_to(other)
        with pytest.raises(CellError, match="something else"):
            keep_socket(shown / "engine.sock", tmp_path / "engine.sock")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "engine.sock"))
            served.accept()[0].close()
        (shown / "file.sock").write_text("x")
        with pytest.raises(CellError, match="something else"):
            keep_socket(shown / "file.sock", tmp_path / "file.sock")
        with pytest.raises(CellError, match="No such file"):
            keep_socket(shown / "none.sock", tmp_path / "none.sock")
        (shown / "engine.sock").unlink()
        with socket.socket(socket.AF_UNIX) as anew:
            anew.bind(str(shown / "engine.sock"))
            anew.listen()
            keep_socket(shown / "engine.sock", tmp_path / "engine.sock")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "engine.sock"))
                anew.accept()[0].close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "engine.sock", "other.sock"]
