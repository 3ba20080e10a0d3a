"""Values in fewer bytes: the same again, in one of two lengths, and never more than was said."""

from __future__ import annotations

import random
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

import zstandard
from edgellm_vllm.kv.squeeze import possible_bytes, squeeze, squeezed_bytes, unsqueeze


def like_a_cache(count: int, seed: int = 1) -> bytes:
    """bfloat16 values as keys and values have them: normal, of some spread."""
    numbers = random.Random(seed)
    return b"".join(struct.pack("<f", numbers.gauss(0, 1.7))[2:] for _ in range(count))


@given(st.binary(max_size=4096), st.sampled_from(["bfloat16", "float16", "float32"]))
def test_values_come_back_as_they_were(content: bytes, dtype: str) -> None:
    squeezed = squeeze(content, dtype)
    assert unsqueeze(squeezed, len(content)) == content
    assert len(squeezed) in possible_bytes(len(content), dtype)
    assert squeeze(content, dtype) == squeezed


def test_a_cache_has_three_quarters_of_its_bytes_whatever_is_in_it() -> None:
    lengths = {len(squeeze(like_a_cache(8192, seed), "bfloat16")) for seed in range(20)}
    assert lengths == {1 + 16384 * 3 // 4} == {squeezed_bytes(16384, "bfloat16")}
    # So has one that could be much smaller.
    assert len(squeeze(bytes(16384), "bfloat16")) == 1 + 16384 * 3 // 4


def test_noise_stays_as_it_is() -> None:
    noise = random.Random(1).randbytes(16384)
    assert squeeze(noise, "bfloat16") == b"\x00" + noise
    assert len(squeeze(like_a_cache(8192), "float32")) == 1 + 16384


@given(st.binary(max_size=300), st.integers(0, 200))
def test_what_is_no_form_is_an_error_and_nothing_else(squeezed: bytes, size_bytes: int) -> None:
    with suppress(ValueError):
        assert len(unsqueeze(squeezed, size_bytes)) == size_bytes


@given(st.integers(0, 12290), st.integers(0, 255))
def test_a_changed_byte_gives_as_many_values_or_an_error(at: int, byte: int) -> None:
    squeezed = bytearray(squeeze(like_a_cache(8192), "bfloat16"))
    squeezed[at % len(squeezed)] = byte
    with suppress(ValueError):
        assert len(unsqueeze(bytes(squeezed), 16384)) == 16384


@pytest.mark.parametrize("claimed", [1 << 34, 8191, 0])
def test_a_frame_that_claims_another_size_is_not_even_begun(claimed: int) -> None:
    """Somebody of the same scope made it: its seal is right."""
    frame = zstandard.ZstdCompressor().compress(bytes(claimed if claimed < 1 << 20 else 8192))
    if claimed >= 1 << 20:
        # The frame's header says so; there is nothing behind it.
        frame = b"\x28\xb5\x2f\xfd\xc0\x00" + struct.pack("<Q", claimed) + b"\x01\x00\x00"
    with pytest.raises(ValueError, match="8192 bytes"):
        unsqueeze(b"\x01" + struct.pack("!I", len(frame)) + bytes(8192) + frame, 16384)
