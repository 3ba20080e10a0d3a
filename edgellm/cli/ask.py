"""`edgellm ask`: one question, answered by a cluster of its own or by an open session."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from edgellm.cli import _options as options
from edgellm.cli._bringup import AnswerClock, BringUpView, Hop, peer_name, reuse, summary, timeline
from edgellm.cli._output import errors, say, write_answer
from edgellm.errors import UsageError
from edgellm.types.request import Message, Piece, Question, Sampling

if TYPE_CHECKING:
    from edgellm.cluster.head import Progress
    from edgellm.requester.cluster import OpenedCluster
    from edgellm.requester.timeline import Span
    from edgellm.wire import session_pb2


def ask(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt. Left out (or -): read from standard input.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="The model's name in the swarm.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="NAME", help="Ask an open session: no bring-up.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system prompt.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 512,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, max=10.0, help="0 always takes the likeliest token.")
    ] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", min=0.01, max=1.0)] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Makes sampling repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End the answer before this text. May be repeated.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Complete the prompt as it is, without the model's chat template.")
    ] = False,
    tp: options.TensorParallel = None,
    pp: options.PipelineParallel = None,
    peers: options.Peers = None,
    context: options.Context = None,
    min_tok_s: options.MinTokS = None,
    max_load: options.MaxLoad = None,
    network: options.Network = options.Fabric.OVERLAY,
    isolation: options.IsolationOption = options.Isolation.BWRAP,
    disaggregate: options.DisaggregateOption = options.Disaggregate.NEVER,
    kv_share: options.KvShare = None,
    kv_scope: options.KvScopeOption = options.KvScope.SESSION,
    bootstrap: options.Bootstrap = None,
    mdns: options.Mdns = False,
    as_json: options.Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing on stderr unless something goes wrong.")
    ] = False,
) -> None:
    """Ask a question of a model that others host.

    The answer streams to standard output and nothing else does; bring-up and figures go to standard error.

    Examples:

      edgellm ask "Why is the sky blue?" --model Qwen/Qwen3-32B

      git diff | edgellm ask --model Qwen/Qwen3-32B --system "Write a commit message." > message.txt

      edgellm ask "And at sunset?" --session amber-1f3c
    """
    if (model is None) == (session is None):
        raise UsageError(
            "say either --model or --session",
            remedy='edgellm ask "PROMPT" --model MODEL, or --session NAME (see `edgellm session list`)',
        )
    if session is not None and disaggregate is not options.Disaggregate.NEVER:
        raise UsageError(
            "--disaggregate is for a question with clusters of its own, and a session has one",
            remedy="say --model instead of --session, or leave out --disaggregate",
        )
    if session is not None and (min_tok_s is not None or max_load is not None):
        raise UsageError(
            "--min-tok-s and --max-load choose hosts, and a session has its own",
            remedy="say them to `edgellm session open`",
        )
    options.require_disaggregable(disaggregate, kv_share, network)
    sampling = Sampling(max_tokens, temperature, top_p, seed, tuple(stop or ()))
    question = make_question(read_prompt(prompt), system, raw, sampling)
    show = _Show(quiet=quiet, as_json=as_json)
    if session is not None:
        _ask_session(session, question, show)
        return
    assert model is not None
    from edgellm.cli._run import run_interruptibly
    from edgellm.discovery.bootstrap import require_bootstrap
    from edgellm.paths import default_paths
    from edgellm.requester.ask import ask as ask_swarm
    from edgellm.requester.choose import Wanted, require_prompt
    from edgellm.requester.open import RequesterOptions, open_requester

    require_prompt(question)
    paths = default_paths()
    wanted = Wanted(
        tp,
        pp,
        tuple(peers or ()),
        network.value,
        context,
        disaggregate=disaggregate.value,
        min_tok_s=min_tok_s,
        max_load=max_load,
    )
    # Whoever demands two clusters has them share, however short the prompt.
    shares_always = kv_share or disaggregate is options.Disaggregate.ALWAYS
    options_ = RequesterOptions(
        require_bootstrap(bootstrap or (), paths.state, mdns=mdns),
        mdns,
        isolation.value,
        kv_scope=options.kv_scope(kv_share, kv_scope, network),
        kv_least_prompt_tokens=0 if shares_always else options.KV_LEAST_PROMPT_TOKENS,
    )

    async def work() -> None:
        async with open_requester(options_, paths) as requester:
            await ask_swarm(requester, model, question, wanted, show)

    with show.view:
        run_interruptibly(work)
    show.end()


def read_prompt(prompt: str | None) -> str:
    """The prompt from the command line or from standard input."""
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", remedy='edgellm ask "PROMPT" --model MODEL, or pipe it in')
    return sys.stdin.read()


def make_question(prompt: str, system: str | None, raw: bool, sampling: Sampling) -> Question:
    """As messages for the chat template, or raw."""
    if raw:
        if system is not None:
            raise UsageError("--system and --raw exclude each other", remedy="put all of it into the prompt")
        return Question(text=prompt, sampling=sampling)
    messages = (Message("system", system),) if system else ()
    return Question(messages=(*messages, Message("user", prompt)), sampling=sampling)


class _Show:
    """Shows an answer as it comes (`edgellm.requester.ask.Watcher`)."""

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

    def progress(self, progress: Progress) -> None:
        self.view.note(progress.who, progress.phase, progress.detail)

    def ready(self, opened: OpenedCluster, *, asked_s_ago: float = 0.0) -> None:
        stages = opened.cluster.stages
        if opened.kv is not None:
            self.kv_from(opened.kv.tokens, opened.names)
        self.route(
            tuple(Hop(stage.name, stage.peer, stage.first_layer, stage.end_layer) for stage in stages.stages),
            # The part of it after the question went to a cluster that prefills is in the time to the first token.
            bring_up_s=self.view.elapsed_s - asked_s_ago,
            asked_s_ago=asked_s_ago,
        )
        self.view.close()
        if not self._quiet:
            shape = f"TP={stages.tensor_parallel} PP={stages.pipeline_parallel}"
            say(f"[green]ready[/] in {self.view.elapsed_s:.1f} s: {shape}")

    def route(self, route: tuple[Hop, ...], *, bring_up_s: float | None, asked_s_ago: float = 0.0) -> None:
        self._route, self._bring_up_s = route, bring_up_s
        self._clock = AnswerClock(begun=time.monotonic() - asked_s_ago)

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
                }
                for hop in self._route
            ],
        }


def _ask_session(name: str, question: Question, show: _Show) -> None:
    import secrets

    from edgellm.engine.question import piece_from_wire, question_to_wire
    from edgellm.paths import default_paths
    from edgellm.requester.choose import require_prompt
    from edgellm.requester.prefill import PrefillRatios
    from edgellm.sessions.client import ask_session, session_state
    from edgellm.sessions.registry import Registry

    require_prompt(question)
    paths = default_paths()
    registry = Registry(paths.sessions)
    state = session_state(registry, name)
    if state.description is not None:
        route = tuple(
            Hop(stage.name, stage.peer, stage.first_layer, stage.end_layer)
            for stage in state.description.stages
        )
        show.route(route, bring_up_s=None)
    first: tuple[Piece, float] | None = None
    asked_at = time.monotonic()
    for event in ask_session(registry, name, question_to_wire(question, secrets.token_hex(8))):
        piece = piece_from_wire(event)
        first = first or (piece, time.monotonic() - asked_at)
        show.piece(piece)
    if state.description is not None and state.description.shares_kv:
        if first is not None and not first[0].cached_prompt_tokens:
            # For the gates of clusters to come; those of this one were told before.
            PrefillRatios(paths.kv / "prefill.json").saw(
                state.description.digest,
                state.description.predicted_prefill_tok_s,
                tokens=first[0].prompt_tokens,
                seconds=first[1],
            )
        after = session_state(registry, name).description
        names = {holder.peer: holder.name for holder in after.kv_holders} if after is not None else {}
        show.kv_from(_kv_since(state.description, after), names)
    show.end()


def _kv_since(before: session_pb2.Description, after: session_pb2.Description | None) -> dict[str, int]:
    """Tokens by peer, of what a session's cluster used meanwhile: of this question, where it was the only one."""
    if after is None:
        return {}
    then = {holder.peer: holder.tokens for holder in before.kv_holders}
    since = {holder.peer: holder.tokens - then.get(holder.peer, 0) for holder in after.kv_holders}
    return {peer: tokens for peer, tokens in since.items() if tokens > 0}
