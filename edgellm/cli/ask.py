"""`edgellm ask`: one question, answered by a cluster of its own or by an open session."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from edgellm.cli import _options as options
from edgellm.cli._answer import AnswerView
from edgellm.cli._bringup import Hop
from edgellm.cli._output import say
from edgellm.errors import EdgeError, UsageError
from edgellm.types.quantity import parse_duration
from edgellm.types.request import Message, Piece, Question, Sampling, require_prompt

if TYPE_CHECKING:
    from edgellm.sessions.client import SessionState
    from edgellm.sessions.registry import Registry
    from edgellm.sessions.reuse import Asked
    from edgellm.wire import session_pb2

OF_ITS_OWN = frozenset(
    (
        "tp",
        "pp",
        "peers",
        "context",
        "network",
        "isolation",
        "disaggregate",
        "kv_share",
        "kv_scope",
        "min_tok_s",
        "max_load",
        "spares",
        "mdns",
    )
)
"""Options that say what the cluster is to be: where one is given, no open session is taken instead."""
_LOOK_S = 1.0
"""How long an open session has to say that it could answer."""


def ask(
    invocation: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt. Left out (or -): read from standard input.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="The model's name in the swarm.")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="NAME", help="Ask an open session: no bring-up.")
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Bring up a cluster even where an open session of the model is idle."),
    ] = False,
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
    spares: options.Spares = 0,
    patience: options.Patience = "60s",
    silence: options.Silence = "4s",
    spot_check: options.SpotCheck = None,
    network: options.Network = options.Fabric.OVERLAY,
    isolation: options.IsolationOption = options.Isolation.BWRAP,
    disaggregate: options.DisaggregateOption = options.Disaggregate.NEVER,
    kv_share: options.KvShare = None,
    kv_scope: options.KvScopeOption = options.KvScope.SESSION,
    swarm: options.Swarm = None,
    bootstrap: options.Bootstrap = None,
    mdns: options.Mdns = False,
    as_json: options.Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Nothing on stderr unless something goes wrong.")
    ] = False,
) -> None:
    """Ask a question of a model that others host.

    The answer streams to standard output and nothing else does; bring-up and figures go to standard error. An open session
    of the model that has nothing to do answers, unless --fresh or an option about the cluster is given.

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
    if session is not None and fresh:
        raise UsageError(
            "--session and --fresh exclude each other",
            remedy="leave out one of them, and say --model for --fresh",
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
    if session is not None and spot_check is not None:
        raise UsageError(
            "--spot-check is for clusters to come, and a session has one",
            remedy="say it to `edgellm session open`",
        )
    options.require_disaggregable(disaggregate, kv_share, network)
    sampling = Sampling(max_tokens, temperature, top_p, seed, tuple(stop or ()))
    question = make_question(read_prompt(prompt), system, raw, sampling)
    require_prompt(question)
    show = AnswerView(quiet=quiet, as_json=as_json)
    if session is not None:
        _ask_session(session, question, show)
        return
    assert model is not None
    from edgellm.paths import default_paths
    from edgellm.swarms.chosen import chosen_name, require_peers, swarm_called

    paths = default_paths()
    swarm_name = chosen_name(swarm, paths)
    if not fresh and not any(_is_given(invocation, name) for name in OF_ITS_OWN):
        from edgellm.sessions.reuse import Asked

        if _answered_by_session(
            Asked(model, max_tokens, network.value, isolation.value, tuple(bootstrap or ()), swarm_name),
            question,
            show,
        ):
            return
    from edgellm.cli._run import run_interruptibly
    from edgellm.log import log_to
    from edgellm.requester.ask import ask as ask_swarm
    from edgellm.requester.choose import Wanted
    from edgellm.requester.open import RequesterOptions, open_requester
    from edgellm.requester.spot_check import check_picked
    from edgellm.trust.share import check_share

    log_to()
    wanted = Wanted(
        tp,
        pp,
        tuple(peers or ()),
        network.value,
        context,
        disaggregate=disaggregate.value,
        min_tok_s=min_tok_s,
        max_load=max_load,
        spares=spares,
        patience_s=parse_duration(patience),
        silence_s=options.silence_s(silence),
    )
    # Whoever demands two clusters has them share, however short the prompt.
    shares_always = kv_share or disaggregate is options.Disaggregate.ALWAYS
    options_ = RequesterOptions(
        require_peers(bootstrap or (), swarm_called(swarm_name, paths), paths, mdns=mdns),
        mdns,
        isolation.value,
        kv_scope=options.kv_scope(kv_share, kv_scope, network),
        kv_least_prompt_tokens=0 if shares_always else options.KV_LEAST_PROMPT_TOKENS,
        check_share=check_share(spot_check, peers or (), os.environ),
        swarm=swarm_name,
    )

    async def work() -> None:
        async with open_requester(options_, paths) as requester:
            await ask_swarm(requester, model, question, wanted, show)
            show.end()
            if requester.trust is not None and requester.trust.picked:
                show.say("the answer is checked now; Ctrl-C skips that, --spot-check 0 turns it off")
                if await check_picked(requester, wanted, show.say) and quiet:
                    say("a host computed wrongly, and is left out from now on: edgellm peers --trust")

    try:
        with show.view:
            run_interruptibly(work)
    except KeyboardInterrupt:
        if not show.has_ended:
            raise


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


def _is_given(invocation: typer.Context, option: str) -> bool:
    source = invocation.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def _answered_by_session(asked: Asked, question: Question, show: AnswerView) -> bool:
    """Whether an open session that has nothing to do has answered.

    One that fails before it has said anything has not. Raises EdgeErrors of one that fails later.
    """
    from edgellm.paths import default_paths
    from edgellm.sessions.registry import Registry
    from edgellm.sessions.reuse import reusable

    registry = Registry.of(default_paths())
    if not registry.names():
        return False
    from edgellm.sessions.client import list_sessions

    states = list_sessions(registry, timeout_s=_LOOK_S)
    name = reusable(asked, [state.description for state in states if state.description is not None])
    if name is None:
        return False
    show.say(f"session {name} is open and answers; --fresh brings up a cluster of its own")
    try:
        _ask_session(name, question, show, next(state for state in states if state.name == name))
    except EdgeError as error:
        if show.has_begun:
            raise
        show.session(None)
        show.say(f"session {name} did not answer: {error}; a cluster of its own comes up")
        return False
    return True


def _ask_session(name: str, question: Question, show: AnswerView, state: SessionState | None = None) -> None:
    import secrets

    from edgellm.engine.question import piece_from_wire, question_to_wire
    from edgellm.paths import default_paths
    from edgellm.sessions.client import ask_session, session_state
    from edgellm.sessions.registry import Registry

    registry = Registry.of(default_paths())
    state = state or session_state(registry, name)
    show.session(name)
    if state.description is not None:
        route = tuple(
            Hop(stage.name, stage.peer, stage.first_layer, stage.end_layer, stage.relay)
            for stage in state.description.stages
        )
        show.route(route, bring_up_s=None)
    first: tuple[Piece, float] | None = None
    asked_at = time.monotonic()
    request = question_to_wire(question, secrets.token_hex(8))
    for event in ask_session(registry, name, request, state=state):
        piece = piece_from_wire(event)
        first = first or (piece, time.monotonic() - asked_at)
        show.piece(piece)
    if state.description is not None and state.description.shares_kv:
        _tell_reuse(registry, state.description, first, show)
    show.end()


def _tell_reuse(
    registry: Registry, before: session_pb2.Description, first: tuple[Piece, float] | None, show: AnswerView
) -> None:
    """Whose KV blocks were used, to the user; how fast the prompt was computed, to clusters to come."""
    from edgellm.log import log_to
    from edgellm.paths import default_paths

    log_to()
    from edgellm.requester.prefill import PrefillRatios
    from edgellm.sessions.client import session_state

    if first is not None and not first[0].cached_prompt_tokens:
        # For the gates of clusters to come; those of this one were told before.
        PrefillRatios(default_paths().kv / "prefill.json").saw(
            before.digest, before.predicted_prefill_tok_s, tokens=first[0].prompt_tokens, seconds=first[1]
        )
    after = session_state(registry, before.name).description
    names = {holder.peer: holder.name for holder in after.kv_holders} if after is not None else {}
    show.kv_from(_kv_since(before, after), names)


def _kv_since(before: session_pb2.Description, after: session_pb2.Description | None) -> dict[str, int]:
    """Tokens by peer, of what a session's cluster used meanwhile: of this question, where it was the only one."""
    if after is None:
        return {}
    then = {holder.peer: holder.tokens for holder in before.kv_holders}
    since = {holder.peer: holder.tokens - then.get(holder.peer, 0) for holder in after.kv_holders}
    return {peer: tokens for peer, tokens in since.items() if tokens > 0}
