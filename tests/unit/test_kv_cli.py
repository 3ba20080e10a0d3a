"""What the command line tells about KV pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from edgellm.cli import app
from edgellm.cli._bringup import peer_name, reuse
from edgellm.cli._errors import told
from edgellm.cli._options import Fabric, KvScope, kv_scope
from edgellm.cli.ask import _kv_since
from edgellm.errors import UsageError
from edgellm.kv.index import HELD, open_index
from edgellm.paths import default_paths
from edgellm.wire import session_pb2

NAMES = {"12D3KooWalice": "alice"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    monkeypatch.setattr("edgellm.log.log_to", lambda: None)
    return tmp_path


def edgellm(*arguments: str) -> int:
    return told(lambda: app(list(arguments), standalone_mode=False))


def test_the_last_line_says_what_was_not_computed_and_who_helped() -> None:
    assert reuse(1900, 0, {}, NAMES) == ""
    assert reuse(1900, 1792, {}, NAMES) == " · 1792 of 1900 prompt tokens in the engine already"
    helped = {"12D3KooWfaraway": 256, "12D3KooWalice": 1536}
    assert (
        reuse(1900, 1792, helped, NAMES) == " · 1792 of 1900 prompt tokens from KV blocks of alice, …araway"
    )
    assert peer_name("12D3KooWalice", NAMES) == "alice"


def test_a_session_tells_what_was_used_since() -> None:
    before = session_pb2.Description(kv_holders=[session_pb2.KvHolder(peer="a", tokens=100)])
    after = session_pb2.Description(
        kv_holders=[
            session_pb2.KvHolder(peer="a", tokens=100),
            session_pb2.KvHolder(peer="b", tokens=256),
        ]
    )
    assert _kv_since(before, after) == {"b": 256}
    assert _kv_since(before, None) == {}


def test_what_is_shared_with_whom() -> None:
    assert kv_scope(False, KvScope.SESSION, Fabric.OVERLAY) is None
    assert kv_scope(True, KvScope.SWARM, Fabric.OVERLAY) == "swarm"
    assert kv_scope(None, KvScope.SESSION, Fabric.DIRECT) == "session"
    with pytest.raises(UsageError, match="plain network"):
        kv_scope(True, KvScope.SESSION, Fabric.DIRECT)


def test_stat_where_nothing_was_shared_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert edgellm("kv", "stat", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["held_records"] == report["figures"]["bytes_in"] == 0


def test_stat_tells_what_a_host_counted(capsys: pytest.CaptureFixture[str]) -> None:
    paths = default_paths()
    paths.kv.mkdir()

    async def count() -> None:
        with open_index(paths.kv / HELD) as index:
            await index.add_figures({"bytes_in": 5 << 20, "used_tokens": 1792, "seconds_saved": 1.25})

    trio.run(count)
    assert edgellm("kv", "stat", "--json") == 0
    assert json.loads(capsys.readouterr().out)["figures"]["used_tokens"] == 1792
    assert edgellm("kv", "stat", "--prometheus") == 0
    assert "edgellm_kv_seconds_saved_total 1.25\n" in capsys.readouterr().out
    assert edgellm("kv", "stat") == 0
    assert "5.00 MiB" in capsys.readouterr().err
