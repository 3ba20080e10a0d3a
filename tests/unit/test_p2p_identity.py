import os
import signal
import subprocess
import sys

import pytest

from edgellm.errors import UsageError
from edgellm.p2p.identity import (
    Identity,
    exclusive_identity,
    load_or_create_identity,
    public_key_of_peer,
    verify,
)

HOLD = """
import sys, time
from pathlib import Path
from edgellm.p2p.identity import exclusive_identity
with exclusive_identity(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_an_identity_is_made_once_private_and_whole(tmp_path):
    path = tmp_path / "home" / "identity"
    first = load_or_create_identity(path)
    assert load_or_create_identity(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["identity"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    path = tmp_path / "identity"
    load_or_create_identity(path)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"mode 0{mode:o}") as caught:
        load_or_create_identity(path)
    assert f"chmod 600 {path}" in caught.value.remedy


@pytest.mark.parametrize(
    "content", [b"", b"junk", bytes(68), bytes.fromhex("08011240") + bytes(64), bytes(4096)]
)
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "identity"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="damaged"):
        load_or_create_identity(path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot use the identity file"):
        load_or_create_identity(tmp_path / "file" / "identity")


def test_a_second_process_on_the_same_identity_is_told_who_holds_it(tmp_path):
    path = tmp_path / "identity"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError) as caught, exclusive_identity(path):
            pass
        assert str(path) in str(caught.value)
        assert str(holder.pid) in str(caught.value)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
        with exclusive_identity(path) as identity:
            assert identity == load_or_create_identity(path)
    finally:
        holder.kill()
        holder.communicate()


def test_signatures_belong_to_their_peer():
    mine, other = Identity.generate(), Identity.generate()
    signature = mine.sign(b"data")
    assert verify(mine.peer, b"data", signature)
    assert not verify(mine.peer, b"date", signature)
    assert not verify(other.peer, b"data", signature)
    assert public_key_of_peer(mine.peer) == mine.public_key


@pytest.mark.parametrize(
    "peer", ["", "x", "0OIl", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "1" * 500]
)
def test_what_is_no_ed25519_peer_id_is_refused(peer):
    with pytest.raises(ValueError, match=r"."):
        public_key_of_peer(peer)
