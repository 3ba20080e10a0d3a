"""What is generated and committed is what its sources give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITH_SERVICES = ("backend", "blocks", "session")


def test_wire_is_what_proto_gives(tmp_path: Path) -> None:
    names = sorted(path.stem for path in (ROOT / "proto").glob("*.proto"))
    sources = [f"edgellm/wire/{name}.proto" for name in names]
    services = [f"edgellm/wire/{name}.proto" for name in WITH_SERVICES]
    compiler = [sys.executable, "-m", "grpc_tools.protoc", f"-Iedgellm/wire={ROOT / 'proto'}"]
    subprocess.run([*compiler, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", *sources], check=True)
    subprocess.run([*compiler, f"--grpc_python_out={tmp_path}", *services], check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "edgellm" / "wire").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "edgellm" / "wire").glob("*_pb2*")}
    assert sorted(made) == sorted(committed), "run `make proto`"
    assert [name for name in made if made[name] != committed[name]] == [], "run `make proto`"
