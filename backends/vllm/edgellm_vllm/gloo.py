"""One gloo device for all process groups of a rank.

vLLM makes about seventeen groups for each rank, most of them of one member or never used between steps, and torch gives each a
device of its own: a thread that wakes a hundred times a second to see whether anything has come.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import Any

from torch.distributed import ProcessGroupGloo

_original = ProcessGroupGloo.__init__


def share_one_device() -> None:
    """For every gloo group that this process makes from now on."""
    ProcessGroupGloo.__init__ = _with_shared_device


def _with_shared_device(
    self: Any, store: Any, rank: int, size: int, timeout: timedelta = timedelta(minutes=30)
) -> None:
    options: Any = ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [_shared_device()]
    _original(self, store, rank, size, options)


@functools.cache
def _shared_device() -> Any:
    # As torch itself chooses it; where the variable names several, each group would be spread over all of them.
    if interface := os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]:
        return ProcessGroupGloo.create_device(interface=interface)
    return ProcessGroupGloo.create_default_device()
