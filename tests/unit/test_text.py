"""What others wrote, on a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgellm.types.text import one_line


@given(st.text(), st.integers(0, 50))
def test_nothing_of_it_commands_a_terminal(text: str, most: int) -> None:
    shown = one_line(text, most)
    assert len(shown) == min(len(text), most)
    assert shown.isprintable()


def test_what_is_readable_stays() -> None:
    assert one_line("its cell ended: 8 GiB, für immer", 500) == "its cell ended: 8 GiB, für immer"
    assert one_line("\x1b[2Jfree\nerror: yours", 500) == "?[2Jfree?error: yours"
