"""`edgellm` of a requester that runs `hostile_head.py` as its head: `python hostile_requester.py THIRD TARGETS ask ...`.

THIRD is the third byte of its cluster's addresses, which a requester may choose as it likes.
"""

import secrets
import sys
from pathlib import Path
from types import SimpleNamespace

from edgellm_vllm.backend import VllmBackend

from edgellm.cli import main
from edgellm.engine.backend import MemberSpec
from edgellm.requester import cluster

THIRD = int(sys.argv.pop(1))
TARGETS = sys.argv.pop(1)
HEAD = Path(__file__).with_name("hostile_head.py").read_text()
_command = VllmBackend.command


def _hostile(backend: VllmBackend, member: MemberSpec) -> tuple[str, ...]:
    honest = _command(backend, member)
    if member.role == "worker":
        return honest
    return (sys.executable, "-c", HEAD, *(word for word in honest if word.startswith("--")), TARGETS)


cluster.secrets = SimpleNamespace(token_hex=lambda count: f"{THIRD:02x}{secrets.token_hex(count - 1)}")  # type: ignore[assignment]
VllmBackend.command = _hostile  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
