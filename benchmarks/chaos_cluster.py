"""What faults are tried on: a swarm of hosts, and a session over some of them, which are made well again after each fault."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from benchmarks.chaos_answers import Answer, Ids, Stream, difference, gap_of, wrong_of
from benchmarks.chaos_faults import Undo, give_disk, inject, lends, ranks
from benchmarks.chaos_log import Outcome
from benchmarks.chaos_schedule import Cluster, Fault
from tests.system.lan import Lan
from tests.system.leftovers import Snapshot
from tests.system.machine import Machine
from tests.system.process import Completed, Process
from tests.system.swarm import ASK_TIMEOUT_S, TINY, Host, Swarm

HOSTS = ("alice", "bob", "dave", "erin")
NAME = "chaos"
PORT = 8770
PROMPTS = (
    "The with statement is used",
    "def read(self, size",
    "A list is a mutable",
    "class Error(Exception):",
    "Return the number of",
    "import os",
)
TOKENS = 400
"""Of each answer: what takes a little more than the two seconds within which answers are made again token by token."""
GRACE_S = 30
"""That a host gives before it goes."""
WELL_S = 120.0
ENDS_S = GRACE_S + 30.0
SETTLES_S = 3.0
"""How long a host whose fault is over may take to end of it."""
ENDING = ("host killed", "host's Ctrl-C", "host's owner")
ANSWER_S = 300.0
_POLL_S = 0.3
SHAPES: dict[Cluster, tuple[str, ...]] = {
    "two hosts": ("--pp", "2"),
    "two hosts and a spare": ("--pp", "2", "--spares", "1"),
    "three hosts": ("--pp", "3"),
    "a question's own": ("--pp", "2"),
}


class Broken(Exception):
    """The cluster under test is not as it must be for another fault."""


class Stage:
    """A swarm with enough hosts for every cluster and its replacement."""

    def __init__(self, lan: Lan, note: Callable[[str], None], tokens: int = TOKENS) -> None:
        self.lan, self._note, self.tokens = lan, note, tokens
        self.swarm = Swarm(lan)
        self.hosts: dict[str, Host] = {}
        self._hit: tuple[Fault, str, Undo] | None = None
        """What is to be undone."""
        for name in HOSTS:
            machine = self.swarm.machine(name)
            give_disk(machine)
            # Its disks are part of it.
            lan.before |= Snapshot.take([machine])
            self.hosts[name] = self._start(machine).wait_ready()

    def _start(self, machine: Machine) -> Host:
        return self.swarm.start_host(machine, "--grace", str(GRACE_S))

    @property
    def requester(self) -> Machine:
        return self.swarm.requester

    @contextmanager
    def session(self, cluster: Cluster) -> Iterator[Session]:
        """An open session, and what it answers undisturbed."""
        session = Session(self, cluster)
        try:
            session.open()
            yield session
        finally:
            session.close()

    def fresh_s(self, cluster: Cluster) -> float:
        """From a session's bring-up to the first token that it answers with."""
        session = Session(self, cluster)
        try:
            return session.open() + session.first_token_s()
        finally:
            session.close()

    def hit(self, fault: Fault, members: list[str]) -> str:
        """Injects the fault now; whom it has hit."""
        name = members[min(int(fault.member * len(members)), len(members) - 1)]
        host = self.hosts[name]
        everybody = [machine for machine in self.lan.machines if machine is not host.machine]
        hosts = [machine for machine in everybody if machine.name in members]
        others = {"everybody": everybody, "the requester": [self.requester], "its members": hosts}[fault.side]
        self._hit = fault, name, inject(fault.kind, host, self.lan, others)
        return name

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut short amid a fault, nothing stays frozen or confined: it could not be ended."""
        if self._hit is not None:
            (_, _, undo), self._hit = self._hit, None
            undo()

    def heal(self) -> None:
        """The fault is over, and its host lends again. Raises Broken."""
        if self._hit is None:
            return
        (fault, name, undo), self._hit = self._hit, None
        undo()
        process = self.hosts[name].process
        ends = fault.kind in ENDING
        deadline = time.monotonic() + (ENDS_S if ends else SETTLES_S)
        while process.returncode is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if process.returncode is None and ends:
            self._note(f"{name} did not end within {ENDS_S:.0f} s of being asked to")
            process.end_now()
        if process.returncode is None:
            return
        if fault.kind not in ENDING:
            self._note(f"{name} ended of it with {process.returncode}: {process.stderr.strip()[-300:]}")
        self._restart(name)

    def _restart(self, name: str) -> None:
        try:
            self.hosts[name] = self._start(self.hosts[name].machine).wait_ready()
        except (AssertionError, TimeoutError) as error:
            raise Broken(f"{name} does not come back: {error}") from error

    def wait_well(self) -> None:
        """Until every host lends again, or works for the cluster; one that does not is started anew. Raises Broken."""
        if not (missing := self._ill_for(WELL_S)):
            return
        for name in missing:
            self._note(f"{name} does not lend {WELL_S:.0f} s after the last fault, and is started anew")
            self.hosts[name].process.end_now()
            self._restart(name)
        if missing := self._ill_for(WELL_S):
            raise Broken(f"{', '.join(missing)} lend no longer")

    def _ill_for(self, within_s: float) -> list[str]:
        deadline = time.monotonic() + within_s
        while (missing := self._ill()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return missing

    def _ill(self) -> list[str]:
        """Hosts that neither lend to a cluster nor are free."""
        idle = [
            name
            for name, host in self.hosts.items()
            if host.process.returncode is not None or not lends(host)
        ]
        if not idle:
            return []
        peers = self.swarm.peers(self.swarm.meeting_point)
        return [name for name in idle if not (name in peers and peers[name]["free_leases"])]

    def disturb_question(self, fault: Fault, expected: str) -> Outcome:
        """A question with a cluster of its own, at whose text alone one can look as it comes."""
        prompt = PROMPTS[fault.prompts[0]]
        options = ("--raw", "--max-tokens", str(self.tokens), "--context", "2048", "--fresh")
        asking = self.requester.start(
            self.swarm.ask(prompt, *options, *SHAPES[fault.cluster]), grace_s=ANSWER_S
        )
        try:
            try:
                asking.wait_for(r"^ready in", ASK_TIMEOUT_S, stream="stderr")
            except (AssertionError, TimeoutError) as error:
                raise Broken(f"the question's cluster does not come up: {error}") from error
            wanted = max(1, int(fault.at * len(expected)))
            while len(asking.stdout) < wanted and asking.returncode is None:
                time.sleep(0.005)
            came = len(asking.stdout)
            members = sorted(name for name, host in self.hosts.items() if ranks(host))
            at = time.monotonic()
            try:
                victim = self.hit(fault, members)
            except (RuntimeError, IndexError) as error:
                raise Broken(f"no member of the question's cluster can be hit: {error}") from error
            done = asking.wait(ANSWER_S)
        finally:
            if asking.returncode is None:
                asking.end_now()
        times = [when for when, stream, _ in asking.chunks if stream == "stdout"]
        wrong = _wrong_text(done, expected)
        return Outcome.of(
            fault, victim, came, wrong, gap_of(times, at), 1, is_missed=not any(t > at for t in times)
        )

    def text_of(self, prompt: str) -> str:
        """What a question's own cluster says undisturbed."""
        options = ("--raw", "--max-tokens", str(self.tokens), "--context", "2048", "--fresh", "--quiet")
        argv = self.swarm.ask(prompt, *options, *SHAPES["a question's own"])
        try:
            return self.requester.run(argv, timeout_s=ASK_TIMEOUT_S).check().stdout
        except (AssertionError, TimeoutError) as error:
            raise Broken(f"an undisturbed question fails: {error}") from error

    def end(self) -> None:
        """Raises AssertionError where something is left of all that was started here."""
        self.lan.end_all()


class Session:
    """An open session of a `Stage`."""

    def __init__(self, stage: Stage, cluster: Cluster) -> None:
        self._stage, self.cluster = stage, cluster
        self._machine = stage.requester
        self._expected: dict[str, Ids] = {}

    def open(self) -> float:
        """Seconds that it says it took. Raises Broken."""
        options = (
            "--model",
            TINY.name,
            "--name",
            NAME,
            "--port",
            str(PORT),
            "--idle",
            "0",
            "--context",
            "2048",
        )
        argv = self._stage.swarm.command("session open", *options, "--sequences", "5", *SHAPES[self.cluster])
        try:
            done = self._machine.run(argv, timeout_s=ASK_TIMEOUT_S)
        except TimeoutError as error:
            raise Broken(f"the session does not open: {error}") from error
        found = re.search(r"^ready in ([\d.]+) s", done.stderr, re.MULTILINE)
        if done.returncode or found is None:
            raise Broken(f"the session does not open: {done.stderr.strip()[-500:]}")
        return float(found[1])

    def close(self) -> None:
        self._machine.run(["edgellm", "session", "close", NAME])

    def described(self) -> dict[str, Any]:
        """What `session show` says; empty where there is no session."""
        done = self._machine.run(["edgellm", "session", "show", NAME, "--json"])
        described: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return described

    def stream(self, prompt: str, tokens: int) -> Stream:
        return Stream(self._machine, PORT, prompt, tokens, TINY.name)

    def first_token_s(self) -> float:
        stream = self.stream(PROMPTS[0], 1)
        answer = stream.wait()
        if not answer.parts:
            raise Broken(f"no first token: {answer.failure}")
        return answer.parts[0][0] - stream.asked_at

    def expected(self, prompt: str) -> Ids:
        """What it answers undisturbed; asked for once."""
        if prompt not in self._expected:
            answer = self.stream(prompt, self._stage.tokens).wait()
            if wrong := wrong_of(answer, answer.ids):
                raise Broken(f"an undisturbed answer {wrong}")
            if len(answer.ids) != self._stage.tokens:
                raise Broken(f"an undisturbed answer has {len(answer.ids)} tokens")
            self._expected[prompt] = answer.ids
        return self._expected[prompt]

    def several_at_once(self) -> list[str]:
        """What is wrong with undisturbed answers of several requests at once; fills `expected`."""
        for prompt in PROMPTS:
            self.expected(prompt)
        streams = [(prompt, self.stream(prompt, self._stage.tokens)) for prompt in PROMPTS[:4]]
        found = [wrong_of(stream.wait(), self.expected(prompt)) for prompt, stream in streams]
        return [wrong for wrong in found if wrong]

    def wait_ready(self) -> None:
        """Until it answers, and has its spare. Raises Broken."""
        deadline = time.monotonic() + WELL_S
        while True:
            described = self.described()
            spares = described.get("spares")
            has_spare = "spare" not in self.cluster or spares is None or bool(spares)
            if described.get("state") == "ready" and has_spare:
                return
            if time.monotonic() > deadline or str(described.get("state", "failed")).startswith(
                ("failed", "crashed")
            ):
                raise Broken(f"the session is {described.get('state', 'gone')}")
            time.sleep(_POLL_S)

    def disturb(self, fault: Fault) -> Outcome:
        """Answers, a fault amid them, and what came of it."""
        described = self.described()
        members = members_of(described)
        tokens = self._stage.tokens
        asked = [(PROMPTS[number], self.stream(PROMPTS[number], tokens)) for number in fault.prompts]
        asking = self._ask(PROMPTS[fault.prompts[0]]) if fault.with_ask else None
        came = asked[0][1].wait_tokens(max(1, int(fault.at * tokens)), ASK_TIMEOUT_S)
        at = time.monotonic()
        try:
            victim = self._stage.hit(fault, members)
        except RuntimeError as error:
            raise Broken(str(error)) from error
        with ThreadPoolExecutor(len(asked)) as threads:
            answers: list[Answer] = list(threads.map(lambda pair: pair[1].wait(), asked))
        wrong = [
            wrong_of(answer, self.expected(prompt))
            for (prompt, _), answer in zip(asked, answers, strict=True)
        ]
        if asking is not None:
            wrong.append(_wrong_ask(asking, self.expected(PROMPTS[fault.prompts[0]])))
        gaps = [gap_of([when for when, _ in answer.parts], at) for answer in answers]
        known = [gap for gap in gaps if gap is not None]
        return Outcome.of(
            fault,
            victim,
            came,
            "; ".join(each for each in wrong if each),
            max(known) if known else None,
            len(wrong),
            recoveries=self.described().get("recoveries", 0) - described.get("recoveries", 0),
            is_missed=all(answer.is_whole and answer.came_before(at) == tokens for answer in answers),
        )

    def _ask(self, prompt: str) -> Process:
        tokens = str(self._stage.tokens)
        argv = ["edgellm", "ask", prompt, "--raw", "--json", "--session", NAME, "--temperature", "0"]
        return self._machine.start([*argv, "--max-tokens", tokens], grace_s=ANSWER_S)


def members_of(described: Mapping[str, Any]) -> list[str]:
    """A session's hosts, in the order of their layers. Raises Broken."""
    route = str(described.get("route", ""))
    names = re.findall(r"(\S+) layers", route)
    if not names:
        raise Broken(f"the session's route is {route!r}")
    return names


def _wrong_ask(asking: Process, expected: Ids) -> str:
    try:
        done = asking.wait(ANSWER_S)
    except TimeoutError:
        asking.end_now()
        return "edgellm ask did not end"
    if done.returncode:
        return f"edgellm ask ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    answer: Mapping[str, Any] = json.loads(done.stdout)
    ids = answer["token_ids"]
    # It may end by itself, which the streams may not.
    return difference(ids, expected[: len(ids)] if answer["finish_reason"] == "stop" else expected)


def _wrong_text(done: Completed, expected: str) -> str:
    if done.returncode:
        return f"edgellm ask ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    return difference(done.stdout.encode(), expected.encode()).replace("token", "byte")
