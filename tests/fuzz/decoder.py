"""What a decoder is, and whether it takes an input as it should.

A decoder may raise its own errors and nothing else, must end within `MAX_INPUT_S`, and must keep nothing of what it read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from edgellm.errors import EdgeError

MAX_INPUT_S = 1.0
EARLY = (EdgeError, DecodeError)
"""Errors of what is a protobuf before it is anything of ours."""


@dataclass(frozen=True)
class Decoder:
    name: str
    decode: Callable[[bytes], object]
    corpus: Callable[[], list[bytes]] = field(default=lambda: [b""])
    own_errors: tuple[type[BaseException], ...] = (EdgeError,)
    share: float = 1.0
    """Of the time that each decoder gets."""


def run_one(each: Decoder, data: bytes) -> float:
    """Decodes one input; the CPU time it took, in seconds. Raises what is no error of the decoder's own."""
    began = time.process_time()
    try:
        each.decode(data)
    except each.own_errors:
        pass
    except BaseExceptionGroup as group:
        _, strange = group.split(each.own_errors)
        if strange is not None:
            raise
    return time.process_time() - began
