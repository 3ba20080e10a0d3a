"""An answer as it comes: its text on standard output, who gives it and its figures on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from edgellm.cli._bringup import AnswerClock, BringUpView, Hop, peer_name, reuse, summary, timeline
from edgellm.cli._output import errors, say, write_answer
from edgellm.types.request import Piece

if TYPE_CHECKING:
    from edgellm.cluster.head import Progress
    from edgellm.requester.cluster import OpenedCluster
    from edgellm.requester.recovery import Cluster
    from edgellm.requester.timeline import Span


_OF_RECOVERY = ("lost", "waiting", "resumed", "slow", "draining")
"""Phases that are told while an answer is shown."""


class AnswerView:
    """Of one question (`edgellm.requester.ask.Watcher`)."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.view = BringUpView(errors, quiet=quiet)
        self._quiet = quiet
        self._as_json = as_json
        self._clock = AnswerClock()
        self._route: tuple[Hop, ...] = ()
        self._bring_up_s: float | None = None
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._prompt_tokens = 0
        self._cached_prompt_tokens = 0
        self._kv_tokens: Mapping[str, int] = {}
        self._kv_names: Mapping[str, str] = {}
        self._finish_reason = ""
        self._spans: Sequence[Span] = ()
        self._session: str | None = None
        self.has_ended = False
        """Whether all of the answer has been shown."""
        self._cluster: Cluster | None = None

    def _begin_line(self) -> None:
        """Where the answer and what is said beside it share a terminal, each has lines of its own."""
        if not self._quiet and not self._as_json and sys.stdout.isatty() and errors.is_terminal:
            errors.print()

    @property
    def has_begun(self) -> bool:
        """Whether anything of the answer has been shown."""
        return bool(self._text)

    def say(self, line: str) -> None:
        """What the user may want to know beside the answer."""
        if not self._quiet:
            say(f"[dim]{escape(line)}[/]")

    def progress(self, progress: Progress) -> None:
        if self._cluster is None:
            self.view.note(progress.who, progress.phase, progress.detail)
        elif progress.phase in _OF_RECOVERY:
            self._begin_line()
            who = f"{progress.who} " if progress.who else ""
            self.say(f"{who}{progress.phase}: {progress.detail}")

    def ready(self, opened: OpenedCluster, *, asked_s_ago: float = 0.0) -> None:
        stages = opened.cluster.stages
        if opened.kv is not None:
            self.kv_from(opened.kv.tokens, opened.names)
        self.route(
            _hops(opened.cluster, opened.relay_of),
            # The part of it after the question went to a cluster that prefills is in the time to the first token.
            bring_up_s=self.view.elapsed_s - asked_s_ago,
            asked_s_ago=asked_s_ago,
        )
        self.view.close()
        self._cluster = opened.cluster
        if not self._quiet:
            shape = f"TP={stages.tensor_parallel} PP={stages.pipeline_parallel}"
            say(f"[green]ready[/] in {self.view.elapsed_s:.1f} s: {shape}")

    def route(self, route: tuple[Hop, ...], *, bring_up_s: float | None, asked_s_ago: float = 0.0) -> None:
        self._route, self._bring_up_s = route, bring_up_s
        self._clock = AnswerClock(begun=time.monotonic() - asked_s_ago)

    def session(self, name: str | None) -> None:
        """Which open session answers; None: a cluster of its own."""
        self._session = name

    def kv_from(self, tokens: Mapping[str, int], names: Mapping[str, str]) -> None:
        """Prompt tokens by the peer whose KV blocks brought them, read at the end, and what these peers call themselves."""
        self._kv_tokens, self._kv_names = tokens, names

    def piece(self, piece: Piece) -> None:
        self._clock.count(len(piece.token_ids))
        self._prompt_tokens = piece.prompt_tokens
        self._cached_prompt_tokens = max(self._cached_prompt_tokens, piece.cached_prompt_tokens)
        self._finish_reason = piece.finish_reason or self._finish_reason
        self._text.append(piece.text)
        self._token_ids += piece.token_ids
        if not self._as_json:
            write_answer(piece.text)

    def timeline(self, spans: Sequence[Span]) -> None:
        self._spans = spans

    def end(self) -> None:
        if self._cluster is not None:
            # Others may have taken over meanwhile.
            known = {hop.peer: hop.relay for hop in self._route}
            self._route = _hops(self._cluster, lambda peer: known.get(peer, ""))
        self.has_ended = True
        if self._as_json:
            print(json.dumps(self._report(), ensure_ascii=False))
        elif self._text and not "".join(self._text).endswith("\n"):
            write_answer("\n")
        if not self._quiet:
            line = summary(self._clock, self._route, bring_up_s=self._bring_up_s)
            reused = reuse(self._prompt_tokens, self._cached_prompt_tokens, self._kv_tokens, self._kv_names)
            say(f"[dim]{escape(line + reused)}[/]")
            if self._spans:
                errors.print(timeline(self._spans))
            if self._finish_reason == "length":
                say("[dim]the answer stopped at its longest; --max-tokens allows more[/]")

    def _report(self) -> dict[str, object]:
        return {
            "text": "".join(self._text),
            "token_ids": self._token_ids,
            "prompt_tokens": self._prompt_tokens,
            "cached_prompt_tokens": self._cached_prompt_tokens,
            "kv_from": [
                {"peer": peer, "name": peer_name(peer, self._kv_names), "tokens": tokens}
                for peer, tokens in self._kv_tokens.items()
            ],
            "finish_reason": self._finish_reason,
            "session": self._session,
            "ttft_s": self._clock.ttft_s,
            "decode_tok_s": self._clock.decode_tok_s,
            "bring_up_s": self._bring_up_s,
            "timeline": [
                {
                    "what": span.what,
                    "hosts": span.who,
                    "begin_s": span.begin_s,
                    "end_s": span.end_s,
                    "detail": span.detail,
                }
                for span in self._spans
            ],
            "route": [
                {
                    "peer": hop.peer,
                    "name": hop.name,
                    "first_layer": hop.first_layer,
                    "end_layer": hop.end_layer,
                    "relay": hop.relay,
                }
                for hop in self._route
            ],
        }


def _hops(cluster: Cluster, relay_of: Callable[[str], str]) -> tuple[Hop, ...]:
    return tuple(
        Hop(stage.name, stage.peer, stage.first_layer, stage.end_layer, relay_of(stage.peer))
        for stage in cluster.stages.stages
    )
