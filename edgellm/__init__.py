"""EdgeLLM runs language models on machines that others lend.

    from edgellm import LLM, SamplingParams

    with LLM("Qwen/Qwen3-32B", bootstrap=["/ip4/192.168.1.7/tcp/4001/p2p/12D3KooW…"]) as llm:
        for piece in llm.stream("The sky is blue because", SamplingParams(max_tokens=200)):
            print(piece.text, end="")

docs/python.md has the rest. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgellm.client.async_llm import AsyncLLM, AsyncStream
    from edgellm.client.causal_lm import AutoDistributedModelForCausalLM, DistributedModelForCausalLM
    from edgellm.client.connection import Stream
    from edgellm.client.llm import LLM
    from edgellm.client.options import SessionOptions
    from edgellm.client.results import Completion, Hop
    from edgellm.client.sampling import SamplingParams
    from edgellm.client.swarm import AsyncSwarm, Model, Peer, Swarm
    from edgellm.errors import (
        DiscoveryError,
        EdgeError,
        EngineError,
        HostLost,
        LeaseError,
        ModelError,
        NetworkError,
        PlanError,
        SessionError,
        UsageError,
    )
    from edgellm.types.request import Message, Piece

__all__ = [
    "LLM",
    "AsyncLLM",
    "AsyncStream",
    "AsyncSwarm",
    "AutoDistributedModelForCausalLM",
    "Completion",
    "DiscoveryError",
    "DistributedModelForCausalLM",
    "EdgeError",
    "EngineError",
    "Hop",
    "HostLost",
    "LeaseError",
    "Message",
    "Model",
    "ModelError",
    "NetworkError",
    "Peer",
    "Piece",
    "PlanError",
    "SamplingParams",
    "SessionError",
    "SessionOptions",
    "Stream",
    "Swarm",
    "UsageError",
    "__version__",
]

_HOMES = {
    "client.async_llm": ("AsyncLLM", "AsyncStream"),
    "client.causal_lm": ("AutoDistributedModelForCausalLM", "DistributedModelForCausalLM"),
    "client.connection": ("Stream",),
    "client.llm": ("LLM",),
    "client.options": ("SessionOptions",),
    "client.results": ("Completion", "Hop"),
    "client.sampling": ("SamplingParams",),
    "client.swarm": ("AsyncSwarm", "Model", "Peer", "Swarm"),
    "errors": (
        "DiscoveryError",
        "EdgeError",
        "EngineError",
        "HostLost",
        "LeaseError",
        "ModelError",
        "NetworkError",
        "PlanError",
        "SessionError",
        "UsageError",
    ),
    "types.request": ("Message", "Piece"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
