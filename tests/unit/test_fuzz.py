"""The short form of `make fuzz`: every decoder takes some hundred damaged inputs, and what they are made of."""

from __future__ import annotations

import random
import struct

import pytest

from edgellm.errors import ProtocolViolation
from tests.fuzz.decoder import Decoder, run_one
from tests.fuzz.decoders import DECODERS, decoder
from tests.fuzz.mutation import MAX_BYTES, mutate

INPUTS = 150
LIMIT_S = 2.0
"""Of CPU time; more than the long form allows, as other tests may run."""


@pytest.mark.parametrize("each", DECODERS, ids=lambda each: each.name)
def test_a_decoder_raises_its_own_errors_only_and_is_quick(each: Decoder) -> None:
    chance = random.Random(each.name)
    corpus = each.corpus()
    for data in (*corpus, b"", *(mutate(chance.choice(corpus), chance, corpus) for _ in range(INPUTS))):
        assert run_one(each, data) < LIMIT_S, data


def test_a_decoder_that_crashes_is_caught() -> None:
    def crash(data: bytes) -> None:
        struct.unpack("!I", data)

    with pytest.raises(struct.error):
        run_one(Decoder("bad", crash), b"x")

    def refuse(data: bytes) -> None:
        raise ProtocolViolation("no")

    assert run_one(Decoder("good", refuse), b"x") < LIMIT_S


def test_names_are_unique_and_found() -> None:
    assert len({each.name for each in DECODERS}) == len(DECODERS)
    assert decoder("varint").name == "varint"


def test_mutations_differ_and_are_bounded() -> None:
    chance = random.Random(7)
    seed = bytes(range(200))
    made = {mutate(seed, chance, [seed, b"other"]) for _ in range(500)}
    assert len(made) > 450
    assert max(map(len, made)) <= MAX_BYTES
    assert {mutate(seed, random.Random(3)) for _ in range(5)} == {mutate(seed, random.Random(3))}
