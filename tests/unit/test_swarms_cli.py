"""`edgellm swarm` on the machine that made one, and in which swarm a command works. No node runs."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from edgellm.cli import app
from edgellm.cli._errors import told
from edgellm.cli.swarm import parse_expiry
from edgellm.errors import MembershipError, UsageError
from edgellm.kv.scope import scope_secret
from edgellm.paths import Paths, default_paths
from edgellm.sessions.reuse import Asked, reusable
from edgellm.swarms.chosen import chosen_name, require_peers, swarm_called
from edgellm.swarms.invite import open_token, read
from edgellm.swarms.store import make_swarm, swarm_home, write_private
from edgellm.wire import session_pb2


@pytest.fixture(autouse=True)
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path))
    for name in ("EDGELLM_SWARM", "EDGELLM_BOOTSTRAP", "EDGELLM_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("edgellm.log.log_to", lambda: None)
    return default_paths()


def edgellm(*arguments: str) -> int:
    return told(lambda: app(["swarm", *arguments], standalone_mode=False))


def test_its_whole_life_on_the_makers_machine(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert edgellm("create", "lab", "--as", "alice") == 0
    assert edgellm("create", "lab") == 2
    assert "already" in capsys.readouterr().err
    # Where it is reached is known once a node has run, or when it is said.
    assert edgellm("invite") == 2
    assert "edgellm bootstrap --swarm lab" in capsys.readouterr().err
    words = ("--address", "/ip4/192.0.2.7/tcp/4001", "--role", "host", "--uses", "3", "--expires", "90m")
    assert edgellm("invite", *words) == 0
    out, err = capsys.readouterr()
    (token,) = out.splitlines()
    invite = open_token(read(token))
    assert (invite.name, invite.roles, invite.uses) == ("lab", {"host"}, 3)
    assert f"edgellm swarm revoke {invite.id}" in err

    assert edgellm("members") == 0
    out = capsys.readouterr().out
    assert "alice" in out
    assert f"{invite.id}  lend" in out
    assert edgellm("revoke", invite.id) == 0
    assert edgellm("members", "--json") == 0
    told_, shown = capsys.readouterr()
    assert json.loads(told_)["invites"][0]["is_revoked"]
    assert "nobody can join" in shown
    own = swarm_home(paths, "lab").certificate().subject
    assert edgellm("revoke", own) == 2
    assert edgellm("revoke", "12D3KooWnobody") == 2

    assert edgellm("list", "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["name"], entry["maker"], entry["state"]) == ("lab", True, "member")
    assert edgellm("leave") == 2
    assert "--yes" in capsys.readouterr().err
    assert edgellm("leave", "--yes") == 0
    assert edgellm("list") == 0
    assert "in no private swarm" in capsys.readouterr().err


def test_what_is_no_invite(capsys: pytest.CaptureFixture[str]) -> None:
    assert edgellm("join", "hello") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: that is no invite"
    assert second.startswith("try: ")


def test_keys_are_for_their_owner_alone(paths: Paths) -> None:
    old = os.umask(0)
    try:
        home = make_swarm(paths, "lab", "alice")
        home.keep_addresses(("/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW",))
        home.revoke(home.certificate().subject)
    finally:
        os.umask(old)
    for file in home.directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(home.directory.stat().st_mode) == 0o700
    (home.directory / "root.key").chmod(0o644)
    with pytest.raises(UsageError, match="read or written by others"):
        home.root()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["file"]
    assert path.read_bytes() == b"old"


def test_only_the_maker_has_the_book(paths: Paths) -> None:
    home = make_swarm(paths, "lab", "alice")
    (home.directory / "root.key").unlink()
    with pytest.raises(MembershipError, match="only the machine that made"):
        home.ledger()


def test_a_command_works_in_the_swarm_that_was_meant(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_name(None, paths) == ""
    make_swarm(paths, "lab", "alice")
    assert chosen_name(None, paths) == "lab"
    assert chosen_name("open", paths) == ""
    make_swarm(paths, "club", "alice")
    with pytest.raises(UsageError, match="several swarms: club, lab"):
        chosen_name(None, paths)
    monkeypatch.setenv("EDGELLM_SWARM", "club")
    assert chosen_name(None, paths) == "club"
    assert chosen_name("lab", paths) == "lab"
    monkeypatch.setenv("EDGELLM_SWARM", "open")
    assert chosen_name(None, paths) == ""
    with pytest.raises(UsageError, match="no swarm called 'gone'"):
        chosen_name("gone", paths)


def test_each_swarm_remembers_its_own_peers(paths: Paths) -> None:
    home = make_swarm(paths, "lab", "alice")
    (paths.state / "bootstrap").write_text("/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWOpen\n")
    with pytest.raises(UsageError, match="no peer of swarm lab"):
        require_peers((), home, paths, mdns=False)
    assert require_peers((), home, paths, mdns=True) == ()
    home.keep_addresses(("/ip4/192.0.2.2/tcp/4001/p2p/12D3KooWLab",))
    assert require_peers((), home, paths, mdns=False) == ("/ip4/192.0.2.2/tcp/4001/p2p/12D3KooWLab",)
    assert require_peers((), None, paths, mdns=False) == ("/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWOpen",)


def test_a_session_answers_only_for_its_own_swarm() -> None:
    session = session_pb2.Description(
        name="amber", model="tiny", state="ready", max_model_len=4096, network="overlay", isolation="bwrap"
    )
    asked = Asked("tiny", 64, "overlay", "bwrap")
    assert reusable(asked, [session]) == "amber"
    assert reusable(Asked("tiny", 64, "overlay", "bwrap", swarm="lab"), [session]) is None
    session.swarm = "lab"
    assert reusable(asked, [session]) is None
    assert reusable(Asked("tiny", 64, "overlay", "bwrap", swarm="lab"), [session]) == "amber"


def test_members_share_a_kv_scope(paths: Paths) -> None:
    make_swarm(paths, "lab", "alice")
    make_swarm(paths, "club", "alice")
    homes = [swarm_called(name, paths) for name in ("lab", "club", "lab")]
    lab, club, again = (scope_secret("swarm", paths, home.kv_secret() if home else None) for home in homes)
    assert lab == again
    assert lab != club
    with pytest.raises(UsageError, match="private swarm"):
        scope_secret("swarm", paths)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604800)])
def test_how_long_an_invite_lasts(text: str, seconds: float) -> None:
    assert parse_expiry(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "0d", "-1h", "7w", "400d", "1.5h"])
def test_what_is_no_time_for_an_invite(text: str) -> None:
    with pytest.raises(UsageError):
        parse_expiry(text)
