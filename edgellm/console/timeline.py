"""Where the time of one answer went, as the pages draw it. Pure.

Places and lengths along the axis are in percent of its width, so that a drawing is as wide as its page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgellm.console import views
from edgellm.console.pipeline import HUES

MOST_TICKS = 240
"""More are narrower than a pixel on a telephone; then neighbours share one, as high as the longest gap among them."""
WORTH_SAYING_S = 0.0005
MARKS = 5
"""About so many numbers along an axis."""


def seconds(value: float) -> str:
    """A duration with as many digits as matter: "0.4 ms", "38 ms", "1.62 s", "75 s"."""
    if value < 0.00995:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s" if value < 59.95 else f"{value:.0f} s"


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a row."""

    label: str
    kind: str
    """ "queue", "prefill", "decode", "stage" or "network"."""
    seconds: float
    x: float
    width: float
    hue: int = 0

    @property
    def title(self) -> str:
        return f"{self.label}: {seconds(self.seconds)}"


@dataclass(frozen=True, slots=True)
class Tick:
    """A piece of the answer, at the time at which it left the engine; as high as the wait for it was long."""

    x: float
    height: float
    title: str
    first: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Key:
    """What a colour means, and how long that took in all."""

    label: str
    kind: str
    seconds: float
    share: float
    """Of the whole answer, in percent."""
    hue: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """A row of the table of an answer's pieces."""

    number: int
    at_s: float
    wait_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where the time of one answer went."""

    total_s: float
    phases: tuple[Bar, ...]
    """Waiting, prefill and decode, where they were."""
    hops: tuple[Bar, ...]
    """What each stage computed, and what none did; summed up within each phase, in the order of the pipeline."""
    ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    keys: tuple[Key, ...]
    gaps: tuple[Gap, ...]
    longest_wait_s: float | None
    """Between two pieces."""
    usual_wait_s: float | None
    """The median."""
    sentence: str
    """All of it in words."""


def timeline(timings: views.Timings) -> Timeline | None:
    """The drawing of an answer's times; None while there are none."""
    times = sorted(max(0.0, at) for at in timings.token_s)
    queue_s, prefill_s, decode_s = _lengths(timings, times)
    total_s = max(queue_s + prefill_s + decode_s, times[-1] if times else 0.0)
    if total_s <= 0:
        return None
    phases = []
    hops: list[Bar] = []
    begin_s = 0.0
    for label, kind, length_s in (
        ("waiting", "queue", queue_s),
        ("prefill", "prefill", prefill_s),
        ("decode", "decode", decode_s),
    ):
        if length_s > 0:
            bar = Bar(label, kind, length_s, 100 * begin_s / total_s, 100 * length_s / total_s)
            phases.append(bar)
            hops += [bar] if kind == "queue" else _hops(timings, bar)
        begin_s += length_s
    gaps = tuple(
        Gap(number, at, at - before) for number, (before, at) in enumerate(pairwise([0.0, *times]), start=1)
    )
    waits = sorted(gap.wait_s for gap in gaps[1:])
    return Timeline(
        total_s=total_s,
        phases=tuple(phases),
        hops=tuple(hops),
        ticks=_ticks(gaps, total_s),
        marks=_marks(total_s),
        keys=_keys(timings, hops, total_s),
        gaps=gaps,
        longest_wait_s=waits[-1] if waits else None,
        usual_wait_s=waits[len(waits) // 2] if waits else None,
        sentence=_sentence(timings, total_s, phases, hops),
    )


def _lengths(timings: views.Timings, times: Sequence[float]) -> tuple[float, float, float]:
    """Of waiting, prefill and decode. Engines account for an answer when it ends: of one that was stopped, decode is what went
    by until its last piece.
    """
    queue_s, prefill_s = max(0.0, timings.queue_s or 0.0), max(0.0, timings.prefill_s or 0.0)
    if timings.decode_s is not None:
        return queue_s, prefill_s, max(0.0, timings.decode_s)
    return queue_s, prefill_s, max(0.0, times[-1] - queue_s - prefill_s) if times and prefill_s else 0.0


def stage_label(stage: views.StageTiming) -> str:
    return stage.name or (f"…{stage.peer[-6:]}" if stage.peer else f"stage {stage.stage + 1}")


def _hops(timings: views.Timings, phase: Bar) -> list[Bar]:
    parts: list[tuple[str, str, float, int]] = []
    for stage in timings.stages:
        length_s = (stage.prefill_s if phase.kind == "prefill" else stage.decode_s) or 0.0
        parts.append((f"{stage_label(stage)}, {phase.label}", "stage", length_s, stage.stage % HUES))
    network_s = (
        timings.network_s.prefill_s if phase.kind == "prefill" else timings.network_s.decode_s
    ) or 0.0
    parts.append((f"network and scheduling, {phase.label}", "network", network_s, 0))
    # Stages that work on several answers at once may have computed for longer than this phase took.
    per_second = phase.width / max(phase.seconds, sum(length_s for _, _, length_s, _ in parts))
    bars = []
    x = phase.x
    for label, kind, length_s, hue in parts:
        if length_s > 0:
            bars.append(Bar(label, kind, length_s, x, length_s * per_second, hue))
            x += length_s * per_second
    return bars


def _ticks(gaps: Sequence[Gap], total_s: float) -> tuple[Tick, ...]:
    if not gaps:
        return ()
    longest_s = max((gap.wait_s for gap in gaps[1:]), default=0.0) or 1.0
    ticks = [
        Tick(100 * gaps[0].at_s / total_s, 100.0, f"first token after {seconds(gaps[0].at_s)}", first=True)
    ]
    for group in _groups(gaps[1:], MOST_TICKS):
        slowest = max(group, key=lambda gap: gap.wait_s)
        numbers = f"{group[0].number}" if len(group) == 1 else f"{group[0].number} to {group[-1].number}"
        title = f"piece {numbers} at {seconds(slowest.at_s)}, {seconds(slowest.wait_s)} after the one before"
        ticks.append(Tick(100 * slowest.at_s / total_s, max(3.0, 100 * slowest.wait_s / longest_s), title))
    return tuple(ticks)


def _groups(gaps: Sequence[Gap], most: int) -> Iterator[Sequence[Gap]]:
    size = max(1, -(-len(gaps) // most))
    for begin in range(0, len(gaps), size):
        yield gaps[begin : begin + size]


def _marks(total_s: float) -> tuple[Mark, ...]:
    """At round times; the last one is not so near to the end that its number would stand out of the drawing."""
    exact = total_s / MARKS
    power = 1e-6
    while power * 10 <= exact:
        power *= 10
    step_s = next((power * factor for factor in (1, 2, 5) if power * factor >= exact), power * 10)
    count = int(total_s * 0.93 / step_s)
    return tuple(
        Mark(100 * number * step_s / total_s, _round_time(number * step_s)) for number in range(count + 1)
    )


def _round_time(value: float) -> str:
    if not value:
        return "0"
    return f"{value * 1000:g} ms" if value < 0.9995 else f"{value:g} s"


def _keys(timings: views.Timings, hops: Sequence[Bar], total_s: float) -> tuple[Key, ...]:
    def key(label: str, kind: str, length_s: float, hue: int = 0) -> Key:
        return Key(label, kind, length_s, 100 * length_s / total_s, hue)

    waits = (hop.seconds for hop in hops if hop.kind == "queue")
    keys = [key("waiting", "queue", wait_s) for wait_s in waits if wait_s >= WORTH_SAYING_S]
    keys += [
        key(
            stage_label(stage),
            "stage",
            (stage.prefill_s or 0.0) + (stage.decode_s or 0.0),
            stage.stage % HUES,
        )
        for stage in timings.stages
        if stage.prefill_s is not None or stage.decode_s is not None
    ]
    if network_s := sum(hop.seconds for hop in hops if hop.kind == "network"):
        keys.append(key("network and scheduling", "network", network_s))
    return tuple(keys)


def _sentence(timings: views.Timings, total_s: float, phases: Sequence[Bar], hops: Sequence[Bar]) -> str:
    what = {
        "queue": "waiting for its turn",
        "prefill": "reading the prompt",
        "decode": "writing the answer",
    }
    parts = [f"{seconds(bar.seconds)} {what[bar.kind]}" for bar in phases if bar.seconds >= WORTH_SAYING_S]
    text = f"{seconds(total_s)} in all" + (f": {_listed(parts)}." if parts else ".")
    computed_s = sum(hop.seconds for hop in hops if hop.kind == "stage")
    network_s = sum(hop.seconds for hop in hops if hop.kind == "network")
    is_complete = timings.network_s.decode_s is not None or not any(bar.kind == "decode" for bar in phases)
    if computed_s and network_s and is_complete:
        share = round(100 * network_s / (computed_s + network_s))
        text += f" Of the work, {share} % was network and scheduling."
    elif not computed_s:
        text += " How much of it each stage computed is not known."
    if timings.cached_prompt_tokens:
        text += (
            f" {timings.cached_prompt_tokens} of {timings.prompt_tokens} prompt tokens were computed before."
        )
    return text


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
