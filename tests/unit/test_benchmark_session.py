"""How speeds are made of token times."""

import pytest

from benchmarks.by_hand import Token
from benchmarks.session import SessionSpeed, decode_tok_s


def answer(*times: float) -> tuple[Token, ...]:
    return tuple(Token(time, 7) for time in times)


def test_tokens_that_come_first_do_not_count():
    assert decode_tok_s([answer(1.0, 1.5, 2.0, 3.0)]) == pytest.approx(3 / 2)
    assert decode_tok_s([answer(1.0, 1.0, 2.0, 2.0)]) == pytest.approx(2)


def test_several_answers_count_while_all_are_being_made():
    # From 2.0, when the last one begins, to 4.0, when the first one ends.
    assert decode_tok_s([answer(1.0, 2.0, 3.0, 4.0), answer(2.0, 2.5, 3.5, 4.0, 9.0)]) == pytest.approx(5 / 2)


def test_the_ratio_is_of_turns_and_not_of_medians():
    speed = SessionSpeed((100.0, 50.0, 10.0), (100.0, 100.0, 10.0))
    assert speed.ratio == 1.0
    assert (speed.session_tok_s, speed.by_hand_tok_s) == (50.0, 100.0)
