"""What a worker's processes are told about KV sharing. In the environment, because Ray makes some of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from edgellm.engine.backend import KvSharing

CHUNK_TOKENS = 128
"""The unit that is shared: what is left of a prompt after whole chunks is computed. vLLM's block on CPU; a multiple of its
block on CUDA. LMCache's own default of 256 leaves twice as much to compute and saves nothing measurable."""

SERVER_PORT = 6390
"""On the member's own address, which only the cluster's members reach, as they do its Ray."""

_SETTINGS = "EDGELLM_VLLM_KV"
_PROFILES = "EDGELLM_VLLM_KV_PROFILES"
_HEAD = "EDGELLM_VLLM_KV_HEAD"


@dataclass(frozen=True)
class KvSettings:
    """`edgellm.engine.backend.KvSharing`, and where the ranks of this cell leave their profiles."""

    sharing: KvSharing
    profiles: str = ""
    """A directory of this member alone; empty until the member has made one."""


def environment(sharing: KvSharing, role: str) -> Mapping[str, str]:
    """For a member's processes; the head's learn no more than that they import a connector."""
    return {_HEAD: "1"} if role == "head" else {_SETTINGS: json.dumps(asdict(sharing))}


def profiles_variable(directory: str) -> Mapping[str, str]:
    """What a member adds for its children."""
    return {_PROFILES: directory}


def settings_from(environment: Mapping[str, str]) -> KvSettings | None:
    """None for a member of a cluster that shares nothing, and for a head."""
    text = environment.get(_SETTINGS)
    if not text:
        return None
    return KvSettings(KvSharing(**json.loads(text)), environment.get(_PROFILES, ""))


def may_share(environment: Mapping[str, str]) -> bool:
    """Whether this process belongs to a cluster that may share, so that it imports what that needs ahead."""
    return bool(environment.get(_HEAD) or environment.get(_SETTINGS))
