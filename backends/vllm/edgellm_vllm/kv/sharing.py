"""The head's decision whether this load shares its KV cache, and vLLM's configuration for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edgellm_vllm.kv.server import answers
from edgellm_vllm.kv.settings import SERVER_PORT

# Servers start with their members and take 3 to 8 s, less than what the head has imported by now.
_SERVERS_TIMEOUT_S = 15.0
_MESSAGE_TIMEOUT_S = 5.0
"""vLLM stands still for as long when a server dies before a load or a store (LMCache's default: 300 s)."""
_HEARTBEAT_S = 3.0


def silent_members(addresses: Sequence[str], timeout_s: float = _SERVERS_TIMEOUT_S) -> list[str]:
    """Which of these members have no LMCache server that answers in time."""
    deadline = time.monotonic() + timeout_s
    with ThreadPoolExecutor(len(addresses)) as pool:
        there = pool.map(lambda address: answers(address, deadline - time.monotonic()), addresses)
    return [address for address, answered in zip(addresses, there, strict=True) if not answered]


def transfer_options(addresses: Sequence[str]) -> dict[str, Any]:
    """For vLLM's `KVTransferConfig`, with the stages' members in order."""
    return {
        "kv_connector": "StageConnector",
        "kv_connector_module_path": "edgellm_vllm.kv.connector",
        "kv_role": "kv_both",
        # The default ends the engine core.
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "lmcache.mp.server_urls": [f"tcp://{address}:{SERVER_PORT}" for address in addresses],
            "lmcache.mp.mq_timeout": _MESSAGE_TIMEOUT_S,
            "lmcache.mp.heartbeat_interval": _HEARTBEAT_S,
            # A resumed answer finds what was generated before, too.
            "lmcache.mp.save_decode_cache": True,
        },
    }
