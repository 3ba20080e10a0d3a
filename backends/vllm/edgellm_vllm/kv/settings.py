"""What a worker's processes are told about KV sharing. In the environment, because Ray makes some of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from edgellm.engine.backend import KvSharing, MemberSpec

CHUNK_TOKENS = 64
"""The unit that is shared: what is left of a prompt after whole chunks is computed. vLLM's block on CPU; a multiple of its
block on CUDA. LMCache's own default of 256 leaves twice as much to compute and saves nothing measurable."""

SERVER_PORT = 6390
"""On the member's own address, which only the cluster's members reach, as they do its Ray."""

_SETTINGS = "EDGELLM_VLLM_KV"
_PROFILES = "EDGELLM_VLLM_KV_PROFILES"
_HEAD = "EDGELLM_VLLM_KV_HEAD"
# Of an overlay, in a cell; its only other end is the cluster's members.
_FENCED_INTERFACE = "edge0"


@dataclass(frozen=True)
class KvSettings:
    """`edgellm.engine.backend.KvSharing`, and where the ranks of this cell leave their profiles."""

    sharing: KvSharing
    profiles: str = ""
    """A directory of this member alone; empty until the member has made one."""


def environment(member: MemberSpec) -> Mapping[str, str]:
    """For a member's processes, nothing where it shares nothing; the head's learn no more than that they may share.

    Only a cell with a network of its own shares: whoever reaches LMCache's port can run code by it, and on a network that
    others use, unlike Ray's, it has no token to ask for.
    """
    if member.kv is None or member.interface != _FENCED_INTERFACE:
        return {}
    return {_HEAD: "1"} if member.role == "head" else {_SETTINGS: json.dumps(asdict(member.kv))}


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
