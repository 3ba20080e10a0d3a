"""Names and seals: nothing told to outsiders, nothing taken for something else."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.blocks.cid import Cid
from edgellm.errors import UsageError
from edgellm.kv.names import chunk_name
from edgellm.kv.namespace import Namespace
from edgellm.kv.region import Region
from edgellm.kv.scope import PUBLIC_SECRET, ScopeKeys, scope_secret
from edgellm.kv.seal import SEAL_BYTES, NotAuthentic, open_sealed, seal
from edgellm.paths import Paths

ONE, OTHER = ScopeKeys.derive(b"1" * 32), ScopeKeys.derive(b"2" * 32)
REGION = Region(0, 4, 0, 2)
SPACE = Namespace(
    weights="abc",
    dtype="bfloat16",
    kv_dtype="auto/bfloat16",
    block_tokens=128,
    chunk_tokens=256,
    device="cpu",
    attention="CPU_ATTN",
    instructions="amx",
    layout="NHD 5d",
    engine="vllm 1 lmcache 2",
    lora="",
)
NAME = chunk_name(ONE, SPACE.digest(), b"hash", "")
CONTENT = bytes(range(256)) * 64


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Namespace)])
def test_every_field_of_a_namespace_makes_another(field: str) -> None:
    value = getattr(SPACE, field)
    other = dataclasses.replace(SPACE, **{field: value + 1 if isinstance(value, int) else value + "x"})
    assert other.digest() != SPACE.digest()
    assert chunk_name(ONE, other.digest(), b"hash", "") != NAME


def test_the_same_prompt_in_two_scopes_has_nothing_in_common() -> None:
    names = {chunk_name(keys, SPACE.digest(), b"hash", "") for keys in (ONE, OTHER)}
    assert len(names) == 2
    sealed = [seal(keys, NAME, REGION, CONTENT) for keys in (ONE, OTHER)]
    assert Cid.of(sealed[0]) != Cid.of(sealed[1])
    pieces = [{part[start : start + 16] for start in range(0, len(part), 16)} for part in sealed]
    assert not pieces[0] & pieces[1]
    assert len({ONE.scope_id, OTHER.scope_id, ONE.naming, ONE.sealing, ONE.nonces, OTHER.naming}) == 6
    assert b"1" * 32 not in repr(ONE).encode()
    assert ONE.sealing.hex() not in repr(ONE)


def test_the_same_piece_is_the_same_block_whoever_seals_it() -> None:
    again = ScopeKeys.derive(b"1" * 32)
    assert seal(again, NAME, REGION, memoryview(CONTENT)) == seal(ONE, NAME, REGION, CONTENT)
    assert seal(ONE, NAME, REGION, CONTENT)[:12] != seal(ONE, NAME, REGION, CONTENT[:-1] + b"x")[:12]


@given(st.binary(max_size=3000))
def test_what_is_sealed_opens(content: bytes) -> None:
    sealed = seal(ONE, NAME, REGION, content)
    assert len(sealed) == len(content) + SEAL_BYTES
    assert content[:16] not in sealed or len(content) < 16
    assert open_sealed(ONE, NAME, REGION, sealed) == content


@given(st.integers(0, 40 + SEAL_BYTES - 1), st.integers(1, 255))
def test_a_changed_byte_does_not_open(position: int, change: int) -> None:
    sealed = bytearray(seal(ONE, NAME, REGION, bytes(40)))
    sealed[position] ^= change
    with pytest.raises(NotAuthentic):
        open_sealed(ONE, NAME, REGION, bytes(sealed))


def test_a_right_piece_in_a_wrong_place_does_not_open() -> None:
    sealed = seal(ONE, NAME, REGION, CONTENT)
    elsewhere = chunk_name(ONE, SPACE.digest(), b"another hash", "")
    for keys, name, region, content in [
        (OTHER, NAME, REGION, sealed),
        (ONE, elsewhere, REGION, sealed),
        (ONE, NAME, Region(4, 8, 0, 2), sealed),
        (ONE, NAME, Region(0, 4, 2, 4), sealed),
        (ONE, NAME, REGION, sealed[:-1]),
        (ONE, NAME, REGION, sealed + b"x"),
        (ONE, NAME, REGION, b""),
    ]:
        with pytest.raises(NotAuthentic):
            open_sealed(keys, name, region, content)


@given(st.binary(max_size=8), st.binary(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_names_never_run_into_each_other(hash_: bytes, other: bytes, salt: str, other_salt: str) -> None:
    same = chunk_name(ONE, b"n", hash_, salt) == chunk_name(ONE, b"n", other, other_salt)
    assert same == ((hash_, salt) == (other, other_salt))


def test_the_sessions_secret_is_made_once_and_stays_private(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path, tmp_path)
    secret = scope_secret("session", paths)
    assert len(secret) == 32
    assert scope_secret("session", paths) == secret
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    with pytest.raises(UsageError, match="can be read by others") as caught:
        scope_secret("session", paths)
    assert "chmod 600" in caught.value.remedy
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(UsageError, match="5 bytes instead of 32"):
        scope_secret("session", paths)


def test_other_scopes(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path, tmp_path)
    assert scope_secret("public", paths) == PUBLIC_SECRET
    for scope in ("swarm", "nonesuch"):
        with pytest.raises(UsageError):
            scope_secret(scope, paths)
    with pytest.raises(UsageError):
        ScopeKeys.derive(b"short")
    assert list(tmp_path.iterdir()) == []
