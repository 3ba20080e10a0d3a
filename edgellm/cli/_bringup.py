"""Bring-up as the user sees it: live phases with times on stderr, and the summary line after an answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

if TYPE_CHECKING:
    from edgellm.requester.timeline import Span


BAR = 32
"""Characters of a time line's axis."""


@dataclass
class _Row:
    phase: str
    detail: str
    since: float


@dataclass
class BringUpView:
    """Shows who is doing what since when. On a terminal the lines move; in a pipe each change is a line of its own."""

    console: Console
    quiet: bool = False
    _begun: float = field(default_factory=time.monotonic)
    _rows: dict[str, _Row] = field(default_factory=dict)
    _live: Live | None = None

    def __enter__(self) -> Self:
        if not self.quiet and self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render, console=self.console, transient=True, refresh_per_second=8
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun

    def note(self, who: str, phase: str, detail: str = "") -> None:
        """`who` ("" for this machine) is now at `phase`."""
        self._rows[who] = _Row(phase, detail, time.monotonic())
        if not self.quiet and self._live is None:
            self.console.print(
                f"[dim]{self.elapsed_s:6.1f} s[/]  {escape(who or 'here'):<12} {escape(phase)} {escape(detail)}".rstrip()
            )

    def close(self) -> None:
        """Takes the live lines away; what is printed afterwards stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        now = time.monotonic()
        for who, row in self._rows.items():
            table.add_row(
                Spinner("dots", style="cyan"),
                f"[bold]{escape(who or 'here')}[/]",
                f"{escape(row.phase)} [dim]{escape(row.detail[:60])}[/]",
                f"[dim]{now - row.since:.1f} s[/]",
            )
        table.add_row("", "", "[dim]in all[/]", f"[dim]{self.elapsed_s:.1f} s[/]")
        return table


@dataclass
class AnswerClock:
    """Times of one answer. `begun` is when the engine got the request."""

    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None
    tokens: int = 0

    def count(self, tokens: int) -> None:
        if not tokens:
            return
        now = time.monotonic()
        if self.first is None:
            self.first = now
        self.last = now
        self.tokens += tokens

    @property
    def ttft_s(self) -> float | None:
        return None if self.first is None else self.first - self.begun

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens after the first per second after the first; None for fewer than two tokens."""
        if self.first is None or self.last is None or self.tokens < 2 or self.last <= self.first:
            return None
        return (self.tokens - 1) / (self.last - self.first)


@dataclass(frozen=True, slots=True)
class Hop:
    """A stage of the cluster, for people."""

    name: str
    peer: str
    first_layer: int
    end_layer: int
    relay: str = ""
    """The peer through which alone it is reached; "" where it is reached directly."""

    def __str__(self) -> str:
        relayed = " (relayed)" if self.relay else ""
        return f"{self.name}{relayed} layers {self.first_layer}-{self.end_layer - 1}"


def summary(clock: AnswerClock, route: tuple[Hop, ...], *, bring_up_s: float | None) -> str:
    """The one line after an answer: TTFT, tok/s, and which peers ran which layers."""
    parts = []
    if clock.ttft_s is not None:
        parts.append(f"TTFT {clock.ttft_s:.2f} s")
    if bring_up_s is not None:
        parts.append(f"bring-up {bring_up_s:.1f} s")
    if clock.decode_tok_s is not None:
        parts.append(f"{clock.decode_tok_s:.1f} tok/s")
    parts.append(f"{clock.tokens} token{'' if clock.tokens == 1 else 's'}")
    parts.append(" → ".join(str(hop) for hop in route))
    return " · ".join(parts)


def reuse(
    prompt_tokens: int, cached_tokens: int, by_peer: Mapping[str, int], names: Mapping[str, str]
) -> str:
    """What need not be computed of the prompt, and whose KV blocks brought it; "" where all was computed."""
    if not cached_tokens:
        return ""
    holders = [peer_name(peer, names) for peer, _ in sorted(by_peer.items(), key=lambda item: -item[1])]
    whence = f"from KV blocks of {', '.join(holders)}" if holders else "in the engine already"
    return f" · {cached_tokens} of {prompt_tokens} prompt tokens {whence}"


def timeline(spans: Sequence[Span]) -> Table:
    """What happened when, a line for each step, with a bar for it on a common axis."""
    end_s = max(span.end_s for span in spans)
    table = Table(box=None, header_style="bold", title="time line", title_style="bold", title_justify="left")
    for column in ("FROM", "TO"):
        table.add_column(column, justify="right")
    for column in ("", "STEP", "HOSTS", ""):
        table.add_column(column)
    for span in spans:
        table.add_row(
            f"{span.begin_s:.1f} s",
            f"{span.end_s:.1f} s",
            bar(span.begin_s / end_s, span.end_s / end_s),
            escape(span.what),
            escape(" + ".join(span.who)),
            f"[dim]{escape(span.detail)}[/]",
        )
    return table


def bar(begin: float, end: float) -> str:
    """A run of `BAR` characters, of which those between two shares of it are filled, at least one."""
    first = min(int(begin * BAR), BAR - 1)
    filled = max(1, round(end * BAR) - first)
    return "·" * first + "█" * filled + "·" * (BAR - first - filled)


def peer_name(peer: str, names: Mapping[str, str]) -> str:
    """What a host calls itself, where that is known; else the end of its id."""
    return names.get(peer) or f"…{peer[-6:]}"
