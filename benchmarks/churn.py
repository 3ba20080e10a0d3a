"""A swarm's hosts, how long they stay and how they leave, and what it is asked: drawn from a seed. Pure.

Lifetimes are Weibull-distributed with a shape well below 1, as Stutzbach and Rejaie found for sessions in Gnutella, BitTorrent
and Kad ("Understanding Churn in Peer-to-Peer Networks", IMC 2006): many stay for minutes, a few for days. Who is there when
the simulation begins has been there for a while: its remaining time is drawn from the equilibrium of the same distribution.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgellm.types.model import ModelShape

GIB = 1 << 30
SHAPE = 0.5
"""Of the lifetimes."""

Leaving = Literal["drain", "crash", "freeze"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of machine that people lend."""

    name: str
    memory_bytes: int
    bandwidth_bytes_s: float
    flops: float
    share: float


KINDS = (
    Kind("RTX 3060 12 GB", 11 * GIB, 360e9, 50e12, 0.30),
    Kind("RTX 4070 Ti 16 GB", 15 * GIB, 670e9, 160e12, 0.25),
    Kind("RTX 3090 24 GB", 22 * GIB, 930e9, 140e12, 0.25),
    Kind("RTX 4090 24 GB", 22 * GIB, 1000e9, 330e12, 0.15),
    Kind("RTX A6000 48 GB", 46 * GIB, 760e9, 300e12, 0.05),
)


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    shape: ModelShape
    offered: float
    """The share of hosts that hold it."""
    asked: float
    """The share of questions that are for it."""


def _model(name: str, layers: int, gigabytes: float, heads: int, offered: float, asked: float) -> Model:
    ends = int(gigabytes * 0.03e9)
    layer = int((gigabytes * 1e9 - 2 * ends) / layers)
    shape = ModelShape("LlamaForCausalLM", (layer,) * layers, ends, ends, heads, 8, 128, 2, 8192)
    return Model(name, shape, offered, asked)


MODELS = (
    _model("small-8b", 32, 16.0, 32, 0.16, 0.18),
    _model("small-8b-code", 32, 16.0, 32, 0.12, 0.12),
    _model("small-4b", 36, 8.0, 32, 0.10, 0.12),
    _model("middle-14b", 48, 29.0, 40, 0.14, 0.14),
    _model("middle-14b-reason", 48, 29.0, 40, 0.10, 0.10),
    _model("middle-24b", 40, 47.0, 32, 0.10, 0.10),
    _model("large-32b", 64, 65.0, 40, 0.12, 0.10),
    _model("large-32b-4bit", 64, 20.0, 40, 0.08, 0.08),
    _model("huge-70b-4bit", 80, 40.0, 64, 0.08, 0.06),
)
"""The last columns: how often hosts hold it, and how often it is asked for."""


@dataclass(frozen=True, slots=True)
class HostLife:
    """One host from its coming to its end."""

    index: int
    kind: Kind
    models: tuple[str, ...]
    comes_at: float
    leaves_at: float
    leaving: Leaving
    grace_s: float
    """What it gives running leases when it drains."""
    thaws_after_s: float | None
    """A frozen one that comes back, and when; None: it is gone for good."""


@dataclass(frozen=True, slots=True)
class Request:
    index: int
    asked_at: float
    requester: int
    model: str
    prompt: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    hosts: tuple[HostLife, ...]
    requests: tuple[Request, ...]
    models: tuple[Model, ...]
    requesters: int
    lasts_s: float


def make_scenario(
    seed: int,
    *,
    peers: int,
    hours: float,
    leaving_each_hour: float,
    requests_each_hour: float,
    requesters: int,
    models: Sequence[Model] = MODELS,
) -> Scenario:
    """Of the peers that are there at an instant, a share `leaving_each_hour` is gone an hour later; as many come."""
    chance = random.Random(seed)
    scale_s = lifetime_scale_s(leaving_each_hour)
    lasts_s = hours * 3600
    hosts = [_host(chance, models, index, 0.0, _remaining_s(chance, scale_s)) for index in range(peers)]
    coming_each_s = peers / (scale_s * math.gamma(1 + 1 / SHAPE))
    at = chance.expovariate(coming_each_s)
    while at < lasts_s:
        hosts.append(_host(chance, models, len(hosts), at, chance.weibullvariate(scale_s, SHAPE)))
        at += chance.expovariate(coming_each_s)
    requests = []
    at = chance.expovariate(requests_each_hour / 3600)
    while at < lasts_s:
        requests.append(_request(chance, models, len(requests), at, requesters))
        at += chance.expovariate(requests_each_hour / 3600)
    return Scenario(seed, tuple(hosts), tuple(requests), tuple(models), requesters, lasts_s)


def lifetime_scale_s(leaving_each_hour: float) -> float:
    """The scale of lifetimes at which so many of those that are there at an instant are gone an hour later."""
    low, high = 1.0, 1e9
    while high - low > 1:
        middle = (low + high) / 2
        if gone_within(3600, middle) > leaving_each_hour:
            low = middle
        else:
            high = middle
    return high


def gone_within(seconds: float, scale_s: float) -> float:
    """The share of those that are there at an instant, in equilibrium, that is gone `seconds` later.

    The integral of the survival function over its mean (renewal theory), by Simpson's rule.
    """
    steps = 2000
    width = seconds / steps

    def survival(at: float) -> float:
        return math.exp(-((at / scale_s) ** SHAPE))

    inner = sum((4 if index % 2 else 2) * survival(index * width) for index in range(1, steps))
    integral = (survival(0) + inner + survival(seconds)) * width / 3
    return integral / (scale_s * math.gamma(1 + 1 / SHAPE))


def _remaining_s(chance: random.Random, scale_s: float) -> float:
    # A lifetime that an instant falls into is drawn by its length; the instant is anywhere in it.
    whole_s = scale_s * chance.gammavariate(1 + 1 / SHAPE, 1.0) ** (1 / SHAPE)
    return chance.random() * whole_s


def _host(
    chance: random.Random, models: Sequence[Model], index: int, comes_at: float, stays_s: float
) -> HostLife:
    kind = chance.choices(KINDS, [kind.share for kind in KINDS])[0]
    first = chance.choices(models, [model.offered for model in models])[0].name
    second = chance.choice(models).name if chance.random() < 0.2 else first
    leaving: Leaving = chance.choices(("drain", "crash", "freeze"), (0.5, 0.35, 0.15))[0]
    return HostLife(
        index=index,
        kind=kind,
        models=tuple(dict.fromkeys((first, second))),
        comes_at=comes_at,
        leaves_at=comes_at + stays_s,
        leaving=leaving,
        grace_s=chance.choice((0.0, 30.0, 30.0, 60.0, 120.0)),
        thaws_after_s=chance.uniform(2, 900) if leaving == "freeze" and chance.random() < 0.5 else None,
    )


def _request(
    chance: random.Random, models: Sequence[Model], index: int, at: float, requesters: int
) -> Request:
    return Request(
        index=index,
        asked_at=at,
        requester=chance.randrange(requesters),
        model=chance.choices(models, [model.asked for model in models])[0].name,
        prompt=tuple(
            chance.randrange(32_000) for _ in range(min(4000, int(chance.lognormvariate(4.5, 1.2)) + 1))
        ),
        max_tokens=min(3000, int(chance.lognormvariate(6.0, 0.9)) + 1),
    )
