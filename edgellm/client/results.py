"""Answers as a caller gets them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgellm.types.request import Piece


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    """ "stop": it came to its end; "length": to `max_tokens` or to the end of the context; "abort": somebody ended it."""
    prompt_tokens: int
    cached_prompt_tokens: int
    """Of the prompt, not computed: the engine had them, or KV blocks brought them."""
    ttft_s: float
    """From asking to the first token."""
    total_s: float
    """From asking to the end."""
    decode_tok_s: float | None
    """Tokens after the first ones per second; None where all came at once."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A host of the cluster and its layers [first_layer, end_layer), in pipeline order."""

    name: str
    peer: str
    first_layer: int
    end_layer: int


@dataclass
class Gathering:
    """Pieces of an answer that was asked for at `begun`, in seconds of any clock."""

    begun: float
    pieces: list[Piece] = field(default_factory=list)
    first: float | None = None
    last: float | None = None
    _first_tokens: int = 0

    def add(self, piece: Piece, now: float) -> None:
        self.pieces.append(piece)
        if not piece.token_ids:
            return
        if self.first is None:
            self.first, self._first_tokens = now, len(piece.token_ids)
        self.last = now

    def completion(self, now: float) -> Completion:
        """The answer, which ended at `now`."""
        token_ids = tuple(token for piece in self.pieces for token in piece.token_ids)
        later = len(token_ids) - self._first_tokens
        decode_s = 0.0 if self.first is None or self.last is None else self.last - self.first
        return Completion(
            text="".join(piece.text for piece in self.pieces),
            token_ids=token_ids,
            finish_reason=self.pieces[-1].finish_reason if self.pieces else "",
            prompt_tokens=self.pieces[-1].prompt_tokens if self.pieces else 0,
            cached_prompt_tokens=max((piece.cached_prompt_tokens for piece in self.pieces), default=0),
            ttft_s=(now if self.first is None else self.first) - self.begun,
            total_s=now - self.begun,
            decode_tok_s=later / decode_s if later and decode_s > 0 else None,
        )
