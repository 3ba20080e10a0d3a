"""How fast clusters really compute prompts, compared with the plan's prediction: what the gate of KV pieces has to know.

A plan predicts from arithmetic that was measured alone; engines reach a part of it, for one model much the same on all hosts.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger(__name__)

LEAST_TOKENS = 256
"""Shorter prompts tell of everything but prefill."""
_WEIGHT = 0.5
_LEAST, _MOST = 0.01, 4.0
_MAX_MODELS = 1000


class PrefillRatios:
    """Of this requester, by model digest, in a file that is a memory and not a truth."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ratios: dict[str, float] = {}
        try:
            self._ratios = msgspec.json.decode(path.read_bytes(), type=dict[str, float])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("what was learned of prefill speed is lost", path=str(path), error=str(error))

    def share(self, digest: str) -> float:
        """How much of a prediction is reached; 1 where nothing was seen. Within reason: predictions rest on what hosts say."""
        return min(max(self._ratios.get(digest, 1.0), _LEAST), _MOST)

    def expected_tok_s(self, digest: str, predicted_tok_s: float) -> float:
        """The prediction, corrected by what was seen."""
        return predicted_tok_s * self.share(digest)

    def saw(self, digest: str, predicted_tok_s: float, *, tokens: int, seconds: float) -> None:
        """A prompt of so many tokens, all of which were computed, took so long until its first answer token."""
        if tokens < LEAST_TOKENS or seconds <= 0 or predicted_tok_s <= 0:
            return
        ratio = tokens / seconds / predicted_tok_s
        before = self._ratios.pop(digest, ratio)
        self._ratios[digest] = before + _WEIGHT * (ratio - before)
        while len(self._ratios) > _MAX_MODELS:
            del self._ratios[next(iter(self._ratios))]
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.encode(self._ratios))
            new.replace(self._path)
        except OSError as error:
            log.warning("what was learned of prefill speed is not kept", error=str(error))
