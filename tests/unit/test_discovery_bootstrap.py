"""Which peers to join through: said, from the environment, remembered, in this order."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.discovery.bootstrap import MAX_REMEMBERED, bootstrap_peers, remember, require_bootstrap
from edgellm.errors import UsageError

SAID, SET, KEPT = (f"/ip4/10.0.0.{index}/tcp/4001/p2p/12D3KooPeer{index}" for index in (1, 2, 3))


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGELLM_BOOTSTRAP", raising=False)


def test_what_is_said_now_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bootstrap_peers((), tmp_path) == ()
    remember((KEPT,), tmp_path)
    assert bootstrap_peers((), tmp_path) == (KEPT,)
    monkeypatch.setenv("EDGELLM_BOOTSTRAP", f" {SET}, ,{SET}")
    assert bootstrap_peers((), tmp_path) == (SET,)
    assert bootstrap_peers((SAID, SAID), tmp_path) == (SAID,)


@pytest.mark.parametrize("address", ["10.0.0.1:4001", "/ip4/10.0.0.1/tcp/4001", "alice", ""])
def test_an_address_without_a_peer_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no address of a peer"):
        bootstrap_peers((address,), tmp_path)


def test_nobody_is_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no peer of the swarm is known") as caught:
        require_bootstrap((), tmp_path, mdns=False)
    assert "--mdns" in caught.value.remedy
    assert require_bootstrap((), tmp_path, mdns=True) == ()


def test_memory_is_bounded(tmp_path: Path) -> None:
    many = [f"/ip4/10.0.1.{index}/tcp/1/p2p/Peer{index}" for index in range(40)]
    remember(many, tmp_path)
    assert bootstrap_peers((), tmp_path) == tuple(many[:MAX_REMEMBERED])


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"half an addr\n/ip4/10.0"])
def test_a_damaged_memory_is_no_memory(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bootstrap").write_bytes(content)
    assert bootstrap_peers((), tmp_path) == ()
