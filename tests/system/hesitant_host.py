"""`edgellm host` that thinks for three seconds before it grants a lease, so that somebody can die meanwhile."""

import trio

from edgellm.cli import main
from edgellm.leasing.lease import Lease
from edgellm.leasing.serve import Doorway, LeaseServer, _Conversation

HESITATION_S = 3.0
_grant = LeaseServer._converse


async def _hesitate(server: LeaseServer, conversation: _Conversation, lease: Lease, door: Doorway) -> None:
    await trio.sleep(HESITATION_S)
    await _grant(server, conversation, lease, door)


LeaseServer._converse = _hesitate  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
