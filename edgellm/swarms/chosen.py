"""In which swarm a command works: the one that was said, else EDGELLM_SWARM's, else the only one joined, else the open one.

Cheap to import: a question to an open session asks it, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgellm.discovery.bootstrap import bootstrap_peers, require_bootstrap
from edgellm.errors import UsageError
from edgellm.paths import Paths

if TYPE_CHECKING:
    from edgellm.swarms.store import SwarmHome

ENVIRONMENT = "EDGELLM_SWARM"
OPEN = "open"
"""What the swarm without members is called on the command line; "" everywhere else."""
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def joined_names(paths: Paths) -> list[str]:
    """What this user calls the swarms that this machine is in, sorted."""
    top = paths.state / "swarms"
    found = sorted(top.iterdir()) if top.exists() else []
    return [path.name for path in found if NAME.fullmatch(path.name) and (path / "swarm.json").exists()]


def chosen_name(said: str | None, paths: Paths) -> str:
    """ "" for the open swarm. Raises UsageError for a swarm that is not known, or where several could be meant."""
    name = said or os.environ.get(ENVIRONMENT) or ""
    if name == OPEN:
        return ""
    names = joined_names(paths)
    if name:
        if name not in names:
            raise not_joined(name, names)
        return name
    if len(names) > 1:
        raise UsageError(
            f"this machine is in several swarms: {', '.join(names)}",
            remedy=f"say which one: --swarm {names[0]}, or --swarm open, or set {ENVIRONMENT}",
        )
    return names[0] if names else ""


def not_joined(name: str, names: Sequence[str]) -> UsageError:
    return UsageError(
        f"this machine is in no swarm called {name!r} (it is in: {', '.join(names) or 'none'})",
        remedy="join it with an invite: edgellm swarm join TOKEN; or say --swarm open",
    )


def chosen_swarm(said: str | None, paths: Paths) -> SwarmHome | None:
    """As `chosen_name`; None is the open swarm."""
    return swarm_called(chosen_name(said, paths), paths)


def swarm_called(name: str, paths: Paths) -> SwarmHome | None:
    """As it was chosen before: "" is the open swarm. Raises UsageError for a swarm that is not known."""
    if not name:
        return None
    from edgellm.swarms.store import swarm_home

    return swarm_home(paths, name)


def known_peers(said: Sequence[str], home: SwarmHome | None, paths: Paths) -> tuple[str, ...]:
    """Addresses to join the swarm through, as `edgellm.discovery.bootstrap.bootstrap_peers`; each swarm remembers its own.

    Where none is known, those at which a node of this machine served the swarm last.
    """
    if home is None:
        return bootstrap_peers(said, paths.state)
    return bootstrap_peers(said, home.directory) or home.addresses()


def require_peers(
    said: Sequence[str], home: SwarmHome | None, paths: Paths, *, mdns: bool
) -> tuple[str, ...]:
    """As `known_peers`; raises UsageError when there is none and multicast is not to find any either."""
    if home is None:
        return require_bootstrap(said, paths.state, mdns=mdns)
    if not (found := known_peers(said, home, paths)) and not mdns:
        raise UsageError(
            f"no peer of swarm {home.name} is known yet",
            remedy=f"start one: edgellm host --swarm {home.name} …, or say where one is: --bootstrap ADDRESS",
        )
    return found
