"""What a requester remembers of how fast prompts were computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.requester.prefill import PrefillRatios


def test_what_was_seen_corrects_the_next_prediction(tmp_path: Path) -> None:
    path = tmp_path / "prefill.json"
    ratios = PrefillRatios(path)
    assert ratios.expected_tok_s("m", 3000) == 3000
    ratios.saw("m", 3000, tokens=1200, seconds=2.0)
    assert ratios.expected_tok_s("m", 3000) == pytest.approx(600)
    assert ratios.expected_tok_s("m", 6000) == pytest.approx(1200), "a plan of twice the speed"
    assert ratios.expected_tok_s("other", 3000) == 3000
    PrefillRatios(path).saw("m", 3000, tokens=1200, seconds=1.0)
    assert PrefillRatios(path).expected_tok_s("m", 3000) == pytest.approx(900)


@pytest.mark.parametrize(
    ("tokens", "seconds", "predicted"), [(255, 1.0, 1.0), (1000, 0.0, 1.0), (1000, 1.0, 0.0)]
)
def test_what_tells_nothing_changes_nothing(
    tmp_path: Path, tokens: int, seconds: float, predicted: float
) -> None:
    ratios = PrefillRatios(tmp_path / "prefill.json")
    ratios.saw("m", predicted, tokens=tokens, seconds=seconds)
    assert ratios.expected_tok_s("m", 100) == 100


def test_a_file_that_cannot_be_read_or_written_is_none(tmp_path: Path) -> None:
    path = tmp_path / "prefill.json"
    path.write_text("{")
    assert PrefillRatios(path).expected_tok_s("m", 100) == 100
    nowhere = PrefillRatios(tmp_path / "missing" / "prefill.json")
    nowhere.saw("m", 100, tokens=1000, seconds=20.0)
    assert nowhere.expected_tok_s("m", 100) == 50
