"""Directories of running members: they go with their owner, and those of dead owners are swept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgellm.cluster.scratch import scratch_directory, sweep

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
