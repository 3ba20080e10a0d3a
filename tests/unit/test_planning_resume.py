"""Who takes the places of hosts that are lost."""

from __future__ import annotations

from edgellm.planning.resume import in_turn
from tests.unit.planning_samples import GIB, host


def test_those_that_were_lost_are_chosen_again_in_the_order_in_which_they_were() -> None:
    candidates = tuple(host(name, GIB) for name in ("a", "b", "c"))
    choices = in_turn(candidates, ["c", "nobody that is there", "a"])
    assert [[each.peer for each in choice] for choice in choices] == [["b"], ["b", "c"], ["a", "b", "c"]]
    assert in_turn(candidates, []) == (candidates,)
