"""How a host is started, what it says, and how it ended. Pure."""

from __future__ import annotations

import re

from edgellm.console import views
from edgellm.console.membership import Place

GRACE_S = 5.0
"""What running leases get when a host is stopped."""
_JOIN = re.compile(r"--bootstrap (\S+/p2p/(\S+))")


def noted(host: views.Host, line: str) -> views.Host:
    """A host after one more line of what it says. Pure."""
    if line.startswith("error:"):
        failure = views.Problem(message=line.removeprefix("error:").strip(), type="host")
        return host.model_copy(update={"detail": line, "failure": failure})
    if line.startswith("try:") and host.failure is not None:
        remedy = line.removeprefix("try:").strip()
        return host.model_copy(update={"failure": host.failure.model_copy(update={"remedy": remedy})})
    if (found := _JOIN.search(line)) is not None:
        return host.model_copy(
            update={"state": "ready", "address": found[1], "peer": found[2], "detail": "lends"}
        )
    if line.startswith("draining") and host.state in ("ready", "paused"):
        return host.model_copy(update={"state": "stopping", "detail": line})
    if line.startswith("paused") and host.state == "ready":
        return host.model_copy(update={"state": "paused", "detail": line})
    if line.startswith("lends again") and host.state == "paused":
        return host.model_copy(update={"state": "ready", "detail": "lends"})
    # Once it is ready, what it is at is told by the swarm.
    return host if host.state in ("ready", "paused") else host.model_copy(update={"detail": line})


def ended(host: views.Host, status: int) -> views.Host:
    """A host whose process has ended. Pure."""
    failure = host.failure
    if failure is None and status != 0 and host.state != "stopping":
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        said = f": {host.detail}" if host.detail and host.state == "starting" else ""
        failure = views.Problem(message=f"{host.name} {how}{said}", remedy="see its log", type="host")
    return host.model_copy(update={"state": "ended", "status": status, "failure": failure})


def command_of(wanted: views.NewHost, name: str, place: Place, isolation: str) -> list[str]:
    """The words after `edgellm host`. Pure."""
    words = [
        f"--model={wanted.model}",
        f"--name={name}",
        f"--memory={wanted.memory_bytes}",
        f"--listen={place.listen}",
        f"--grace={GRACE_S:g}",
        f"--isolation={isolation}",
        # A home of its own is in no private swarm; that lending to the open one is lending to anyone, the form says.
        "--swarm=open",
        "--allow-anyone",
        *(f"--bootstrap={address}" for address in place.bootstrap),
    ]
    if place.mdns:
        words.append("--mdns")
    if wanted.devices is not None:
        words.append(f"--devices={wanted.devices}")
    if wanted.threads is not None:
        words.append(f"--threads={wanted.threads}")
    return words
