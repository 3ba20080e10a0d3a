"""`edgellm kv ls|gc|pin|unpin` on a store that is open elsewhere or not there yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.disk import open_disk_store
from edgellm.cli import app
from edgellm.cli._errors import told
from edgellm.paths import default_paths


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    monkeypatch.setattr("edgellm.log.log_to", lambda: None)
    return tmp_path


def edgellm(*arguments: str) -> int:
    return told(lambda: app(list(arguments), standalone_mode=False))


def keep(*blocks: bytes) -> list[str]:
    async def put() -> list[str]:
        async with open_disk_store(default_paths().blocks, 1 << 20) as store:
            return [str(cid) for block in blocks for cid in await store.put([block])]

    return trio.run(put)


def test_blocks_are_listed_pinned_collected_and_let_go(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = keep(b"one", b"second")
    assert edgellm("kv", "pin", first) == 0
    assert edgellm("kv", "ls", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(entry["cid"], entry["size_bytes"], entry["pinned"]) for entry in listed] == [
        (first, 3, True),
        (second, 6, False),
    ]
    assert edgellm("kv", "ls") == 0
    assert first in capsys.readouterr().out
    assert edgellm("kv", "gc", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"freed_bytes": 6}
    assert edgellm("kv", "unpin", first) == 0
    assert edgellm("kv", "gc") == 0
    assert "freed 3 B" in capsys.readouterr().err
    assert edgellm("kv", "ls", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_all_are_pinned_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    (here,) = keep(b"here")
    elsewhere = str(Cid.of(b"elsewhere"))
    assert edgellm("kv", "pin", here, elsewhere) == 1
    error, remedy = capsys.readouterr().err.splitlines()
    assert elsewhere in error
    assert "kv ls" in remedy
    assert edgellm("kv", "gc", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"freed_bytes": 4}


def test_what_is_no_cid_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert edgellm("kv", "pin", "zebra") == 2
    assert "not a CID" in capsys.readouterr().err


def test_a_machine_that_keeps_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert edgellm("kv", "ls") == 0
    assert "no block is kept here" in capsys.readouterr().err
